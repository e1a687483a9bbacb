"""The same run of `recipes.driving_images` at two resolutions under one memory budget, beside simple baselines.

    python tests/bench/images.py --threads 1

On the recipe's own images and split: road signs, drawn, which are small: 17 to 22 pixels of 224. Each
resolution is trained with the same flags, seed and number of steps, by adapters on the last blocks alone, so that the
others need no backward. Before that, on the same held-out images: the most frequent class, the model before training
(its head is new), and two logistic regressions, on pixels of the image scaled to 32 x 32 and on the frozen features
of the same net at the same resolution, both fitted on as many images as the run trains on.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import argument_parser, print_header, print_table, use_threads

if TYPE_CHECKING:
    import numpy as np

    from hf_accum.tasks.vision.images import Picture

_MINUTE = 60.0
_BATCH = 8  # images per step, as the recipe has it
_LATE = r".*blocks\.1[1-5]\..*(expand|project)_conv|.*top_conv"  # earlier blocks then need no backward


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--resolutions", default="224,1024", help="with commas (default: %(default)s)")
    parser.add_argument("--memory_budget", default="1GiB", help="of tensors (default: %(default)s)")
    parser.add_argument("--max_steps", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--no_baselines", action="store_true", help="train only")
    parser.add_argument("--no_training", action="store_true", help="baselines only")
    parser.add_argument("flags", nargs="*", help="further flags of the recipe, behind --")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    print_header(arguments.threads)
    rows: list[list[str]] = []
    started = time.perf_counter()
    for resolution in map(int, arguments.resolutions.split(",")):
        if not arguments.no_baselines:
            rows += baselines(resolution, _BATCH * arguments.max_steps)
        if not arguments.no_training:
            how = {"resolution": resolution, "memory_budget": arguments.memory_budget}
            how |= {"max_steps": arguments.max_steps, "num_epochs": "null", "lora.target_modules": _LATE}
            rows.append(trained(how, arguments.flags, arguments.threads))
    print_table(("pixels", "what", "accuracy", "macro-F1", "minutes", "micro-batch", "measured MiB"), rows)
    print(f"{(time.perf_counter() - started) / _MINUTE:.1f} minutes")


def trained(how: dict[str, Any], flags: Sequence[str], threads: int) -> list[str]:
    """A run of the recipe, as a user starts it."""
    import os

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        given = [f"--{name}={value}" for name, value in how.items()]
        command = [sys.executable, "-m", "recipes.driving_images", f"--output_dir={output}", *given, *flags]
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=sys.stderr)
        minutes = (time.perf_counter() - started) / _MINUTE
        figures = json.loads((output / "evaluation.json").read_text())
        tuning = json.loads((output / "tuning.json").read_text())
    peak = max((probe["measured_bytes"] or 0 for probe in tuning["probes"] if probe["fits"]), default=0)
    (largest,) = tuning["largest_micro_batch"].values()
    return [
        str(how["resolution"]),
        "this recipe",
        f"{figures['accuracy']:.3f}",
        f"{figures['macro_f1']:.3f}",
        f"{minutes:.1f}",
        str(largest),
        f"{peak / 2**20:.0f}",
    ]


def baselines(resolution: int, num_train: int) -> list[list[str]]:
    """Logistic regressions, and the model before training, on the held-out images."""
    import numpy as np
    import torch

    train, held_out, names = read_images()
    train = train[:num_train]
    truth = np.array([label for _, label in held_out])
    rows: list[list[str]] = []

    def add(what: str, predicted: "np.ndarray", started: float | None) -> None:
        minutes = "" if started is None else f"{(time.perf_counter() - started) / _MINUTE:.1f}"
        rows.append([str(resolution), what, *scores(truth, predicted), minutes, "", ""])

    started = time.perf_counter()
    most = Counter(label for _, label in train).most_common(1)[0][0]
    add("the most frequent class", np.full(len(truth), most), None)
    small = [pixels([picture for picture, _ in of_side]) for of_side in (train, held_out)]
    add("logistic regression, 32 x 32 pixels", regression(small, [label for _, label in train]), started)
    started = time.perf_counter()
    features = [frozen_features([picture for picture, _ in of_side], resolution) for of_side in (train, held_out)]
    add("logistic regression, frozen features", regression(features, [label for _, label in train]), started)
    torch.manual_seed(0)
    head = torch.nn.Linear(features[0].shape[1], len(names))
    with torch.no_grad():
        add("the model before training", head(torch.from_numpy(features[1])).argmax(-1).numpy(), None)
    return rows


def read_images() -> "tuple[list[tuple[Picture, int]], list[tuple[Picture, int]], tuple[str, ...]]":
    """The images and classes on the two sides of the recipe's split, by its own code, and the classes' names."""
    from hf_accum.data.source import good_rows
    from hf_accum.distributed.ranks import OneRank
    from recipes.driving_images import DrivingImagesConfig, open_data

    data = open_data(DrivingImagesConfig(num_epochs=1), OneRank())
    labels = getattr(data, "labels")  # noqa: B009 (of classification)

    def side(held_out: bool) -> "list[tuple[Picture, int]]":
        found = []
        for shard in range(data.source.num_shards):
            for _, row in good_rows(data.source, shard, 0, lambda row: row, "error", Counter()):
                if data.is_held_out(row, held_out) == held_out:
                    found.append((data.pictures.of(row), labels.encode(row)))
        return found

    return side(False), side(True), labels.names


def pixels(pictures: "Sequence[Picture]") -> "np.ndarray":
    """Images scaled to 32 x 32."""
    import numpy as np

    from hf_accum.tasks.vision.images import open_rgb

    return np.stack([np.asarray(open_rgb(picture).resize((32, 32))).ravel() / 255.0 for picture in pictures])


def frozen_features(pictures: "Sequence[Picture]", resolution: int) -> "np.ndarray":
    """What the pretrained net's head would be given."""
    import numpy as np
    import torch
    from transformers import AutoModel

    from hf_accum.tasks.vision.augmentation import UNCHANGED
    from hf_accum.tasks.vision.inputs import ImageInputs, load_image_processor
    from recipes.embedded.efficientnet import efficientnet_lite0

    model = AutoModel.from_pretrained(efficientnet_lite0()).eval()
    inputs = ImageInputs.of(load_image_processor(efficientnet_lite0()), resolution)
    with torch.inference_mode():
        return np.concatenate(
            [model(inputs.pixel_values([picture], [UNCHANGED])).pooler_output.numpy() for picture in pictures]
        )


def regression(sides: "Sequence[np.ndarray]", labels: Sequence[int]) -> "np.ndarray":
    """Fitted on the first side, what it says of the second."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return model.fit(sides[0], labels).predict(sides[1])


def scores(truth: "np.ndarray", predicted: "np.ndarray") -> list[str]:
    """Accuracy and macro-F1."""
    from sklearn.metrics import accuracy_score, f1_score

    return [f"{accuracy_score(truth, predicted):.3f}", f"{f1_score(truth, predicted, average='macro'):.3f}"]


if __name__ == "__main__":
    main()
