"""A run's result on the hub: what of it is uploaded, looked at before, and written whole or not at all."""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, get_token, metadata_load
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_accum.byte_sizes import format_bytes
from hf_accum.errors import UserError, first_line
from hf_accum.files import check_vacant, fill_folder_atomically, why_not_written
from hf_accum.run.card import card_of
from hf_accum.run.result import check_through

CARD = "README.md"
_UPLOADED = (
    CARD,
    *("*.safetensors", "*.safetensors.index.json"),
    *("config.json", "adapter_config.json", "generation_config.json", "usage.json"),
    *("calibration.json", "classifier.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.*", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Weights, what loads them, the card. Nothing else that is in a result's folder, and nothing that is beside it."""
_HTTP_ERRORS: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
"""Of the client below, which is another one (httpx, httpx2) by the version of huggingface_hub."""
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Published:
    """What a result's folder has of files that are uploaded, and what of the run stays here."""

    files: tuple[str, ...]
    left_out: tuple[str, ...]


def write_published(run: Path, folder: Path, licence: str | None = None) -> Published:
    """Write what is uploaded of a run into a folder, which is new or empty, and look at its card.

    The card's metadata are read by huggingface_hub's own classes, without the hub, which looks at them again when
    they are uploaded.

    Raises:
        UserError: if it is no run, one that is not through, or the folder or the card cannot be.
    """
    result = check_through(run)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(f"`licence` {licence}: has to be an identifier of the hub, as apache-2.0 or cc-by-nc-4.0")
    check_vacant(folder)
    there = sorted(path.name for path in result.iterdir())
    files = [name for name in there if any(fnmatch(name, pattern) for pattern in _UPLOADED)]
    beside = sorted(path.name for path in run.iterdir() if path != result and not path.name.startswith("."))
    left_out = [*(f"{result.name}/{name}" for name in there if name not in files), *beside]
    card = _card(run, result, licence)

    def fill(partial: Path) -> None:
        for name in files:
            shutil.copyfile(result / name, partial / name)
        card.save(partial / CARD)
        _check_card(partial / CARD)

    try:
        fill_folder_atomically(folder.absolute(), fill)
    except OSError as error:
        num_bytes = sum((result / name).stat().st_size for name in files)
        raise UserError(
            f"{folder}: could not be written ({why_not_written(folder, error)}); it takes about "
            f"{format_bytes(num_bytes)}, and nothing is left of it"
        ) from error
    return Published(tuple(sorted({*files, CARD})), tuple(left_out))


def check_repo(repo: str) -> None:
    """Look whether this can be a repository of the hub.

    Raises:
        UserError: if it cannot, or has no owner.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: has to be the id of a repository, as name/model ({first_line(error)})") from error
    if "/" not in repo:
        raise UserError(f"{repo}: has to be the id of a repository with its owner, as name/model")


def publish(
    run: Path, repo: str, *, private: bool = False, licence: str | None = None, revision: str | None = None
) -> tuple[Published, str]:
    """Upload a run's result, in one commit; returns what was uploaded, and the commit's address.

    Raises:
        UserError: as `check_repo` and `write_published` do; if there is no token, or the hub cannot be reached or
            refuses.
    """
    check_repo(repo)
    check_through(run)
    if get_token() is None:
        raise UserError("the hub needs a token that may write: `hf auth login` keeps one, or HF_TOKEN holds it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "result"
        published = write_published(run, folder, licence)
        return published, _upload(folder, repo, private=private, revision=revision)


def _upload(folder: Path, repo: str, *, private: bool, revision: str | None) -> str:
    api, is_made = HfApi(), False
    try:
        # None leaves it to the hub, which has a default for each owner.
        api.create_repo(repo, private=True if private else None, exist_ok=True)
        is_made = True
        if private and not api.model_info(repo).private:
            raise UserError(f"{repo}: is there already, and public: take another name, or make it private first")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done: Any = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message="Upload a fine-tuned model"
        )
    except (*_HTTP_ERRORS, OfflineModeIsEnabled, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        state = "the repository is there, and nothing was uploaded" if is_made else "nothing was uploaded"
        raise UserError(f"{repo}: the hub could not be reached, or refused ({first_line(error)}); {state}") from error
    return str(done.commit_url)


def _card(run: Path, result: Path, licence: str | None) -> ModelCard:
    card = ModelCard((result / CARD).read_text(encoding="utf-8") if (result / CARD).is_file() else card_of(run))
    base = card.data.to_dict().get("base_model")
    config = result / "adapter_config.json"
    named = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    for path in (base, (named or {}).get("base_model_name_or_path")):
        if isinstance(path, str) and os.path.isabs(path):
            raise UserError(
                f"{run}: was made by an earlier version, and says where the model below the adapter lies on this "
                f"machine ({path}): make it anew, or write the model's id there, in {config.name} and in {CARD}"
            )
    if licence is not None:
        card.data["license"] = licence
    return card


def _check_card(file: Path) -> None:
    """As far as huggingface_hub can without the hub: YAML, and figures that are some."""
    try:
        metadata = metadata_load(file)
        ModelCard.load(file)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the card's metadata cannot be read ({first_line(error)})") from error
    if not metadata:
        raise UserError("the card has no metadata")
