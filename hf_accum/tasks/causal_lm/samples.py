"""What a language model writes on held-out examples, before a training and after it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hf_accum.data.source import Row, good_rows
from hf_accum.data.split import SplitData
from hf_accum.device.out_of_memory import Failure, classify, release
from hf_accum.distributed.ranks import OneRank
from hf_accum.distributed.telling import told_if_long
from hf_accum.errors import first_line, shortened
from hf_accum.files import keep_lines
from hf_accum.tasks.causal_lm.data import Passage, passage_of
from hf_accum.tasks.causal_lm.generation import go_on

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_PROMPT = 32  # tokens of a text that the model is to go on with
_LONGEST_SHOWN = 500  # characters


@dataclass(frozen=True)
class Sample:
    """What a model was given, what it wrote, and what the data has there."""

    prompt: str
    generated: str
    reference: str


def first_held_out(data: SplitData, number: int, on_bad_row: Any) -> list[Passage]:
    """The first held-out passages of a dataset."""

    def prepare(row: Row) -> Passage | None:
        return passage_of(row) if data.is_held_out(row, of_eval_source=True) else None

    source, bad_rows = data.eval_source, Counter[str]()
    passages = (
        passage
        for shard in range(source.num_shards)
        for _, passage in good_rows(source, shard, 0, prepare, on_bad_row, bad_rows)
    )
    return list(islice(passages, number))


def generate(model: nn.Module, tokenizer: "PreTrainedTokenizerBase", passage: Passage, num_new_tokens: int) -> Sample:
    """The most likely token, again and again, up to the end of a text.

    The model is given what stands before the first answer; of a text without any, its start. It writes no more than
    it has positions for: a passage, and so a prompt, which is shorter, leaves one at least. Its modes and the
    generators of random numbers are as before afterwards. `model` is the one that transformers or peft made; it may
    have been told to stop before its output layer.
    """
    tokens, start, end = passage.tokens, *_places(passage, num_new_tokens)
    (written,) = go_on(model, tokenizer, [tokens[:start]], num_new_tokens)
    return Sample(
        str(tokenizer.decode(tokens[:start])),
        written.text,
        str(tokenizer.decode(tokens[start:end], skip_special_tokens=True)),
    )


def _places(passage: Passage, num_new_tokens: int) -> tuple[int, int]:
    """Where the prompt of a passage ends, and what is to follow it."""
    start = int(np.flatnonzero(passage.is_target)[0])
    if passage.is_text:
        start = max(start, min(len(passage.tokens) // 2, _LONGEST_PROMPT))
        return start, min(start + num_new_tokens, len(passage.tokens))
    others = np.flatnonzero(~passage.is_target[start:])
    return start, start + int(others[0]) if len(others) else len(passage.tokens)


def samples_of(
    data: SplitData,
    tokenizer: "PreTrainedTokenizerBase",
    number: int,
    num_new_tokens: int,
    on_bad_row: Any,
    run: Any,
) -> "Samples":
    """Of the first held-out passages of a dataset, on rank 0; on the other ranks, and of a number of 0, of none.

    `run` has the `ranks` and the `folder`.
    """
    passages = first_held_out(data, number, on_bad_row) if run.ranks.index == 0 and number else []
    return Samples(passages, tokenizer, num_new_tokens, run.folder)


@dataclass(frozen=True)
class Samples:
    """Generates samples on one rank, tells of them, and keeps them in a run's folder, in `samples.jsonl`."""

    passages: list[Passage]
    tokenizer: "PreTrainedTokenizerBase"
    num_new_tokens: int
    folder: Path
    say: Callable[[str], None] = print

    def show(self, model: nn.Module, when: str) -> None:
        """Those of the model as it is `when` (before or after the training). Talks with no other rank.

        One for which memory does not suffice is left out, which is said: it is no reason to end a run.
        """
        if not self.passages:
            return
        samples: list[tuple[int, Sample]] = []
        for number, passage in enumerate(self.passages, 1):
            try:
                with told_if_long(OneRank(), f"sample {number} of {len(self.passages)} is being written"):
                    sample = generate(model, self.tokenizer, passage, self.num_new_tokens)
            except Exception as error:
                if classify(error) is Failure.OTHER:
                    raise
                self.say(f"sample {number}, {when} the training: left out, out of memory ({first_line(error)})")
                release(error, next(model.parameters()).device)
                continue
            samples.append((number, sample))
            self.say(f"sample {number}, {when} the training")
            for name, text in asdict(sample).items():
                self.say(f"  {name + ':':10} {_on_one_line(text)}")
        # A run that goes on tells of itself again.
        told = [{"when": when, "number": number, **asdict(sample)} for number, sample in samples]
        keep_lines(self.folder / "samples.jsonl", lambda line: line["when"] != when, told)


def _on_one_line(text: str) -> str:
    return shortened(" ".join(text.split()), _LONGEST_SHOWN)
