"""What a run is about to do, in words."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.split import SplitData
from hf_accum.models.batch_norm import has_frozen_statistics
from hf_accum.models.lora import count_parameters
from hf_accum.models.trainable import Trainable
from hf_accum.run.resume import Resumed
from hf_accum.tuner.tuning import Tuning

if TYPE_CHECKING:
    from accelerate import Accelerator


_FEW_STEPS = 20


def _frozen(model: nn.Module) -> str:
    """Weights that are not trained, where they are in 16 or 4 bits."""
    types = {p.dtype for p in model.parameters() if not p.requires_grad}
    kinds = {torch.uint8: "4 bits", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    names = [name for dtype, name in kinds.items() if dtype in types]
    return f", frozen weights in {' and '.join(names)}" if names else ""


def describe_run(
    config: RecipeConfig,
    data: SplitData,
    *,
    trainable: Trainable,
    num_steps: int,
    accelerator: "Accelerator",
    tunings: Sequence[Tuning],
    earlier: Path | None,
    resumed: Resumed | None = None,
) -> str:
    """Lines for the user, before the first step: model, data, effective batch, its cut, steps, last window."""
    model, num_train = trainable.model, data.num_train
    num_trained, total = count_parameters(model)
    ranks = accelerator.num_processes
    batch = config.effective_batch_size
    how = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "full fine-tuning"
    new_modules = ", ".join(trainable.new_modules) if config.init_from is None else ""  # else they are learned
    new = f"; new, without pretrained weights: {new_modules}" if new_modules else ""
    lines = [
        f"model      {how}: {num_trained:,} of {total:,} parameters are trained ({num_trained / total:.2%}){new}",
        f"ranks      {ranks} on {accelerator.device.type}, precision {accelerator.mixed_precision}{_frozen(model)}",
        (
            f"window     {batch} examples per optimizer step over all ranks, cut into micro-batches that fit; the "
            "gradient is that of the whole window"
        ),
    ]
    alike = len({str(replace(tuning, seconds=0.0)) for tuning in tunings}) == 1
    for index, tuning in enumerate(tunings[:1] if alike else tunings):
        lines.append(f"memory     {'' if alike else f'rank {index}: '}{tuning}")
    if num_train is None:
        lines.append(f"steps      {num_steps:,}, over as many passes as they take")
    else:
        held_out = "" if data.num_held_out is None else f", {data.num_held_out:,} held out"
        calibration = f", {data.num_calibration:,} to calibrate on" if data.num_calibration else ""
        lines.insert(0, f"data       {num_train:,} examples to train on{held_out}{calibration}")
        num_in_pass = num_train if data.mixture is None else next(data.mixture.pass_sizes(1))
        rest = num_in_pass % batch
        last = "the windows of a pass come out even"
        if num_in_pass < batch:
            last = "a pass has fewer examples than one window: it is one window, used with its true weight"
        elif rest:
            last = f"the last window of a pass has {rest} examples and is used with its true weight"
        steps_per_pass = -(-num_in_pass // batch)
        passes = num_steps / steps_per_pass
        lines.append(f"steps      {num_steps:,}, about {passes:.2f} passes over the data; {last}")
        if steps_per_pass < _FEW_STEPS:
            lines.append(
                f"note       a pass over the data is only {steps_per_pass} optimizer steps: few to learn from; more "
                "passes are made by `num_epochs`, more steps in each by a smaller `effective_batch_size`"
            )
    if data.mixture is not None:
        lines += data.mixture.lines(num_steps, batch)
    lines += [f"note       {note}" for note in dict.fromkeys([*data.notes_of_files, *data.notes])]
    lines += [f"left out: {number:,} bad rows ({reason})" for reason, number in data.bad_rows.items()]
    of_batches = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if of_batches and has_frozen_statistics(model):
        lines.append(
            f"note       {len(of_batches)} BatchNorm layers keep the statistics that they came with: the gradient "
            "does not depend on the cut"
        )
    elif of_batches:
        lines.append(
            "note       this model has BatchNorm layers, which see the micro-batch: its gradient depends on the cut"
        )
    lines.append(f"folder     {config.output_dir}")
    if resumed is not None and resumed.loaded is not None:
        lines.append(f"resumed    after step {resumed.step:,}, from {resumed.loaded.path} (`resume never`: anew)")
    lines += [f"           {note}" for note in (() if resumed is None else resumed.notes)]
    if earlier is not None:
        lines.append(f"           the earlier run that stood there is now {earlier}")
    return "\n".join(lines)
