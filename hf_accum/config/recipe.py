"""The flags that every recipe shares, defined once: those of each subject together."""

from dataclasses import dataclass, fields

from hf_accum.config.data import DataFlags, check_data
from hf_accum.config.lora import LoraFlags
from hf_accum.config.memory import MemoryFlags, check_memory
from hf_accum.config.model import ModelFlags, check_model
from hf_accum.config.optimization import OptimizationFlags, check_optimization
from hf_accum.config.run import RunFlags, check_run
from hf_accum.config.validation import check_numbers, check_texts, require

SUBJECTS: dict[str, type] = {
    "Model": ModelFlags,
    "Data": DataFlags,
    "LoRA": LoraFlags,
    "Optimization": OptimizationFlags,
    "Memory and speed": MemoryFlags,
    "Run and checkpoints": RunFlags,
}
"""The headings of the help, in order, and the flags below each."""


# A dataclass has the fields of its last base first.
@dataclass(frozen=True, kw_only=True)
class RecipeConfig(RunFlags, MemoryFlags, OptimizationFlags, LoraFlags, DataFlags, ModelFlags):
    """The flags that every recipe shares."""

    def __post_init__(self) -> None:
        """Check every value, before anything heavy is loaded."""
        self.split_names("trackers", "allow_changes")
        check_texts(vars(self))
        check_numbers(self)
        check_model(self)
        check_data(self)
        check_optimization(self)
        check_memory(self)
        check_run(self)
        require(
            self.quantization == "none" or self.lora.rank > 0,
            "quantization",
            self.quantization,
            "none with `lora.rank 0`: quantised weights cannot be trained",
        )
        require(
            self.frozen_dtype in ("auto", "float32") or self.lora.rank > 0,
            "frozen_dtype",
            self.frozen_dtype,
            "auto or float32 with `lora.rank 0`: all weights are trained, in float32",
        )
        require(
            not self.freeze_embeddings or self.lora.rank == 0,
            "freeze_embeddings",
            "true",
            "false with adapters: all that they do not sit on is frozen; `lora.rank 0` trains all weights",
        )
        require(
            self.micro_batch_size != "auto" or not self.full_determinism,
            "full_determinism",
            self.full_determinism,
            "false with `micro_batch_size auto`, which depends on what is free: give a number",
        )

    def split_names(self, *flags: str) -> None:
        """Make lists of flags that were given as names with commas between."""
        for flag in flags:
            value = getattr(self, flag)
            if isinstance(value, str):
                # [0,1] arrives as a text, since its items are none.
                listed = value.strip().removeprefix("[").removesuffix("]").split(",")
                names = [name for item in listed if (name := item.strip().strip("'\""))]
                object.__setattr__(self, flag, names)


def flags_by_heading(config_class: type[RecipeConfig]) -> dict[str, list[str]]:
    """The names of a recipe's flags below the headings of the help; the recipe's own come first."""
    shared = {field.name for field in fields(RecipeConfig)}
    own = [field.name for field in fields(config_class) if field.name not in shared]
    return {"This recipe": own} | {
        heading: [field.name for field in fields(subject)] for heading, subject in SUBJECTS.items()
    }
