"""Long texts as overlapping windows, each of which goes through the model; their logits are pooled to the text's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example, Lengths, inputs_of
from hf_accum.accumulation.part_cache import LinearLoss, pool_parts
from hf_accum.config.long_texts import TextWindows
from hf_accum.errors import UserError
from hf_accum.evaluation.judge import Predicted
from hf_accum.models.usage import Usage
from hf_accum.tasks.preview import Line, decoded
from hf_accum.tasks.special_tokens import Frame
from hf_accum.tasks.text_classification.task import Prepared, TextClassification
from hf_accum.tasks.tokenization import tokenize

_MOST_SHOWN = 3  # windows of a text


@dataclass(frozen=True, kw_only=True)
class LongTextClassification(TextClassification):
    """The same of texts of any length: one example and one weight, however many windows it has.

    Raises:
        UserError: if the overlap leaves no token for the next window.
    """

    windows: TextWindows
    lengths: Lengths = field(default=Lengths(cut_by="max_windows"), init=False)
    num_parts: int = field(default=2, init=False)
    """What the tuner tries at most, a text; micro-batches of more windows would hardly be faster."""

    def __post_init__(self) -> None:
        assert self.pair_column is None  # the flags refuse it
        if self.tokenizer is not None:
            num_special = Frame.of(self.tokenizer).size
            if self.windows.overlap >= self.max_length - num_special:
                raise UserError(
                    f"`window_overlap` {self.windows.overlap}: has to be below {self.max_length - num_special}: a "
                    f"window has {self.max_length} tokens (`max_length`), {num_special} of them special ones"
                )

    def usage(self) -> Usage:
        """How the model is used: on windows."""
        return replace(super().usage(), windows=asdict(self.windows))

    def encode(self, rows: Sequence[tuple[str, Prepared]]) -> list[Example]:
        """Tokenise (id, (text, label)) rows. A text that needs one window is an example without parts."""
        assert self.tokenizer is not None
        frame = Frame.of(self.tokenizer)
        size = self.max_length - frame.size
        texts = [cast(str, text) for _, (text, _) in rows]  # pairs are not read in windows
        found = tokenize(self.tokenizer, texts, None, special=False)
        examples = []
        for (example_id, (_, label)), (tokens, _) in zip(rows, found, strict=True):
            starts = self.windows.starts(len(tokens), frame.size)
            ids = [frame.around(tokens[start : start + size]) for start in starts]
            weight = self.objective.weight(self._tensor([label]))
            parts = tuple(
                Example(f"{example_id}:{number}", len(window), weight, {"input_ids": window, "label": label})
                for number, window in enumerate(ids)
            )
            num_cut = max(0, len(tokens) - starts[-1] - size)
            whole = Example(example_id, sum(map(len, ids)), weight, {"label": label}, num_cut, parts)
            examples.append(whole if len(ids) > 1 else replace(whole, features=next(iter(parts)).features, parts=()))
        return examples

    def preview(self, example: Example) -> list[Line]:
        """The tokens of the first windows as the model sees them, and the label by name."""
        windows = inputs_of([example])
        lines = [
            (f"window {number}", decoded(self.tokenizer, window.features["input_ids"]))
            for number, window in enumerate(windows[:_MOST_SHOWN], start=1)
        ]
        if len(windows) > _MOST_SHOWN:
            lines.append(("windows", f"{len(windows) - _MOST_SHOWN:,} more are not shown"))
        return [*lines, ("label", self._label_by_name(example.features["label"]))]

    def outputs(self, model: nn.Module, batch: tuple[Mapping[str, Tensor], Any]) -> Tensor:
        """The logits of windows, (num_windows, num_labels), for attention with a score at the end of each row."""
        return model(**batch[0]).logits

    def pooled_loss(self, examples: Sequence[Example], outputs: Tensor) -> Tensor:
        """The loss of whole texts, summed, from the outputs of all their windows, one text after the other."""
        labels = self._tensor([example.features["label"] for example in examples])
        return self.objective(self._pooled(examples, outputs), labels.to(outputs.device))

    def summed_loss(self, model: nn.Module, batch: tuple[Mapping[str, Tensor], Tensor | LinearLoss]) -> Tensor:
        """The loss of texts of one window each, by their labels, or a linear one of windows, which pooled them."""
        outputs, target = self.outputs(model, batch), batch[1]
        if isinstance(target, LinearLoss):
            return target(outputs)
        return self.objective(pool_parts(outputs, [1] * len(outputs), self.windows.pooling), target)

    def predict(self, model: nn.Module, batch: tuple[Mapping[str, Tensor], Tensor]) -> Predicted:
        """The outputs of windows, of which `whole` makes predictions of texts; they have no loss."""
        outputs = self.outputs(model, batch)
        return Predicted(outputs.new_zeros(()), outputs, batch[1])

    def whole(self, examples: Sequence[Example], windows: Mapping[str, Tensor]) -> Predicted:
        """The predictions of texts by the outputs of their windows, by id."""
        outputs = torch.stack([windows[window.id] for window in inputs_of(examples)])
        labels = self._tensor([example.features["label"] for example in examples]).to(outputs.device)
        return self.judged(self._pooled(examples, outputs), labels)

    def _pooled(self, examples: Sequence[Example], outputs: Tensor) -> Tensor:
        return pool_parts(outputs, [len(example.parts) or 1 for example in examples], self.windows.pooling)
