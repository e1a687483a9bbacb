"""Adapters on layers whose outputs a task never reads: found by a forward, and taken off."""

from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hf_accum.config.lora import LoraConfig
from hf_accum.models.modes import keeping_modes
from hf_accum.models.state import keeping_state
from hf_accum.seeding import keeping_random_state


def leave_out_unused_adapters(model: nn.Module, lora: LoraConfig, loss: Callable[[], Tensor]) -> list[str]:
    """Take adapters off layers that `loss` computes and does not read, as poolers of which the states are pooled.

    They would get no gradient. Only where the targets were chosen by their kind (all-linear), not by their names. A
    layer that was not run, as an expert that no token went to, keeps its adapter, and so do all where the forward
    fails: what is wrong with it is said where the run needs it. The model is in eval mode meanwhile; it, its buffers
    and the random state are as before. Returns the layers' names.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel) or not lora.targets_by_kind:
        return []
    base, names = model.get_base_model(), model.targeted_module_names
    layers: dict[str, Any] = {name: base.get_submodule(name) for name in names}
    were_run: set[nn.Module] = set()
    handles = [layer.register_forward_hook(lambda layer, *_: were_run.add(layer)) for layer in layers.values()]
    try:
        with keeping_random_state(), keeping_state(model), keeping_modes(model):
            model.eval()
            read = set(_leaves(loss()))
    except Exception:
        return []
    finally:
        for handle in handles:
            handle.remove()

    def is_unused(layer: Any) -> bool:
        # torch's MultiheadAttention takes the weight of its last layer, and never runs that.
        runs = layer in were_run or isinstance(layer.base_layer, NonDynamicallyQuantizableLinear)
        return runs and read.isdisjoint(p for p in layer.parameters() if p.requires_grad)

    unused = [name for name, layer in layers.items() if is_unused(layer)]
    if not unused or len(unused) == len(layers):
        return []
    for name in unused:
        above, _, own = name.rpartition(".")
        setattr(base.get_submodule(above), own, layers[name].base_layer)
        names.remove(name)
    cast(Any, model.active_peft_config).target_modules = set(
        names
    )  # all of them: what peft shortens could mean those, too
    return unused


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """What a loss would give a gradient to."""
    nodes: list[Any] = [loss.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            yield node.variable
        new = {following for following, _ in getattr(node, "next_functions", ()) if following is not None} - seen
        seen |= new
        nodes += new
