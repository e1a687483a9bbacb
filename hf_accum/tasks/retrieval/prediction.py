"""Vectors of texts, by which they are looked up or found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example
from hf_accum.data.formats.rows import BadRow
from hf_accum.errors import shortened
from hf_accum.tasks.prediction import Told
from hf_accum.tasks.retrieval.task import TextRetrieval
from hf_accum.tasks.tokenization import text_of, tokenize


@dataclass(frozen=True)
class EmbeddingPredictor:
    """The vector of the query, of the document, or of both, whichever a row has: `COLUMN_embedding`.

    Each has length 1: the product of two is their cosine.
    """

    task: TextRetrieval
    most_rows: int = 4_096
    writes: bool = False
    image_column: None = None

    @property
    def _columns(self) -> tuple[str, str]:
        return self.task.query_column, self.task.document_column

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns that `told` may add."""
        return tuple(f"{column}_embedding" for column in self._columns)

    def prepare(self, row: Mapping[str, Any]) -> dict[str, str]:
        """A row's texts by their columns.

        Raises:
            BadRow: if there is none, or one that cannot be used.
        """
        texts = {column: text_of(row, column) for column in self._columns if column in row}
        if not texts:
            has = shortened(", ".join(map(str, row)), 300) or "none"
            query, document = self._columns
            either = f"{query!r} (`query_column`) or {document!r} (`document_column`)"
            raise BadRow("", f"has to have a column {either}; the row has {has}")
        return texts

    def encode(self, rows: Sequence[tuple[str, dict[str, str]]]) -> list[Example]:
        """Tokenise the texts of rows: each is a part."""
        assert self.task.tokenizer is not None
        texts = [text for _, of_row in rows for text in of_row.values()]
        tokens = iter(tokenize(self.task.tokenizer, texts, self.task.max_length))
        examples = []
        for row_id, of_row in rows:
            parts, num_cut = [], 0
            for column in of_row:
                ids, cut = next(tokens)
                parts.append(Example(f"{row_id}:{column}", len(ids), 1.0, {"input_ids": ids, "column": column}))
                num_cut += cut
            length = sum(part.length for part in parts)
            examples.append(Example(row_id, length, 1.0, {}, num_cut, tuple(parts)))
        return examples

    def forward(self, model: nn.Module, examples: Sequence[Example], length: int) -> list[Tensor]:
        """The vectors of texts."""
        inputs = to_device(self.task.collate(examples, length), next(model.parameters()).device)
        return list(F.normalize(self.task.predict(model, (inputs, None)), dim=-1).cpu())

    def told(self, example: Example, outputs: Sequence[Tensor]) -> Told:
        """The vectors by the columns of their texts."""
        columns = [part.features["column"] for part in example.parts]
        return Told({f"{column}_embedding": v.tolist() for column, v in zip(columns, outputs, strict=True)})
