"""`hf-accum publish`: a run's result with its card on the hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.one_process import check_one_process
from hf_accum.cli.unknown_flags import refuse

if TYPE_CHECKING:
    from hf_accum.run.publish import Published

_PUBLISH = """Upload the result of a run that is through, with its model card, to a repository of the hub: weights in
safetensors, what loads them, and the card. Checkpoints, metrics, predictions and errors, which may hold texts of
patients, are never uploaded."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`."""
    parser = commands.add_parser(
        "publish", help="a run's result on the hub", description=_PUBLISH, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run that is through")
    parser.add_argument("repo", metavar="REPO", help="a repository of the hub, name/model; it is made if need be")
    parser.add_argument("--private", action="store_true", help="only its owner sees it")
    parser.add_argument("--dry_run", metavar="FOLDER", help="write into a folder what would be uploaded, and no more")
    parser.add_argument("--licence", metavar="ID", help="of the result, for the card: apache-2.0")
    parser.add_argument("--revision", metavar="BRANCH", help="upload to this branch (default: main)")
    parser.set_defaults(work=_publish)


def _publish(parsed: argparse.Namespace, flags: list[str]) -> None:
    refuse(flags, "is no flag of hf-accum publish", parsed.own)
    check_one_process("publish")
    from hf_accum.run.publish import check_repo, publish, write_published

    run = Path(parsed.run)
    if parsed.dry_run is not None:
        check_repo(parsed.repo)
        published = write_published(run, Path(parsed.dry_run), parsed.licence)
        _say(published, f"written to {parsed.dry_run}, not uploaded")
        print("huggingface_hub can read the card's metadata; the hub checks them once more when they are uploaded")
        return
    how = {"licence": parsed.licence, "revision": parsed.revision}
    published, address = publish(run, parsed.repo, private=parsed.private, **how)
    _say(published, "uploaded")
    print(address)


def _say(published: "Published", done: str) -> None:
    print(f"{done}: {', '.join(published.files)}")
    print(f"stays here: {', '.join(published.left_out)}")
