"""Which model a recipe trains: all that loading it needs, and laying it out without weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSpec:
    """A model by a transformers Auto class and its name, a hub id or a local folder.

    `task_type` is peft's (SEQ_CLS, say), or MASKED_LM, which peft does not know; None for models of images.
    `config_values` (labels, say) are set in the model's config. With `replace_head` a head for other labels is new.
    A model that `has_to_be` something (a causal language model, say) needs pretrained weights for all of it.
    `origin` says how others get a model that is in no package and not of the hub. `prepare` is run on the model that
    transformers made, once its adapters are on it.
    """

    auto_class: Any
    name: str
    task_type: str | None
    config_values: Mapping[str, Any] = field(default_factory=dict)
    replace_head: bool = False
    has_to_be: str = ""
    origin: str = ""
    prepare: "Callable[[PreTrainedModel], object] | None" = None

    def below_result(self) -> "ModelSpec":
        """The same, where an earlier result comes on it: a head for labels comes with that, which may have more."""
        return replace(self, replace_head=True) if "id2label" in self.config_values else self
