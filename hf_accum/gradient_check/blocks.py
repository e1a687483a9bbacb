"""Fewer of a model's equal blocks, where it is too big to be checked in a minute."""

from torch import nn

MOST_PARAMETERS = 60_000_000
"""Of a model that is checked whole."""
NUM_BLOCKS = 2


def keep_few_blocks(model: nn.Module) -> str:
    """Leave two blocks of each long list of equal ones in a big model; what was done, or ''."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if num_parameters <= MOST_PARAMETERS:
        return ""
    left_out = 0
    for module in list(model.modules()):
        for name, blocks in list(module.named_children()):
            if not isinstance(blocks, nn.ModuleList) or len(blocks) <= NUM_BLOCKS:
                continue
            if len({type(block) for block in blocks}) == 1 and list(blocks[0].parameters()):
                left_out += len(blocks) - NUM_BLOCKS
                setattr(module, name, blocks[:NUM_BLOCKS])
    config = getattr(model, "config", None)
    if left_out and hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = NUM_BLOCKS  # type: ignore[union-attr]
    return f"{left_out} of its blocks are left out, since it has {num_parameters:,} parameters" if left_out else ""
