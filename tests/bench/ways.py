"""Other ways to compute the same micro-batches: do they pay? torch.compile, bfloat16 on a CPU, no padding at all.

MiniLM with the recipe's LoRA, train mode, dropout as in its config; windows of 64 real synopses, cut by this
project's costs as they are learned here. Forward and backward of all micro-batches of the windows, in turns,
after a first pass each, whose time is shown by itself (it compiles); medians.

- eager: as the recipe runs it;
- compile: `torch.compile(model, dynamic=True)`, which needs a C++ compiler;
- bf16: autocast to bfloat16, as `--mixed_precision bf16` of accelerate has it;
- padding-free: the texts of a micro-batch one after the other in a single row, attention kept within each by a mask.

    python tests/bench/ways.py --threads 2
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import (
    argument_parser,
    encoded,
    evenly_spaced,
    learned_cutter,
    load_minilm,
    load_recipe_data,
    minilm_task,
    print_header,
    print_table,
    use_threads,
)
from torch import Tensor

from hf_accum.accumulation.example import Example
from hf_accum.config.lora import LoraConfig

WINDOW = 64
Piece = tuple[Example, ...]
Run = Callable[[Piece], None]


class Ways:
    """The same micro-batches, computed in several ways, each with a model of its own from the same weights."""

    def __init__(self, num_windows: int, most: int) -> None:
        data = load_recipe_data()
        self.task = minilm_task(data.labels, data.text_column, max_length=512)
        self.examples = encoded(self.task, evenly_spaced(data.train, num_windows * WINDOW))
        windows = [self.examples[start : start + WINDOW] for start in range(0, len(self.examples), WINDOW)]
        cutter = learned_cutter(self.task, self._model(), windows, most)
        self.pieces = [piece for window in windows for piece in cutter.cut(window)]

    def _model(self) -> Any:
        return load_minilm(self.task, LoraConfig()).train()

    def _forward_backward(self, model: Any, piece: Piece) -> None:
        (self.task.summed_loss(model, self.task.collate(piece)) / WINDOW).backward()

    def eager(self) -> Run:
        """As the recipe runs it."""
        model = self._model()
        return lambda piece: self._forward_backward(model, piece)

    def compiled(self) -> Run:
        """Graphs that serve any length and number of examples."""
        model = torch.compile(self._model(), dynamic=True)
        return lambda piece: self._forward_backward(model, piece)

    def bf16(self) -> Run:
        """Matrix products in half precision."""
        model = self._model()

        def run(piece: Piece) -> None:
            batch = self.task.collate(piece)
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.task.summed_loss(model, batch) / WINDOW
            loss.backward()

        return run

    def padding_free(self) -> Run:
        """One row for all texts of a micro-batch."""
        model = self._model()

        def run(piece: Piece) -> None:
            _, labels = self.task.collate(piece)
            (self.task.objective(self._packed_logits(model, piece), labels) / WINDOW).backward()

        return run

    def _packed_logits(self, model: Any, piece: Piece) -> Tensor:
        base = model.base_model.model
        lengths = torch.tensor([example.length for example in piece])
        owner = torch.repeat_interleave(torch.arange(len(piece)), lengths)
        starts = lengths.cumsum(0) - lengths
        positions = torch.arange(len(owner)) - starts[owner]
        ids = torch.cat([torch.from_numpy(example.features["input_ids"]) for example in piece]).long()
        mask = (owner[:, None] == owner[None, :])[None, None]
        hidden = base.bert(input_ids=ids[None], position_ids=positions[None], attention_mask=mask).last_hidden_state
        first = hidden[:, starts].transpose(0, 1)  # the pooler reads the first token of each text
        return base.classifier(base.dropout(base.bert.pooler(first)))

    def check_packed_logits(self) -> float:
        """The largest difference that packing makes to a logit, without dropout."""
        model = self._model().eval()
        with torch.no_grad():
            differences = [
                (self._packed_logits(model, piece) - model(**self.task.collate(piece)[0]).logits).abs().max()
                for piece in self.pieces
            ]
        return float(max(differences))


def seconds_of(run: Run, pieces: Sequence[Piece]) -> float:
    """Of one pass over all micro-batches."""
    started = time.perf_counter()
    for piece in pieces:
        run(piece)
    return time.perf_counter() - started


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_windows", type=int, default=2, help="of 64 (default: %(default)s)")
    parser.add_argument("--num_rounds", type=int, default=5, help="of each way (default: %(default)s)")
    parser.add_argument("--most", type=int, default=64, help="examples that fit (default: %(default)s)")
    parser.add_argument("--without", nargs="*", default=[], help="ways to leave out")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    ways = Ways(arguments.num_windows, arguments.most)
    real = sum(example.length for example in ways.examples)
    padded = sum(len(piece) * max(e.length for e in piece) for piece in ways.pieces)
    print(f"{len(ways.examples)} texts in {len(ways.pieces)} micro-batches, {padded / real:.3f} padded / real")
    print(f"largest difference of a logit without padding: {ways.check_packed_logits():.1e}\n")
    runs = {
        "eager": ways.eager(),
        "compile": ways.compiled(),
        "bf16": ways.bf16(),
        "padding-free": ways.padding_free(),
    }
    runs = {name: run for name, run in runs.items() if name not in arguments.without}
    first = {name: seconds_of(run, ways.pieces) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.num_rounds):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, ways.pieces))
    eager = statistics.median(seconds["eager"])
    rows = [
        (
            name,
            f"{first[name]:.2f}",
            f"{statistics.median(s):.2f}",
            f"{min(s):.2f}",
            f"{max(s):.2f}",
            f"{eager / statistics.median(s):.2f}",
        )
        for name, s in seconds.items()
    ]
    print_table(("way", "first pass s", "median s", "least s", "greatest s", "times as fast as eager"), rows)


if __name__ == "__main__":
    main()
