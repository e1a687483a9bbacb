"""Entities of texts, by their characters, for rows without tags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example
from hf_accum.data.formats.rows import BadRow
from hf_accum.errors import shortened
from hf_accum.tasks.prediction import Told
from hf_accum.tasks.token_classification.data import Cutting, Part, part_of
from hf_accum.tasks.token_classification.found import FoundPart, entities_in, joined
from hf_accum.tasks.token_classification.reading import SpanColumns, TagColumns
from hf_accum.tasks.token_classification.tags import OUTSIDE
from hf_accum.tasks.token_classification.task import EntityTagging

_NONE = "entities, or tags, that nobody looks at"


@dataclass(frozen=True)
class EntityPredictor:
    """The entities of a text as `prediction`: start, end (the character behind it), label, text. Rows have a text, or
    words; of words (with spaces between them where they are one text) also a tag for each, as `prediction_tags`.
    """

    task: EntityTagging
    words_column: str
    text_column: str
    types: tuple[str, ...]
    most_rows: int = 4_096
    writes: bool = False
    image_column: None = None
    adds: tuple[str, ...] = ("prediction", "prediction_tags")

    @cached_property
    def _cutting(self) -> Cutting:
        tokenizer = self.task.tokenizer
        assert tokenizer is not None
        most = self.task.max_length - tokenizer.num_special_tokens_to_add()
        nested = "each_label" if self.task.types else "longest"
        return Cutting(tokenizer, most, self.task.overlap, nested, self.types)

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Part], bool]:
        """The parts of a row's text, and whether it has words.

        Raises:
            BadRow: if it has neither, or they cannot be used.
        """
        has_words = self.words_column in row
        if not has_words and self.text_column not in row:
            has = shortened(", ".join(map(str, row)), 300) or "none"
            either = f"{self.words_column!r} (`words_column`) or {self.text_column!r} (`text_column`)"
            raise BadRow("", f"has to have a column {either}; the row has {has}")
        if has_words:
            reader = TagColumns(self.words_column, _NONE)
            words = reader.words_of(row)
            rows = self._cutting.parts_of({self.words_column: words, _NONE: [OUTSIDE] * len(words)}, reader)
        else:
            reader = SpanColumns(self.text_column, _NONE)
            rows = self._cutting.parts_of({self.text_column: row[self.text_column], _NONE: []}, reader)
        return [part_of(part) for part in rows], has_words

    def encode(self, rows: Sequence[tuple[str, tuple[list[Part], bool]]]) -> list[Example]:
        """Tokenise the parts of texts."""
        named = [(f"{row_id}:{place}", part) for row_id, (parts, _) in rows for place, part in enumerate(parts)]
        encoded = iter(self.task.encode(named))
        examples = []
        for row_id, (parts, has_words) in rows:
            own = tuple(next(encoded) for _ in parts)
            total = sum(part.length for part in own)
            num_cut = sum(part.num_truncated_tokens for part in own)
            whole = Example(row_id, total, sum(part.weight for part in own), {"has_words": has_words}, num_cut, own)
            examples.append(whole)
        return examples

    def forward(self, model: nn.Module, examples: Sequence[Example], length: int) -> list[FoundPart]:
        """What is found in parts of texts."""
        batch = to_device(self.task.collate(examples, length), next(model.parameters()).device)
        rows = self.task.predict(model, batch)[1].cpu().numpy()
        return [self.task.found(example, row) for example, row in zip(examples, rows, strict=True)]

    def told(self, example: Example, outputs: Sequence[FoundPart]) -> Told:
        """The entities by characters of the whole text, in the order of their places."""
        text = "".join(part.text for part in outputs)
        layers = joined([part.predicted for part in outputs])
        columns: dict[str, Any] = {
            "prediction": entities_in(text, [p for part in outputs for p in part.places], layers)
        }
        if example.features["has_words"]:
            tags = [list(tags) for tags in layers]
            columns["prediction_tags"] = dict(zip(self.task.types, tags, strict=True)) if self.task.types else tags[0]
        return Told(columns)
