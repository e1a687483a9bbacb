"""The run whose result another one starts from: which settings have to be the same, and which labels are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import as_dict, flattened
from hf_accum.errors import UserError
from hf_accum.models.earlier_weights import is_adapter, labels_in, start_from
from hf_accum.models.spec import ModelSpec
from hf_accum.run.result import check_through

_OF_THE_MODEL = (*("problem", "pooling", "long_texts", "window_pooling", "nested", "task"),)
"""Flags by which a model's weights mean something else."""
_OF_ADAPTERS = ("lora.rank", "lora.alpha", "lora.target_modules")


@dataclass(frozen=True)
class EarlierRun:
    """A run that is through: its result, and what its flags were."""

    result: Path
    settings: Mapping[str, Any]

    def values(self, flag: str) -> tuple[str, ...]:
        """A list that one of its flags was: its labels."""
        return tuple(self.settings.get(flag) or ())

    def check(self, config: RecipeConfig) -> None:
        """Refuse flags with which its weights would mean something else; those that are null are not known yet.

        Raises:
            UserError: naming the flag, and what it has to be.
        """
        now = flattened(as_dict(config))
        for name in _OF_THE_MODEL if now["lora.rank"] == 0 else (*_OF_ADAPTERS, *_OF_THE_MODEL):
            before, value = self.settings.get(name), now.get(name)
            if name in self.settings and name in now and value is not None and before != value:
                raise UserError(
                    f"`{name}` {value}: has to be {before}, as in the run that it starts from (`init_from` "
                    f"{config.init_from})"
                )

    def put_into(self, model: nn.Module, config: RecipeConfig, spec: ModelSpec) -> list[str]:
        """Have the model start from its weights; returns what is to be said of it.

        Raises:
            UserError: if they do not fit, or would mean something else.
        """
        self.check(config)
        names: Mapping[int, str] = spec.config_values.get("id2label") or {}
        start_from(model, self.result, list(names.values()))
        known = labels_in(self.result)
        new = [name for name in names.values() if name not in known]
        said = f"; new labels: {', '.join(new)}" if new and known else ""
        return [f"starts from the weights in {self.result}{said}"]


def earlier_run(config: RecipeConfig) -> EarlierRun | None:
    """The run that `init_from` names, if it does.

    Raises:
        UserError: if that is no run, it is not through, the new one is to stand in its place, or it was trained with
            another kind of adapter or head.
    """
    if config.init_from is None:
        return None
    folder = Path(config.init_from).expanduser().resolve()
    if folder == Path(config.output_dir).expanduser().resolve():
        raise UserError(
            f"`init_from` {config.init_from}: is the folder that this run would write to, and the earlier one "
            "would be moved: give another `output_dir`"
        )
    result = check_through(folder)
    settings = _settings_of(folder)
    now = flattened(as_dict(config))
    is_whole = now["lora.rank"] == 0
    if is_adapter(result) == is_whole:
        has = "weights of a whole model" if not is_adapter(result) else "an adapter"
        way_out = "`lora.rank 0`" if not is_adapter(result) else f"`lora.rank {settings.get('lora.rank')}`"
        raise UserError(f"`init_from` {config.init_from}: has {has}, which {way_out} goes on with")
    earlier = EarlierRun(result, settings)
    earlier.check(config)
    return earlier


def _settings_of(folder: Path) -> dict[str, Any]:
    import yaml

    file = folder / "config.yaml"
    try:
        return flattened(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
