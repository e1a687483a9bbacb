"""`hf-accum plan`: what fits into which memory."""

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_accum.byte_sizes import format_bytes
from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.cli.recipes import config_class_of, find_recipe
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.variants import VARIANTS
from hf_accum.device.cards import format_capability
from hf_accum.errors import UserError, first_line
from hf_accum.tuner.targets import PRECISIONS, SIZES, Target, newest, oldest, precision_of, targets_of

if TYPE_CHECKING:
    from rich.table import Table

    from hf_accum.tuner.plan import Variant
    from hf_accum.tuner.workload import Workload


_VARIANTS = ",".join(VARIANTS)


_PLAN = """What fits into which memory, without a GPU and without weights: the largest micro-batch for each length, by
memory size and by way of training, and where the bytes go. All from the model's config."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipe reads the flags."""
    parser = commands.add_parser("plan", help="what fits into which memory", description=_PLAN, allow_abbrev=False)
    parser.add_argument("recipe", help="a module of recipes, or any module with a function `workload(config)`")
    parser.add_argument("--gpu", metavar="NAME", help='cards by name, with commas: "RTX 3060 12GB"')
    parser.add_argument("--memory", metavar="BYTES", help=f"sizes, with commas, instead of cards (default: {SIZES})")
    parser.add_argument("--capability", metavar="X.Y", help="the compute capability of these: 8.6")
    parser.add_argument(
        "--precision",
        metavar=f"{{{','.join(PRECISIONS)}}}",
        help="of the forward (default: bf16, or fp16 below compute capability 8.0; no where none is known)",
    )
    parser.add_argument("--variants", default=_VARIANTS, help="ways of training, with commas (default: %(default)s)")
    parser.add_argument(
        "--lengths",
        metavar="FILE",
        help="tokens of real examples, a number a line: of a card also over their windows",
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the frontiers: a file .svg or .png")
    parser.add_argument("--json", metavar="FILE", help="write what the tables say, for programs")
    parser.add_argument("--verified", metavar="FILE", help="also show what a run measured: its tuning.json")
    parser.set_defaults(work=_plan)


def _plan(parsed: argparse.Namespace, flags: list[str]) -> None:
    """Check what was given, up to the recipe's own flags, and then plan as these say (`--debug`)."""
    recipe, picture, json_file = parsed.recipe, parsed.picture, parsed.json
    try:
        targets = targets_of(parsed.gpu, parsed.memory, parsed.capability)
        precision = precision_of(targets, parsed.precision)
        real_lengths = [] if parsed.lengths is None else _lengths(Path(parsed.lengths), targets)
    except ValueError as error:
        raise UserError(as_flags(str(error), vars(parsed))) from error
    chosen = [variant.strip() for variant in parsed.variants.split(",")]
    unknown = sorted(set(chosen) - set(VARIANTS))
    if unknown:
        raise UserError(f"--variants {', '.join(unknown)}: has to be of {_VARIANTS}")
    if picture is not None and Path(picture).suffix not in (".svg", ".png"):
        raise UserError(f"--picture {picture}: has to end in .svg or .png")
    for flag, file in {"--picture": picture, "--json": json_file}.items():
        if file is not None and not Path(file).parent.is_dir():
            raise UserError(f"{flag} {file}: has to be in a folder that is there")
        if file is not None and Path(file).is_dir():
            raise UserError(f"{flag} {file}: has to be a file, it is a folder")
    measured = None if parsed.verified is None else _verified(Path(parsed.verified))
    module = find_recipe(recipe)
    config_class = config_class_of(module, recipe)
    build = _build(recipe, module, precision)
    config: RecipeConfig = parse(config_class, _PLAN, flags, parsed.own)

    run(
        lambda: _show(recipe, build, config, chosen, targets, precision, real_lengths, measured, picture, json_file),
        config,
    )


def _lengths(path: Path, targets: Sequence[Target]) -> list[int]:
    if oldest(targets) is None:
        raise UserError(f"`lengths` {path}: has to go with a card, by `gpu` or `capability`")
    from hf_accum.tuner.real_windows import read_lengths

    return read_lengths(path)


def _build(recipe: str, module: ModuleType, precision: str) -> "Callable[[RecipeConfig], Workload]":
    """The recipe's own function, with the precision; one that takes none is of float32."""
    try:
        inspect.signature(module.workload).bind(None, precision)
    except TypeError as error:
        if precision == "no":
            return module.workload
        raise UserError(
            f"{recipe}: its function `workload(config)` has to take a precision too, `workload(config, precision)`, "
            f"to be planned in {precision}; or plan it in float32, by --precision no"
        ) from error

    def build(config: RecipeConfig) -> "Workload":
        work: Workload = module.workload(config, precision)
        if work.precision != precision:
            raise UserError(f"{recipe}: its function `workload` has to hand its precision on, to `planned`")
        return work

    return build


def _show(
    recipe: str,
    build: "Callable[[RecipeConfig], Workload]",
    config: RecipeConfig,
    chosen: Sequence[str],
    targets: Sequence[Target],
    precision: str,
    real_lengths: Sequence[int],
    measured: "Table | None",
    picture: str | None,
    json_file: str | None,
) -> None:
    from rich.console import Console

    from hf_accum.tuner.plan import plan

    console = Console(soft_wrap=True)
    console.print(f"planning {recipe} for {config.model or 'its embedded model'}")
    capability = oldest(targets)
    budgets = [target.budget_bytes for target in targets]
    try:
        found, impossible = plan(build, config, chosen, capability, budgets, real_lengths, newest(targets))
    except UserError as error:
        raise UserError(as_flags(str(error), {"lengths"})) from error
    for target in targets:
        if (card := target.card) is not None:
            console.print(
                f"{card.name}: compute capability {format_capability(card.capability)}, "
                f"{format_bytes(card.memory_bytes)}, of which the plan uses {format_bytes(target.budget_bytes)} "
                "(the rest is left to the driver, and not measured)"
            )
    longest, lengths = found[0].max_length, found[0].lengths
    console.print(f"examples of {'up to ' if lengths.vary else ''}{longest} {lengths.unit}")
    if found[0].assumed:
        console.print(as_flags(f"counted for {found[0].assumed}", flag_names(type(config))))
    for flag, value in _overridden(config).items():
        console.print(f"{flag} {value} says nothing here: each way of training has its own (--variants chooses)")
    for why in impossible:
        console.print(as_flags(f"left out: {why}", flag_names(type(config))), markup=False, highlight=False)
    console.print(_frontiers(found, targets))
    console.print(_parts(found))
    if real_lengths:
        too_long = sum(length > longest for length in real_lengths)
        if too_long:
            console.print(f"{too_long} of {len(real_lengths)} lengths are longer than {longest}, and cut off there")
        console.print(_over_windows(found, targets))
    console.print(
        f"These numbers are predicted: of one rank, in {_in_words(precision)}, from a trace without a device, with "
        f"the kernels of {_kernels(capability)}. {_counted(capability)} A run with --micro_batch_size auto "
        "measures, and its tuning.json (--verified) says what was verified."
    )
    if measured is not None:
        console.print(measured)
    if picture is not None:
        from hf_accum.tuner.plan_picture import draw

        draw(found, targets, Path(picture))
        console.print(f"drawn: {picture}")
    if json_file is not None:
        from hf_accum.files import write_json
        from hf_accum.tuner.plan_json import as_json

        described = as_json(found, impossible, chosen, targets)
        write_json(Path(json_file), {"recipe": recipe, "model": config.model, "precision": precision} | described)
        console.print(f"written: {json_file}")


def _in_words(precision: str) -> str:
    return "float32" if precision == "no" else f"mixed precision ({precision})"


def _kernels(capability: tuple[int, int] | None) -> str:
    if capability is None:
        return "a CPU (--gpu or --capability: of a card)"
    return f"CUDA for compute capability {format_capability(capability)}"


def _counted(capability: tuple[int, int] | None) -> str:
    if capability is None:
        return "They count the bytes of tensors: a GPU needs some hundred MiB more (its context, fragments)."
    return (
        "The largest micro-batches and the row `reserved` count what CUDA's allocator would hold, by a model of its "
        "rules, and the other rows the bytes of tensors; nothing of it was measured on a GPU."
    )


def _overridden(config: RecipeConfig) -> dict[str, object]:
    """Flags that were given, and that every variant of a plan sets itself."""
    given: dict[str, object] = {}
    if config.lora.rank == 0:
        given["--lora.rank"] = 0
    if config.quantization != RecipeConfig.quantization:
        given["--quantization"] = config.quantization
    if config.gradient_checkpointing != RecipeConfig.gradient_checkpointing:
        given["--gradient_checkpointing"] = str(config.gradient_checkpointing).lower()
    return given


def _frontiers(variants: "Sequence[Variant]", targets: Sequence[Target]) -> "Table":
    from rich.table import Table

    from hf_accum.tuner.plan import MOST_SHOWN, lengths_of

    unit = variants[0].lengths.unit
    lengths = lengths_of(variants[0].max_length, variants[0].lengths.vary)
    title = f"largest micro-batch: examples of so many {unit}"
    memory = "memory" if targets[0].card is None else "card"
    table = Table(memory, "training", *map(str, lengths), title=title, title_justify="left")
    for target in targets:
        for index, variant in enumerate(variants):
            numbers = [variant.largest(length, target.budget_bytes, MOST_SHOWN) for length in lengths]
            cells = [_number(number, MOST_SHOWN) for number in numbers]
            table.add_row(target.name if index == 0 else "", variant.name, *cells)
        table.add_section()
    return table


def _number(number: int, most: int) -> str:
    return "-" if number == 0 else f"{most}+" if number == most else str(number)


def _parts(variants: "Sequence[Variant]") -> "Table":
    from rich.table import Column, Table

    length = variants[0].max_length
    title = f"where the bytes go: one example of {length} {variants[0].lengths.unit}"
    columns = [Column(variant.name, overflow="fold") for variant in variants]  # nothing is cut off where it is narrow
    table = Table(Column(no_wrap=True), *columns, title=title, title_justify="left")
    parts = [variant.parts(1, length) for variant in variants]
    for part in parts[0]:
        table.add_row(part, *(format_bytes(of[part]) for of in parts))
    table.add_section()
    totals = [variant.totals(length) for variant in variants]
    for name in totals[0]:
        table.add_row(name, *(format_bytes(of[name]) for of in totals))
    return table


def _over_windows(variants: "Sequence[Variant]", targets: Sequence[Target]) -> "Table":
    from rich.table import Table

    number = max((len(peaks) for variant in variants for peaks in variant.over_windows.values()), default=0)
    title = f"what the allocator holds over {number} windows of real lengths"
    table = Table(
        "card", "training", "first window", "last window", "of its memory", title=title, title_justify="left"
    )
    for target in targets:
        for index, variant in enumerate(variants):
            peaks = variant.over_windows.get(target.budget_bytes)
            share = f"{peaks[-1] / target.budget_bytes:.0%}" if peaks else "-"
            cells = [format_bytes(peaks[0]), format_bytes(peaks[-1])] if peaks else ["-", "-"]
            table.add_row(target.name if index == 0 else "", variant.name, *cells, share)
        table.add_section()
    return table


def _verified(path: Path) -> "Table":
    """What a run found, from its tuning.json."""
    from rich.table import Table

    try:
        tuning = json.loads(path.read_text())
        budget, probes = format_bytes(tuning["budget_bytes"]), tuning["probes"]
        table = Table("examples", "tokens", "predicted", "measured", title_justify="left")
        table.title = f"verified by {path} on {tuning['device']}, {budget}"
        for probe in probes:
            measured = probe["measured_bytes"]
            shown = "did not fit" if measured is None else format_bytes(measured)
            predicted = format_bytes(probe["predicted_bytes"])
            table.add_row(str(probe["num_examples"]), str(probe["length"]), predicted, shown)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--verified {path}: has to be the tuning.json of a run ({first_line(error)})") from error
    return table
