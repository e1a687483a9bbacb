"""How fast rows are predicted: `hf-accum predict`, and transformers' pipeline at its best batch size.

A short run of the classification recipe on real clinical synopses (MiniLM with LoRA, [CLS] pooling, so that plain
transformers and peft load the result). Then its predictions for texts in a file of JSON lines, written to another:
`synopses` of 3 to 512 tokens, `icd`, the diagnoses that the recipe trains on by default, of 4 to 33, or `both`, half
of each, shuffled. This project's command from opening the file on; and the pipeline over a generator of the same
file, written as JSON lines too, in batches of 1 to 32, with the adapter beside the weights, as peft loads it, and
merged into them. Models are loaded before the clock starts. Each batch size stands between two of hf_accum's runs,
whose mean it is compared with.

    python tests/bench/predict.py --threads 2
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, evenly_spaced, load_recipe_data, print_header, print_table, use_threads
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

from hf_accum.cli.prediction import facts_of, open_predictions, open_rows_of
from hf_accum.cli.recipes import recipe_of
from hf_accum.run.row_output import RowOutput
from hf_accum.run.row_predictions import Asked, predict_rows
from hf_accum.run.signals import StopRequest
from recipes import clinical_classification
from recipes.clinical_classification import ClinicalClassificationConfig
from recipes.embedded.models import minilm

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def texts_of(dataset: str, number: int) -> list[str]:
    data = load_recipe_data(replace(ClinicalClassificationConfig(), dataset=dataset))
    return data.texts(evenly_spaced(data.train, number))


def texts_of_both(number: int) -> list[str]:
    texts = texts_of("embedded:icd", number // 2) + texts_of("embedded:synopses", number - number // 2)
    random.Random(0).shuffle(texts)
    return texts


TEXTS: dict[str, Callable[[int], list[str]]] = {
    "icd": partial(texts_of, "embedded:icd"),
    "synopses": partial(texts_of, "embedded:synopses"),
    "both": texts_of_both,
}


def print_lengths(encoded: list[list[int]]) -> None:
    lengths = sorted(map(len, encoded))
    shares = [lengths[int(share * (len(lengths) - 1))] for share in (0, 0.05, 0.5, 0.95, 1)]
    print("tokens: {} at least, {} of 5 %, {} of half, {} of 95 %, {} at most;".format(*shares), end=" ")
    print(f"{sum(lengths) / len(lengths):.0f} in the mean")


def make_run(folder: Path) -> Path:
    run = folder / "run"
    flags = {
        "dataset": "embedded:synopses",
        "output_dir": run,
        "max_steps": 2,
        "pooling": "cls",
        "max_eval_examples": 50,
    }
    flags |= {"micro_batch_size": 8}
    clinical_classification.main([f"--{name}={value}" for name, value in flags.items()])
    return run


def texts_in(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def load_plainly(adapter: Path) -> Any:
    """As the adapter's README says, without this project."""
    base = AutoModelForSequenceClassification.from_pretrained(minilm(), config=AutoConfig.from_pretrained(adapter))
    return PeftModel.from_pretrained(base, str(adapter)).eval()


def run_pipeline(model: Any, tokenizer: Any, file: Path, output: Path, batch_size: int) -> float:
    classify: Any = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, batch_size=batch_size, top_k=None
    )
    started = time.perf_counter()
    with output.open("w", encoding="utf-8") as written, file.open(encoding="utf-8") as lines:
        for line, found in zip(lines, classify(texts_in(file), truncation=True, max_length=512), strict=True):
            written.write(json.dumps({**json.loads(line), "prediction": found}, ensure_ascii=False) + "\n")
    return time.perf_counter() - started


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--texts", choices=TEXTS, default="both", help="which texts (default: %(default)s)")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = TEXTS[arguments.texts](arguments.rows)
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        run = make_run(folder)
        adapter = run / "adapter"
        plain = load_plainly(adapter)
        merged = load_plainly(adapter).merge_and_unload()
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        print_lengths(tokenizer(texts, truncation=True, max_length=512)["input_ids"])
        module, config = recipe_of(run)
        config = replace(config, dataset=str(file), text_column="text", eval_split=None, micro_batch_size="auto")
        with open_predictions(module, run, config) as opened:

            def ours(number: int) -> float:
                started = time.perf_counter()
                with open_rows_of(config, str(file), opened.ranks) as found:
                    output = RowOutput(folder / f"ours-{number}.jsonl", facts_of(config, run, found))
                    asked = Asked("error", 0.05)
                    predict_rows(opened.rows, found.source, output, asked, opened.ranks, StopRequest(), print)
                return time.perf_counter() - started

            ours(-1)  # warm-up: the costs are learned
            times = [ours(0)]
            table = []
            for number, batch_size in enumerate(BATCH_SIZES, 1):
                beside = run_pipeline(plain, tokenizer, file, folder / "pipeline.jsonl", batch_size)
                times.append(ours(number))
                inside = run_pipeline(merged, tokenizer, file, folder / "merged.jsonl", batch_size)
                mean = (times[-1] + times[-2]) / 2
                table.append((f"pipeline, batch {batch_size}", beside, beside / mean))
                table.append((f"pipeline, batch {batch_size}, merged", inside, inside / mean))
        speed = len(texts) * len(times) / sum(times)
        cells = [("hf-accum predict", f"{speed:.1f}", "1.00")]
        cells += [(what, f"{len(texts) / seconds:.1f}", f"{ratio:.2f}") for what, seconds, ratio in table]
        print_table(("", "rows a second", "time / hf_accum"), cells)
        told = [json.loads(line) for line in (folder / "ours-0.jsonl").read_text(encoding="utf-8").splitlines()]
        peer = [json.loads(line) for line in (folder / "pipeline.jsonl").read_text(encoding="utf-8").splitlines()]
        largest = max(
            abs(one["probabilities"][found["label"]] - found["score"])
            for one, other in zip(told, peer, strict=True)
            for found in other["prediction"]
        )
        print(f"largest difference of a probability: {largest:.1e}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
