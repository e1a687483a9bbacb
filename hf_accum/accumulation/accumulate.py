"""The gradient of one window, through accelerate's `accumulate` context."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_accum.accumulation.guard import WindowGuard, parameters_of
from hf_accum.device.out_of_memory import Failure, classify, release
from hf_accum.device.timer import Stopwatch
from hf_accum.distributed.collectives import refuse_layers_that_talk, refuse_strategies_that_talk
from hf_accum.distributed.ranks import talking
from hf_accum.errors import UserError, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_accum.accumulation.execution import MicroBatch, WindowExecution

_BUCKET_BYTES = 25 * 2**20

Models = nn.Module | Sequence[nn.Module]

_accumulating: "WeakSet[Accelerator]" = WeakSet()


@contextmanager
def accumulate(accelerator: "Accelerator", model: Models, micro_batch: "MicroBatch") -> Iterator[None]:
    """`accelerator.accumulate(model)` for one micro-batch; **an out-of-memory inside ends the body early**, unraised.

    `model` is what the loss trains: one model, or a list of them, prepared by accelerate or not.

    Inside, run the forward, and `accelerator.backward(micro_batch.scaled(loss))` on the *summed* loss, once.
    Gradients are kept on this rank until the window's last micro-batch is through; then they are summed over the
    ranks. Random numbers drawn by the forward (dropout) are seeded by the micro-batch.

    If memory runs out, the gradients of the window are dropped, running statistics (of BatchNorm) are as before it,
    and `micro_batches` starts the window anew in smaller pieces: what the body did after the failing operation is not
    done, and it runs again. The other ranks, which know nothing of it, wait at the sum; in a window with no-grad
    passes they are told, and start anew too. Ranks may run different numbers of micro-batches, each at least one.

    Settings of accelerate and DistributedDataParallel that a window needs are given back behind its last micro-batch,
    and where an error ends it.

    A no-grad pass runs without a graph, leaves running statistics as they were, and is not counted by accelerate.

    Raises:
        UserError: if the loss was not scaled just once, or did not go backward just once, by `accelerator.backward`;
            if the model has no parameter to be trained, or gradients from before the window; if it has layers that
            talk to the other ranks in the forward (SyncBatchNorm), or accelerate is configured so (FSDP, DeepSpeed);
            if ranks began with other weights; if weights were changed, or frozen, within the window; if its first
            loss trains parameters of other models, or its losses a tensor that is no parameter; inside of another
            `accumulate`.
        RuntimeError: if accelerate counts other micro-batches than these.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_accum import accumulate, windows_of
    >>> accelerator, model = Accelerator(cpu=True), torch.nn.Linear(1, 1)
    >>> (window,) = windows_of(accelerator, [torch.ones(5, 1)], batches_per_step=1)
    >>> for micro_batch in window.micro_batches(2):  # 2, 2 and 1 examples, or so
    ...     with accumulate(accelerator, model, micro_batch):
    ...         accelerator.backward(micro_batch.scaled(model(micro_batch.batch).sum()))
    >>> model.weight.grad, window.num_micro_batches
    (tensor([[1.]]), 3)
    """
    execution = micro_batch.execution
    is_last = micro_batch.index == micro_batch.count - 1
    models = (model,) if isinstance(model, nn.Module) else tuple(model)
    if accelerator in _accumulating:
        raise UserError(
            "`accumulate` inside of another `accumulate`: the inner one would count as a window of its own; give one "
            "of them all models, `accumulate(accelerator, [model, other], micro_batch)`"
        )
    _accumulating.add(accelerator)
    try:
        with _accumulated(accelerator, models, micro_batch):
            yield
    except BaseException:
        execution.restore_settings()
        raise
    finally:
        _accumulating.discard(accelerator)
    if is_last and not micro_batch.is_no_grad_pass and micro_batch.out_of_memory is None:
        execution.restore_settings()
    micro_batch.is_through = True


@contextmanager
def _accumulated(
    accelerator: "Accelerator", models: Sequence[nn.Module], micro_batch: "MicroBatch"
) -> Iterator[None]:
    execution = micro_batch.execution
    if micro_batch.index == 0:
        _prepare(accelerator, models, micro_batch)
    _seed(micro_batch.seed, accelerator.device)
    stopwatch = Stopwatch.on(accelerator.device)
    try:
        # Without DistributedDataParallel's own exchange in the last backward: a backward that runs out of memory
        # half way through an exchange cannot be taken back, and leaves the other ranks waiting.
        if micro_batch.is_no_grad_pass:
            with torch.no_grad():
                yield
        else:
            with accelerator.accumulate(*models), ExitStack() as unsynced:
                for model in models:
                    unsynced.enter_context(accelerator.no_sync(model))
                yield
    except Exception as error:
        failure = classify(error)
        if failure is Failure.OTHER or (failure is Failure.AMBIGUOUS and not micro_batch.retry_ambiguous):
            raise
        micro_batch.out_of_memory = first_line(error)
        micro_batch.is_ambiguous = failure is Failure.AMBIGUOUS
        release(error, accelerator.device)
    is_last = micro_batch.index == micro_batch.count - 1
    came_through = micro_batch.out_of_memory is None
    if micro_batch.tell is not None and (is_last or not came_through):
        all_did = micro_batch.tell(came_through)
        if came_through and not all_did:
            micro_batch.out_of_memory = "on another rank"
            micro_batch.failed_elsewhere = True
    if micro_batch.out_of_memory is not None:
        discard_gradients(models, execution)
        return
    if micro_batch.is_no_grad_pass:
        if is_last:
            discard_gradients(models, execution)
        return
    if stopwatch is not None:
        stopwatch.stop()
        micro_batch.timing = stopwatch
    if accelerator.sync_gradients != is_last:
        raise RuntimeError(
            f"micro-batch {micro_batch.index + 1} of {micro_batch.count} did not match accelerate's own count: "
            "run each micro-batch of a window once, in order, no other window's between them, and call "
            "accelerator.accumulate nowhere else"
        )
    micro_batch.check_complete()
    if execution.guard is not None:
        execution.trained.check(execution.guard)
    if micro_batch.is_dummy:
        discard_gradients(models, execution)
    if micro_batch.share is not None:
        execution.shares.append(micro_batch.share)
    if is_last:
        _check_shares(execution.shares, micro_batch.count, accelerator.scaler)
        if execution.guard is not None:
            execution.guard.check()
    if is_last and accelerator.num_processes > 1:
        trained = [p for p in parameters_of(models) if p.requires_grad]
        with talking():
            if execution.window.step == 1:
                _refuse_other_weights(trained)
            _sum_gradients(trained)


def _check_shares(shares: Sequence[Tensor], count: int, scaler: torch.amp.GradScaler | None) -> None:
    """Refuse backwards that accelerate did not divide by the number of micro-batches. Waits for the device once.

    The scaler of fp16 multiplies all of them by a number that stays the same within a window.
    """
    if count == 1 or not shares:
        return  # nothing was to divide
    factor = 1.0 if scaler is None else scaler.get_scale()
    for index, share in enumerate((torch.stack([share.float().reshape(()) for share in shares]) / factor).tolist()):
        overflows = scaler is not None and not math.isfinite(share)  # it leaves the step out, and lowers its scale
        if not overflows and not math.isclose(share * count, 1, rel_tol=1e-3):
            raise UserError(
                f"micro-batch {index + 1} of {count}: its scaled loss went backward with the factor {share:.4g}, "
                f"where accelerate's is {1 / count:.4g}; run `accelerator.backward(micro_batch.scaled(loss))`, with "
                "nothing between the two, and one window to its end before another begins"
            )


def discard_gradients(model: Models, execution: "WindowExecution") -> None:
    """Leave nothing of a window that was run: no gradients, and running statistics as before it."""
    for one in (model,) if isinstance(model, nn.Module) else model:
        one.zero_grad(set_to_none=True)
    execution.restore_statistics()


def _prepare(accelerator: "Accelerator", models: Sequence[nn.Module], micro_batch: "MicroBatch") -> None:
    """Set accelerate's own count for a window, keeping what it was; and keep the models' running statistics.

    accelerate closes a window at every num_steps-th call, and also where a prepared loader ends. Here each window
    counts its own micro-batches, and no loader has a say in it.
    """
    execution = micro_batch.execution
    refuse_strategies_that_talk(accelerator)
    for model in models:
        refuse_layers_that_talk(model, accelerator.num_processes)
    if not any(p.requires_grad for p in parameters_of(models)):
        names = ", ".join(type(model).__name__ for model in models) or "no model"
        raise UserError(
            f"`accumulate` was given {names}, of which no parameter is to be trained: has to be given what the loss "
            "trains, with `requires_grad`"
        )
    if execution.drop_gradients is None:
        _refuse_gradients_left_over(models)
        execution.drop_gradients = partial(discard_gradients, models, execution)
    if execution.settings_before is None:
        execution.settings_before = _settings_of(accelerator, models)
    if execution.guard is not None:
        execution.guard.close()  # of an attempt that ran out of memory
    execution.guard = WindowGuard(models, several=micro_batch.count > 1)
    accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
    accelerator.gradient_accumulation_steps = micro_batch.count
    accelerator.step = 0
    for model in _wrapped(models):
        if model.static_graph:
            raise UserError(
                "DistributedDataParallel with `static_graph`: it exchanges gradients in a backward of its own "
                "choice, while here they are summed behind the last one; make it without, as accelerate does"
            )
        # Its first forward would give all ranks the buffers of the first: a second time if memory runs out in it.
        model.require_forward_param_sync = False
    if not execution.statistics_before:
        execution.statistics_before += [(s, s.clone()) for model in models for s in _running_statistics(model)]


def _wrapped(models: Sequence[nn.Module]) -> list[DistributedDataParallel]:
    return [model for model in models if isinstance(model, DistributedDataParallel)]


def _refuse_gradients_left_over(models: Sequence[nn.Module]) -> None:
    left = [p.grad for p in parameters_of(models) if p.requires_grad and p.grad is not None]
    if any(bool(gradient.any()) for gradient in left):
        raise UserError(
            f"{len(left)} parameters have gradients from before this window, to which its own would be added: call "
            "`optimizer.zero_grad()` after each window, whether it had a step or not"
        )


def _settings_of(accelerator: "Accelerator", models: Sequence[nn.Module]) -> Callable[[], None]:
    """What gives back the settings of now."""
    kwargs = accelerator.gradient_state.plugin_kwargs
    had = dict(kwargs)
    step = accelerator.step
    synced = [(model, model.require_forward_param_sync) for model in _wrapped(models)]

    def give_back() -> None:
        kwargs.clear()
        kwargs.update(had)
        accelerator.step = step
        accelerator.gradient_state._set_sync_gradients(True)  # or a prepared optimizer would not even drop gradients
        for model, was in synced:
            model.require_forward_param_sync = was

    return give_back


def _running_statistics(model: nn.Module) -> Iterator[Tensor]:
    """What forwards in train mode change: of BatchNorm and InstanceNorm."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
            yield from module.buffers(recurse=False)


def _refuse_other_weights(parameters: Sequence[nn.Parameter]) -> None:
    """Refuse ranks that began with other weights: seen by the first number of each parameter."""
    if not parameters:
        return
    firsts = torch.stack([p.detach().flatten()[:1].sum().float() for p in parameters])
    largest, smallest = firsts.clone(), firsts.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    num_others = int((largest != smallest).sum())
    if num_others:
        raise UserError(
            f"{num_others} of {len(parameters)} parameters have other values on other ranks: prepare the model with "
            "accelerate, which gives all ranks those of the first, or seed what they are drawn from alike"
        )


def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of each parameter over the ranks; where none has one there is none after, too."""
    if not parameters:
        return
    if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
        raise UserError(
            "gradients that are sparse, which are not summed over the ranks here: make the embeddings with "
            "`sparse=False`"
        )
    has_one = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    dist.all_reduce(has_one)
    for parameter, count in zip(parameters, has_one.tolist(), strict=True):
        if count and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype together, in order, until there are enough bytes for one exchange."""
    bucket: list[Tensor] = []
    num_bytes = 0
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or num_bytes + gradient.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(gradient)
        num_bytes += gradient.nbytes
    if bucket:
        yield bucket


def _seed(seed: int, device: torch.device) -> None:
    # Not torch.manual_seed: it asks after every backend that there could be, which takes half a millisecond.
    torch.random.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
