"""The flags of the model: which one, and how far it is trusted."""

from dataclasses import dataclass, field

from hf_accum.config.trust import Trust
from hf_accum.config.validation import BELOW_1, number, require, require_not_empty


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Model."""

    model: str | None = None
    """Hub id or local folder of the model; default: the recipe's embedded one."""
    revision: str | None = None
    """Branch, tag or commit of the hub's model repository: a commit pins what is downloaded."""
    trust_remote_code: bool = False
    """Run code that comes with the model, or a metric of the hub; read it first. Code of a dataset is never run."""
    code_revision: str | None = None
    """Branch, tag or commit of the model's code, where that is in another repository (trust_remote_code)."""
    init_from: str | None = None
    """The folder of a run that is through: training starts from its adapter (or weights), and keeps its labels; new
    ones in the data are learned beside them."""
    allow_pickle_weights: bool = False
    """Read weights from pytorch_model.bin where there is no model.safetensors: tensors only, nothing is run."""
    dropout: float | None = field(default=None, metadata=number(BELOW_1, other=(None,)))
    """Overrides every dropout probability of model and adapter, and 0 turns off all else that is random in training
    (layers left out, noise of routers); null: as the model has them."""

    @property
    def trust(self) -> Trust:
        """How far the model is trusted."""
        return Trust(self.revision, self.trust_remote_code, self.code_revision, self.allow_pickle_weights)


def check_model(config: ModelFlags) -> None:
    """Check how the flags of the model go together."""
    require_not_empty(config, "model", "revision", "code_revision", "init_from")
    require(
        config.code_revision is None or config.trust_remote_code,
        "code_revision",
        config.code_revision,
        "left out without `trust_remote_code`: no code of the model is run",
    )
