"""The language model's loss in chunks against the model's own: peak bytes, seconds, gradients.

A Llama with random weights (2 layers of 256, output layer not tied) at several vocabularies; one micro-batch of 8
texts of 128 tokens, every token predicted; float32, full fine-tuning. Peak bytes are those of live tensors in a
forward and backward, the weights and a gradient for each included; seconds the median of `--rounds`, in turns.
Gradients: the largest difference, by the largest element of the model's own.

    python tests/bench/chunked_loss.py
"""

import statistics
import time
from typing import Any

import torch
from common import argument_parser, print_header, print_table, use_threads
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_accum.device.live_bytes import LiveBytes, tensors_of
from hf_accum.tasks.language_modeling.chunked_loss import (
    ChunkedCrossEntropy,
    Targets,
    stop_before_output_layer,
    with_output_layer,
)

MIB = 2**20
NUM_EXAMPLES, LENGTH = 8, 128


def measure(vocabulary: int, chunk_sizes: list[int], rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table for one vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        tie_word_embeddings=False,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(vocabulary, (NUM_EXAMPLES, LENGTH))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    places = torch.arange(NUM_EXAMPLES * LENGTH).view(NUM_EXAMPLES, LENGTH)[:, :-1].flatten()
    targets = Targets(places, ids[:, 1:].flatten())
    layer = stop_before_output_layer(model)
    gradients: dict[str, dict[str, torch.Tensor]] = {}

    def own() -> None:
        with with_output_layer(model):
            # Its own normalisation, by which the sum over all targets is divided.
            model(**inputs, labels=ids, num_items_in_batch=torch.tensor(len(places))).loss.backward()

    def chunked(size: int) -> None:
        loss = ChunkedCrossEntropy(size)(layer, model(**inputs).logits, targets)
        (loss / len(places)).backward()

    ways = {"the model's own": own} | {f"chunks of {size}": lambda size=size: chunked(size) for size in chunk_sizes}
    peaks: dict[str, int] = {}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for name, run in ways.items():
        model.zero_grad(set_to_none=False)
        with LiveBytes(held=[*tensors_of(model), *(p.grad for p in model.parameters())]) as live:
            run()
        peaks[name] = live.peak_bytes
        gradients[name] = {n: p.grad.clone() for n, p in model.named_parameters()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            model.zero_grad(set_to_none=False)
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    fixed = 2 * sum(p.nbytes for p in model.parameters())
    expected = gradients["the model's own"]
    largest = max(float(g.abs().max()) for g in expected.values())
    own_seconds = statistics.median(seconds["the model's own"])
    return [
        (
            f"{vocabulary:,}",
            name,
            f"{peaks[name] / MIB:,.1f}",
            f"{(peaks[name] - fixed) / MIB:,.1f}",
            f"{statistics.median(of_way):.3f}",
            f"{statistics.median(of_way) / own_seconds:.2f}",
            f"{max(float((gradients[name][n] - g).abs().max()) for n, g in expected.items()) / largest:.1e}",
        )
        for name, of_way in seconds.items()
    ]


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--vocabularies", default="50000,150000", help="with commas (default: %(default)s)")
    parser.add_argument("--chunk_sizes", default="64,256,512", help="with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    chunk_sizes = list(map(int, arguments.chunk_sizes.split(",")))
    rows = [
        row
        for vocabulary in map(int, arguments.vocabularies.split(","))
        for row in measure(vocabulary, chunk_sizes, arguments.rounds)
    ]
    columns = (
        "vocabulary",
        "loss",
        "peak MiB",
        "beside weights and gradients",
        "seconds",
        "/ own",
        "gradients differ by",
    )
    print_table(columns, rows)


if __name__ == "__main__":
    main()
