"""The README of an exported model: lines that run it with onnxruntime, without torch and transformers."""

from collections.abc import Sequence
from typing import Any

from hf_accum.models.usage import Usage
from hf_accum.models.usage_lines import ENTITIES_OF_TAGS

LABELS, MODEL = "labels.json", "model.onnx"
_START = ["import json", "from pathlib import Path", "", "import numpy as np", "import onnxruntime"]
_POOLED = {
    "mean": ["logits = logits.mean(0, keepdims=True)"],
    "max": ["logits = logits.max(0, keepdims=True)"],
    "attention": [  # the last one is the score of a window
        "shares = np.exp(logits[:, -1] - logits[:, -1].max())",
        "logits = (shares / shares.sum() @ logits[:, :-1])[None]",
    ],
}


def readme_of(usage: Usage, names: Sequence[str], padding: int, about: Sequence[str]) -> str:
    """The README of a folder with a model of these inputs; `about` has what is to be known of it, a line each."""
    is_of_images = usage.task.startswith("image-")
    needs = "onnxruntime pillow" if is_of_images else "onnxruntime tokenizers"
    code = "\n".join(_of_images(usage) if is_of_images else _of_texts(usage, names, padding))
    told = "\n".join(f"- {line}" for line in about)
    return (
        f"# A fine-tuned model as ONNX\n\n{told}\n\nRun this in the folder that holds this file, after "
        f"`pip install {needs}`:\n\n```python\n{code}\n```\n"
    )


def _opened() -> list[str]:
    return [
        f'use = json.loads(Path("{LABELS}").read_text(encoding="utf-8"))',
        f'session = onnxruntime.InferenceSession("{MODEL}")',
    ]


def _of_images(usage: Usage) -> list[str]:
    lines = [*_START, "from PIL import Image", "", *_opened()]
    lines += [
        'image = Image.new("RGB", (640, 480))  # yours: Image.open("a.png").convert("RGB")',
        'image = image.resize((use["resolution"], use["resolution"]), use["resample"])',
        'pixels = np.asarray(image)[..., use["order"]] * np.array(use["scale"]) + np.array(use["shift"])',
        '(logits,) = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)})',
    ]
    if usage.task == "image-segmentation":
        return [
            *lines,
            "print(logits[0].argmax(-1))  # of each pixel the number of its class in",
            'print(use["labels"])',
        ]
    return [*lines, *_probabilities("single_label_classification")]


def _of_texts(usage: Usage, names: Sequence[str], padding: int) -> list[str]:
    lines = [
        *_START,
        "from tokenizers import Tokenizer",
        "",
        *_opened(),
        'tokenizer = Tokenizer.from_file("tokenizer.json")',
    ]
    overlap = usage.overlap if usage.windows is None else usage.windows["overlap"]
    stride = f", stride={overlap}" if overlap else ""
    lines.append(f"tokenizer.enable_truncation({usage.max_length}{stride})")
    lines.append(f'tokenizer.enable_padding(pad_id={padding}, direction="right")')
    if usage.task == "token-classification":
        return [lines[0], "import re", *lines[1:], *_of_words(usage, names)]
    if usage.windows is not None:
        lines.append('first = tokenizer.encode("a text of yours")')
        lines.append(f"found = [first, *first.overflowing][: {usage.windows['most']}]")
    else:
        texts = (
            '[("a text", "its pair"), ("another one", "its pair")]' if usage.is_pair else '["a text", "another one"]'
        )
        lines.append(f"found = tokenizer.encode_batch({texts})")
    lines += _run(names, "vectors" if usage.task == "sentence-similarity" else "logits")
    if usage.task == "sentence-similarity":
        return [*lines, "print(vectors @ vectors.T)  # the higher, the nearer"]
    lines += [] if usage.windows is None else _POOLED[usage.windows["pooling"]]
    return [*lines, *_probabilities(usage.problem)]


def _run(names: Sequence[str], output: str) -> list[str]:
    of = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    feed = [f'    "{name}": np.array([one.{of[name]} for one in found]),' for name in names]
    return ["feed = {", *feed, "}", f"({output},) = session.run(None, feed)"]


def _probabilities(problem: Any) -> list[str]:
    if problem == "regression":
        return ["print(logits[:, 0].tolist())"]
    if problem == "multi_label_classification":
        return [
            'for row in 1 / (1 + np.exp(-logits / use["temperature"])):',
            '    of_labels = dict(zip(use["labels"], row.tolist()))',
            '    print({name: p for name, p in of_labels.items() if p >= use["thresholds"].get(name, 0.5)})',
        ]
    return [
        'shares = np.exp((logits - logits.max(-1, keepdims=True)) / use["temperature"])',
        "for row in shares / shares.sum(-1, keepdims=True):",
        '    print(use["labels"][int(row.argmax())], float(row.max()))',
    ]


def _of_words(usage: Usage, names: Sequence[str]) -> list[str]:
    layers = "[list(range(len(labels)))]"
    if usage.layers:
        layers = f"[[i for i, label in enumerate(labels) if label[2:] == name] for name in {list(usage.layers)!r}]"
    return [
        'labels = use["labels"]',
        f"layers = {layers}  # of labels, one of which each word has",
        'text = "a text of yours, with words in it"',
        r'words = [found.span() for found in re.finditer(r"[^\W_]+|[^\w\s]|_", text)]',
        "first = tokenizer.encode([text[start:end] for start, end in words], is_pretokenized=True)",
        "found = [first, *first.overflowing]  # windows of a long text",
        *_run(names, "logits"),
        "entities = []",
        "for layer in layers:",
        "    tags = {}  # of each word: its context, its tag",
        "    for window, scores in enumerate(logits[..., layer]):",
        "        numbers = found[window].word_ids",
        "        for place, word in enumerate(numbers):",
        "            if word is not None and word != numbers[place - 1]:  # its first token",
        "                best = (min(place, len(numbers) - place), labels[layer[int(scores[place].argmax())]])",
        "                tags[word] = max(tags.get(word, best), best)",
        *ENTITIES_OF_TAGS,
    ]
