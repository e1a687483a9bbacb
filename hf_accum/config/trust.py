"""How far a model of others is trusted: its revision, its code, its pickled weights."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trust:
    """By default, not at all: no code of a model runs, and its weights are read from safetensors only.

    `revision` (and `code_revision`, for code of another repository) is a branch, tag or commit of the hub.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    code_revision: str | None = None
    allow_pickle_weights: bool = False

    @property
    def of_hub(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` takes, of configs and tokenizers too."""
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return options | ({"code_revision": self.code_revision} if self.code_revision else {})

    @property
    def of_weights(self) -> dict[str, Any]:
        """What `from_pretrained` of a model takes besides."""
        # None: safetensors where there are any.
        return {"use_safetensors": None if self.allow_pickle_weights else True, "weights_only": True}
