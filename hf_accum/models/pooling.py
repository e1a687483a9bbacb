"""How an encoder was made to pool its states into the vector of a text."""

import json
from pathlib import Path
from typing import Any, Literal

from hf_accum.config.trust import Trust
from hf_accum.errors import UserError, first_line
from hf_accum.models.pooled_classifier import saved_pooling
from hf_accum.models.trust import local

Pooling = Literal["mean", "cls", "last"]

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_BY_NAME: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_LAYERS = ("Transformer", "Pooling", "Normalize")  # the last changes nothing: cosines are compared


def own_pooling(name: str, trust: Trust) -> Pooling | None:
    """What a model's files in the layout of sentence-transformers say; None without such files.

    Raises:
        UserError: for another pooling, several at once, or layers beyond it: they would be left out.
    """
    layers = _read(name, "modules.json", trust)
    if layers is None:
        return None
    way_out = "`pooling mean` (or cls, or last) trains the encoder without them"
    kinds = [(str(layer["type"]).rpartition(".")[2], layer.get("path", "")) for layer in layers]
    others = [kind for kind, _ in kinds if kind not in _LAYERS]
    if others:
        raise UserError(f"`model` {name}: has layers that this recipe does not know ({', '.join(others)}): {way_out}")
    folder = next((path for kind, path in kinds if kind == "Pooling"), None)
    said = None if folder is None else _read(name, f"{folder}/config.json", trust)
    if said is None:
        return None
    named = said.get("pooling_mode")
    found = (
        [named] if isinstance(named, str) else [flag for flag, on in said.items() if on is True and "_mode_" in flag]
    )
    known = _BY_NAME if isinstance(named, str) else _POOLINGS
    if len(found) != 1 or found[0] not in known:
        raise UserError(
            f"`model` {name}: was made with the pooling {' and '.join(map(str, found)) or 'of nothing'}, and here "
            "there are mean, cls and last: give one of them by `pooling`"
        )
    return known[found[0]]


def classifier_pooling(name: str, trust: Trust) -> Literal["cls", "mean", "max"]:
    """What of the states a classifier of texts sees, by a model's files.

    Of one that this project trained (a whole one) what it was trained with, mean for encoders of sentences that were
    made so, else cls: the head of the model's own kind.

    Raises:
        UserError: as `own_pooling` does.
    """
    saved = saved_pooling(Path(name))
    if saved in ("mean", "max"):
        return saved
    return "mean" if own_pooling(name, trust) == "mean" else "cls"


def _read(name: str, file: str, trust: Trust) -> Any:
    """A JSON file of a model, None where there is none.

    Raises:
        UserError: if it is no JSON.
    """
    from transformers.utils import cached_file

    path = cached_file(
        local(name),
        file,
        revision=trust.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"`model` {name}: its {file} cannot be read ({first_line(error)})") from error
