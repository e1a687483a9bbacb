"""`hf-accum export`: a run's model as ONNX, checked in onnxruntime."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.one_process import check_one_process
from hf_accum.cli.recipes import recipe_of
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from hf_accum.config.recipe import RecipeConfig

_EXPORT = """The model of a run that is through as ONNX: model.onnx, what makes its inputs, its labels, and a README
with lines that run it by onnxruntime without torch. It is compared with the run's own model at several lengths and
batch sizes, and not written where a value differs by more than 1e-4. Classifiers, taggers and encoders of texts, and
models of images; of a language model `hf-accum merge` makes what vLLM and llama.cpp take."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipe reads the flags."""
    parser = commands.add_parser("export", help="a run's model as ONNX", description=_EXPORT, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the folder of a run that is through")
    parser.add_argument("output", metavar="OUT", help="a new or empty folder")
    parser.add_argument(
        "--int8", action="store_true", help="weights in 8 bits; what that costs is shown on the held-out rows"
    )
    parser.add_argument("--dataset", help="show what --int8 costs on these rows: file, folder or hub id")
    parser.add_argument("--split", default="train", help="the split of --dataset; a file is called train")
    parser.add_argument("--recipe", help="the recipe, where the run does not say by which it was made")
    parser.set_defaults(work=_export)


def _export(parsed: argparse.Namespace, flags: list[str]) -> None:
    from hf_accum.cli.exporting.session import check_packages
    from hf_accum.files import check_vacant

    if parsed.dataset is not None and not parsed.int8:
        raise UserError(f"--dataset {parsed.dataset}: is for --int8, to show what that costs; leave it out")
    check_one_process("export")
    folder, output = (Path(path).expanduser().resolve() for path in (parsed.run, parsed.output))
    check_vacant(output)
    check_packages()
    module, config = recipe_of(folder, parsed.recipe, flags, parsed.own)
    on = (parsed.dataset, parsed.split)
    run(lambda: export_run(module, folder, config, output, int8=parsed.int8, on=on), config)


def export_run(
    module: "ModuleType",
    folder: Path,
    config: "RecipeConfig",
    output: Path,
    *,
    int8: bool = False,
    on: tuple[str | None, str] = (None, "train"),
) -> None:
    """Write the model of the run in `folder` as ONNX into `output`, a new or empty folder: whole, or not at all.

    `on` is the dataset, and its split, on which it is shown what `int8` costs; None: what the run held out.

    Raises:
        UserError: as `exportable`, `open_evaluation` and `write_export` do.
    """
    from hf_accum.cli.exporting.folder import exportable, exported_flags, write_export

    usage = exportable(folder, config)
    config = exported_flags(config)
    if not int8:
        from dataclasses import replace

        from hf_accum.cli.prediction import open_predictions

        of_model = replace(config, micro_batch_size=1)  # no row is computed: nothing has to be found to fit
        with open_predictions(module, folder, of_model, to_compute=False) as opened:
            write_export(opened.rows.model, opened.task, usage, folder, output)
        return
    from hf_accum.cli.evaluation import open_evaluation
    from hf_accum.models.lora import fold_adapters

    with open_evaluation(module, folder, config, *on) as opened:
        write_export(
            fold_adapters(opened.model),
            opened.task,
            usage,
            folder,
            output,
            figures=lambda model: opened.evaluation.figures(model, opened.cutter),
        )
