"""Going on with a run: which checkpoint, whether this is still the same run, and what each rank starts from."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from hf_accum.accumulation.guard import norms_of
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import as_dict, flattened
from hf_accum.distributed.collectives import on_all_ranks, on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.models.precision import frozen_dtype
from hf_accum.models.saving import load_weights, weights_folder
from hf_accum.run.checkpoint import Checkpoints, Loaded, load, load_latest
from hf_accum.run.manifest import Damaged
from hf_accum.run.training_state import Stateful, put_back, take_state
from hf_accum.seeding import derive_seed

FREE = frozenset(
    {
        *(
            "output_dir",
            "preview",
            "resume",
            "allow_changes",
            "allow_cut_dependence",
            "save_every",
            "keep_checkpoints",
            "log_every",
            "trackers",
            "debug",
            "num_seeds",
        ),
        *("micro_batch_size", "memory_budget", "max_probe_seconds", "gradient_checkpointing", "balance_ranks"),
        *("full_determinism", "loss_chunk_size", "frozen_dtype", "num_samples", "sample_length"),
        *("eval_every", "best_metric", "early_stopping_patience", "extra_metrics", "max_minutes", "on_bad_row"),
        *("rank_timeout_minutes", "on_nonfinite", "max_nonfinite_skips", "allow_pickle_weights", "trust_remote_code"),
    }
)
"""Settings that may be others when a run goes on: they change what it costs and shows, not what it trains."""

_CUT_BY = ("micro_batch_size", "memory_budget", "max_probe_seconds", "gradient_checkpointing", "full_determinism")
_OF_THE_DATA = ("num_train", "data_digest")
_ORDER = {
    *("seed", "shuffle_block_size", "stream_split", "num_processes", "dataset", "dataset_revision", "train_split"),
    *("eval_split", "eval_fraction", "group_column", "calibration_fraction", "mix_until", *_OF_THE_DATA),
    *("tune_thresholds", "temperature_scaling", "dataset_config", "csv_quoting"),
}
_AS_MUCH = 0.95  # of the memory there was


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from, and what is to be said of it."""

    loaded: Loaded | None
    notes: Sequence[str] = field(default_factory=tuple)
    starts_pass_anew: bool = False
    """Whether the examples come in another order than then: their places mean nothing."""
    base_may_differ: bool = False
    """Whether another base model was allowed."""

    @property
    def step(self) -> int:
        """After which the run goes on; 0: it starts anew."""
        return 0 if self.loaded is None else self.loaded.step

    @property
    def leaves_out_unused_adapters(self) -> bool:
        """Not a run that was begun before adapters were left out: it goes on with those that it had."""
        return self.loaded is None or self.loaded.numbers.get("leaves_out_unused_adapters", False)


def facts_of_run(
    config: RecipeConfig, ranks: Ranks, precision: str, *, num_train: int | None, data_digest: str | None
) -> dict[str, Any]:
    """What decides how a run goes: its settings, its data, its ranks."""
    return {
        "settings": flattened(json.loads(json.dumps(as_dict(config)))),
        "num_train": num_train,
        "data_digest": data_digest,
        "num_processes": ranks.count,
        "precision": precision,
        "frozen_dtype": str(frozen_dtype(config, precision)).removeprefix("torch."),
    }


def find_resume(folder: Path, config: RecipeConfig, facts: Mapping[str, Any], ranks: Ranks) -> Resumed:
    """The checkpoint that `resume` means, if there is one, read and compared with the run of now. A collective.

    `auto` takes the newest one in the run's folder that is whole, if that run was not finished.

    Raises:
        UserError: if the checkpoint is damaged, or of a run that would go another way, unless `allow_changes`
            names what has changed.
    """

    def find() -> Resumed:
        notes: list[str] = []
        if config.resume == "never":
            return Resumed(None)
        if config.resume == "auto":
            if not (folder / "config.yaml").exists() or (folder / "evaluation.json").exists():
                return Resumed(None)
            loaded = load_latest(folder, notes.append)
        else:
            path = Path(config.resume).expanduser().resolve()
            try:
                loaded = load(path)
            except Damaged as error:
                raise UserError(
                    f"`resume` {config.resume}: has to be auto, never, or a checkpoint's folder, as "
                    f"RUN/checkpoints/step-00000100 ({error})"
                ) from error
        changed: set[str] = set()
        if loaded is not None:
            changed = _compare(loaded, config, facts, ranks, notes.append)
        if starts_anew := bool(changed & _ORDER):
            notes.append("the examples come in another order than before: the pass that was begun starts anew")
        return Resumed(loaded, notes, starts_anew, "base" in config.allow_changes)

    # Rank 0 reads: the others may not see its disk.
    return on_rank_0(ranks, find)


def _compare(
    loaded: Loaded, config: RecipeConfig, facts: Mapping[str, Any], ranks: Ranks, say: Callable[[str], None]
) -> set[str]:
    """The names of what is another, and allowed to be."""
    earlier, now = loaded.numbers["facts"], facts
    is_same_data = None not in (earlier["data_digest"], now["data_digest"]) and all(
        earlier[name] == now[name] for name in _OF_THE_DATA
    )
    free = FREE | {"dataset", "dataset_revision"} if is_same_data else FREE  # wherever it lies
    changed = [
        (name, earlier["settings"].get(name), value)
        for name, value in now["settings"].items()
        if name not in free and _as_list(earlier["settings"].get(name)) != _as_list(value)
    ]
    changed += [
        (name, earlier[name], now[name])
        for name in ("precision", "frozen_dtype", *_OF_THE_DATA)
        if earlier[name] != now[name] and None not in (earlier[name], now[name])
    ]
    if earlier["num_processes"] != ranks.count and config.stream_split == "shards":
        changed.append(("num_processes", earlier["num_processes"], ranks.count))
    allowed = set(config.allow_changes)
    refused = [(name, before, after) for name, before, after in changed if name not in allowed]
    if refused:
        told = "; ".join(f"{name} was {before}, now {after}" for name, before, after in refused)
        names = ",".join(dict.fromkeys(name for name, _, _ in refused))
        raise UserError(
            f"the checkpoint {loaded.path} is of a run that would go another way: {told}; `resume never` starts anew "
            f"(the earlier run is kept beside), `allow_changes {names}` goes on all the same"
        )
    for name, before, after in changed:
        say(f"{name} was {before}, now {after}: allowed")
    return {name for name, _, _ in changed}


class HasState(Protocol):
    """What goes on from a state: a stream of windows, a cutter, the check for non-finite gradients, the best one."""

    def state_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from them."""
        ...


class Windows(HasState, Protocol):
    """A stream of windows, whose state is that of all ranks."""

    def load_state_dict(self, state: Mapping[str, Any], /, *, new_order: bool = False) -> None:
        """Go on from it; in a new order at the start of the pass."""
        ...


@dataclass
class RunState:
    """A run as a checkpoint holds it: what it was started with, and all that training changes.

    `device` and `limit_bytes` are those of the tuner: with as much memory on such a device windows are cut as before.
    """

    facts: Mapping[str, Any]
    ranks: Ranks
    model: nn.Module
    optimizer: Stateful
    scheduler: Stateful
    scaler: Stateful | None
    windows: Windows
    cutter: HasState
    nonfinite: HasState
    best: HasState
    device: str
    limit_bytes: int
    leaves_out_unused_adapters: bool = True
    owes_evaluation: bool = False
    """Whether one was due after the last step, and left for when the run goes on."""

    def __post_init__(self) -> None:
        """Take the base model's digest."""
        self._base = digest_of_frozen(self.model)
        self._norms = norms_of(self._frozen)

    @property
    def _frozen(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if not parameter.requires_grad]

    def refuse_changed_base(self) -> None:
        """Refuse weights that are not trained and were changed all the same, by forwards, say. A collective.

        Raises:
            UserError: if there are such: what was trained would go with no base model that there is.
            RankFailed: if another rank found them.
        """

        def ask() -> None:
            num_changed = int((norms_of(self._frozen) != self._norms).sum())
            if num_changed:
                raise UserError(
                    f"{num_changed} weights that are not trained were changed in the run, by the model's own "
                    "forwards, say, so that what is trained would fit no model that there is: `model` has to be one "
                    "that leaves its weights to the optimizer; what was saved before may be wrong too"
                )

        on_all_ranks(self.ranks, ask)

    def restore(self, resumed: Resumed) -> None:
        """Make it that of a checkpoint; the weights on rank 0 only, which are to be broadcast then.

        Raises:
            UserError: if the checkpoint is of another base model, or of another optimizer.
        """
        loaded = resumed.loaded
        if loaded is None:
            return
        numbers = loaded.numbers
        if numbers["base"] != self._base and not resumed.base_may_differ:
            raise UserError(
                f"the checkpoint {loaded.path} was trained on another base model: the weights that are not trained "
                "differ; give `model` and `revision` of then, or `resume never`; `allow_changes base` goes on all "
                "the same"
            )
        if self.ranks.index == 0:
            load_weights(self.model, loaded.path / weights_folder(self.model))
            self._norms = norms_of(self._frozen)  # of a whole model they were saved, too
        put_back(loaded.state, self.model, self.optimizer, self.scheduler, self.scaler)
        self.windows.load_state_dict(numbers["windows"], new_order=resumed.starts_pass_anew)
        self.nonfinite.load_state_dict(numbers["nonfinite"])
        self.best.load_state_dict(numbers["best"])
        self.owes_evaluation = numbers.get("owes_evaluation", False)
        if len(numbers["cutters"]) == self.ranks.count:
            mine = numbers["cutters"][self.ranks.index]
            asked = [numbers["facts"]["settings"].get(name) == self.facts["settings"][name] for name in _CUT_BY]
            if all(asked) and mine["device"] == self.device and self.limit_bytes >= _AS_MUCH * mine["limit_bytes"]:
                self.cutter.load_state_dict(mine["cutter"])

    def save(self, step: int, checkpoints: Checkpoints) -> None:
        """Begin to save it, as it is behind the window of a step. A collective.

        Raises:
            UserError: as `refuse_changed_base` does.
        """
        self.refuse_changed_base()
        mine = {"cutter": self.cutter.state_dict(), "device": self.device, "limit_bytes": self.limit_bytes}
        numbers = {
            "step": step,
            "facts": self.facts,
            "base": self._base,
            "windows": self.windows.state_dict(),
            "cutters": self.ranks.gather_objects(mine),
            "nonfinite": self.nonfinite.state_dict(),
            "best": self.best.state_dict(),
            "owes_evaluation": self.owes_evaluation,
            "leaves_out_unused_adapters": self.leaves_out_unused_adapters,
        }
        if checkpoints.is_main:
            checkpoints.save(take_state(self.model, self.optimizer, self.scheduler, self.scaler), numbers)


def digest_of_frozen(model: nn.Module) -> str:
    """Of the weights that training does not change: of each its name, its shape, its first and last values."""
    parts: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and ".original_module." not in name:  # a new head, that nothing uses
            flat: Tensor = parameter.detach().reshape(-1)
            ends = [flat[:64], flat[-64:]]
            parts += [name, str(tuple(parameter.shape)), *(str(end.cpu().tolist()) for end in ends)]
    return f"{derive_seed(*parts):016x}"


def _as_list(value: Any) -> Any:
    """Of a setting that takes a name or a list of them one spelling."""
    return [value] if isinstance(value, str) else value
