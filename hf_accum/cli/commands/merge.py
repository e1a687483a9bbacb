"""`hf-accum merge`: the adapter of a run in its base, a model that plain transformers loads."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.one_process import check_one_process
from hf_accum.cli.recipes import recipe_of
from hf_accum.files import check_vacant

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from hf_accum.config.recipe import RecipeConfig
    from hf_accum.run.merge import Merged

_MERGE = """Merge the adapter of a run that is through into its base: a folder that transformers loads without peft,
with the card, and the tokenizer or image processor. It is loaded and compared with the adapter, on rows that the run
held out, or on those of --dataset, before it is there. Flags of the run's recipe say how rows are read; what is not
given is as in the run."""
_SHOWN_VALUES = 3


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipe reads the flags."""
    parser = commands.add_parser(
        "merge", help="the adapter of a run merged into its base", description=_MERGE, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, its --output_dir")
    parser.add_argument("output", metavar="OUT", help="a new folder for the model")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="what weights are stored in; default: as those of the base are",
    )
    parser.add_argument(
        "--dataset", help="rows to compare on, as training reads them; default: what the run held out"
    )
    parser.add_argument("--recipe", help="the recipe, where the run does not say by which it was made")
    parser.set_defaults(work=_merge)


def _merge(parsed: argparse.Namespace, flags: list[str]) -> None:
    from hf_accum.run.merge import check_adapter

    check_one_process("merge")
    folder, output = (Path(path).expanduser().resolve() for path in (parsed.run, parsed.output))
    check_adapter(folder)
    check_vacant(output)
    module, config = recipe_of(folder, parsed.recipe, flags, parsed.own)
    run(lambda: merge_run(module, folder, config, output, parsed.dtype, parsed.dataset), config)


def merge_run(
    module: "ModuleType",
    folder: Path,
    config: "RecipeConfig",
    output: Path,
    dtype: str | None = None,
    dataset: str | None = None,
) -> "Merged":
    """Merge the adapter of the run in `folder`, made by a recipe's module, into its base; shown, and in `output`.

    Raises:
        UserError: as `open_merge` and `merge_into` do.
    """
    from rich.console import Console

    from hf_accum.cli.merging import open_merge
    from hf_accum.run.merge import merge_into

    console = Console(soft_wrap=True)
    with open_merge(module, config, dataset) as opened:
        handed = opened.handed
        of_run = (handed.spec, handed.processor, config, handed.task)
        merged = merge_into(output, folder, *of_run, opened.examples, dtype)
    rows = f"parts of {opened.rows}" if any(example.parts for example in opened.examples) else opened.rows
    lines = [f"adapter | merged, {merged.dtype}; the largest outputs ([number]) of {rows}:"]
    for number, both in enumerate(zip(merged.of_adapter, merged.of_merged, strict=True), start=1):
        lines.append(f"  {number}: {_side_by_side(*both)}")
    largest = max(float(one.abs().max()) for one in merged.of_adapter)
    of_largest = f", {merged.difference / largest:.2g} of the largest output" if largest > 1 else ""
    lines.append(f"largest difference: {merged.difference:.2g}{of_largest} (allowed: {merged.allowed:.2g})")
    lines += [*(f"note: {note}" for note in merged.notes), f"written: {output}"]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    return merged


def _side_by_side(of_adapter: "Tensor", of_merged: "Tensor") -> str:
    """Of the last place the outputs that are the largest, each with its number."""
    one, other = of_adapter[-1], of_merged[-1]
    largest = sorted(one.topk(min(_SHOWN_VALUES, one.numel())).indices.tolist())
    return "   ".join(f"[{index}] {float(one[index]):.6f} | {float(other[index]):.6f}" for index in largest)
