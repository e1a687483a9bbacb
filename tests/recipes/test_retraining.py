"""A run that starts from another one's result: the same weights, its labels kept, new ones learned beside them."""

import copy
import json
import random
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from every_recipe import RECIPES, run_of
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from seqeval.metrics import f1_score, precision_score, recall_score
from tiny import CONFIGS, WORDS, make_tokenizer
from tiny_vision import SIDE, stored
from transformers import AutoModelForSequenceClassification

from hf_accum.cli.main import main

Recipe = Callable[..., Path]
MADE = {"max_steps": 30, "effective_batch_size": 16, "learning_rate": 0.01, "num_epochs": "null"}
RASH = ["rash", "urticaria", "eczema", "pruritus"]


def told_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def weights_in(run: Path) -> dict[str, torch.Tensor]:
    result = next(run / name for name in ("adapter", "model") if (run / name).is_dir())
    found: dict[str, torch.Tensor] = {}
    for file in sorted(result.glob("*.safetensors")):
        found |= {f"{file.stem}.{name}": tensor for name, tensor in load_file(file).items()}
    return found


ALL = [
    pytest.param(
        recipe.id,
        rank,
        id=f"{recipe.id}, {'adapter' if rank else 'whole model'}",
        marks=() if rank and recipe.id in ("clinical_ner", "driving_images-segmentation") else pytest.mark.slow,
    )
    for recipe in RECIPES
    for rank in (2, 0)
]


@pytest.mark.parametrize(("recipe_id", "rank"), ALL)
def test_without_a_step_to_speak_of_the_result_is_the_earlier_one(
    recipe_id: str, rank: int, tmp_path: Path, accelerator: object
) -> None:
    how = {"lora.rank": rank} | ({"learning_rate": 0.001} if rank == 0 else {})
    first = run_of(recipe_id, tmp_path, tmp_path / "first", **how)
    still = {**how, "max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0, "init_from": first, "seed": 5}
    second = run_of(recipe_id, tmp_path, tmp_path / "second", **still)
    before, after = weights_in(first), weights_in(second)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.allclose(after[name].float(), tensor.float(), atol=1e-6), name


def rows_of(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(notes.iterdir()) for line in file.read_text().splitlines()]


@pytest.fixture
def grown(notes: Path, tmp_path: Path) -> Path:
    """The notes of before, and as many of a class that was not there."""
    draw = random.Random(1)
    new = [
        {"text": "; ".join(draw.choices(RASH, k=draw.randint(2, 9))), "label": "a rash", "patient": 1_000 + number}
        for number in range(60)
    ]
    folder = tmp_path / "grown"
    folder.mkdir()
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    return folder


@pytest.mark.parametrize("how", [{}, {"pooling": "mean"}, {"lora.rank": 0, "learning_rate": 1e-3}])
def test_a_new_label_stands_behind_the_others_which_are_told_as_before(
    recipe: Recipe, notes: Path, grown: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    first = recipe(**{**MADE, **how})
    still = {**MADE, **how, "max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0}
    second = recipe(**still, dataset=f"{notes}:0.5,{grown}:0.5", init_from=first)
    assert_told_as_before(first, second, notes, tmp_path)


def assert_told_as_before(first: Path, second: Path, notes: Path, tmp_path: Path) -> None:
    """The labels of the first run, among themselves; the second has one more."""
    names = list(told_in(second)[0]["probabilities"])
    assert names == ["eye", "heart", "muscle", "a rash"]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows_of(notes)))
    for run, file in ((first, "one.jsonl"), (second, "two.jsonl")):
        main(["predict", str(run), f"--dataset={data}", f"--output={tmp_path / file}"])
    files = (tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    for row, other in zip(one, two, strict=True):
        old = {name: other["probabilities"][name] for name in row["probabilities"]}
        total = sum(old.values())  # of the old labels among themselves
        assert {name: value / total for name, value in old.items()} == pytest.approx(row["probabilities"], abs=1e-4)


@pytest.mark.parametrize(("rank", "is_named"), [(2, True), (2, False), (0, True)])
def test_a_base_with_a_head_of_its_own_gets_new_labels_too(
    recipe: Recipe,
    notes: Path,
    grown: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    is_named: bool,
) -> None:
    """A head of two layers, for three labels, which the base's config may name."""
    model, labels = tmp_path / "with-head", ["eye", "heart", "muscle"]
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    config = copy.deepcopy(CONFIGS["roberta"])
    config.update(named if is_named else {"num_labels": 3})
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    words = sorted({word for row in rows_of(notes) for word in row["text"].split("; ")})
    make_tokenizer([*words, *RASH]).save_pretrained(str(model))
    how = {**MADE, "model": model, "max_length": 20, "lora.rank": rank, "learning_rate": 1e-3}
    first = recipe(**how)
    still = {**how, "max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0}
    second = recipe(**still, dataset=f"{notes}:0.5,{grown}:0.5", init_from=first)
    assert_told_as_before(first, second, notes, tmp_path)
    if rank:  # the lines of its README load it too
        (code,) = re.findall(r"```python\n(.*?)```", (second / "adapter" / "README.md").read_text(), re.DOTALL)
        monkeypatch.setenv("BASE", str(model))
        monkeypatch.chdir(second / "adapter")
        names: dict[str, Any] = {}
        exec(code, names)
        told = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
        probabilities = names["logits_of"]([row["text"] for row in told]).softmax(-1)
        expected = torch.tensor([list(row["probabilities"].values()) for row in told])
        assert torch.allclose(probabilities, expected, atol=1e-5)


def test_a_column_of_classes_keeps_the_places_of_the_labels_too(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    first = recipe(**{**MADE, "max_steps": 2})
    draw = random.Random(2)
    names = ["rash", "heart", "eye"]  # one is new, one is not there, and the others have other numbers
    rows = {
        "text": [" ".join(draw.choices(RASH, k=draw.randint(2, 9))) for _ in range(60)],
        "label": [number % 3 for number in range(60)],
        "patient": list(range(60)),
    }
    typed = Features({"text": Value("string"), "label": ClassLabel(names=names), "patient": Value("int64")})
    Dataset.from_dict(rows, features=typed).to_parquet(tmp_path / "typed.parquet")
    second = recipe(**{**MADE, "max_steps": 2}, dataset=tmp_path / "typed.parquet", init_from=first)
    told = told_in(second)
    assert list(told[0]["probabilities"]) == ["eye", "heart", "muscle", "rash"]
    assert {row["label"] for row in told} == set(names)


@pytest.mark.slow
def test_a_cycle_keeps_a_better_run_and_refuses_a_worse_one(
    recipe: Recipe, notes: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how_long = {**MADE, "max_steps": 120, "full_determinism": "true", "learning_rate": 0.005}
    first = recipe(**how_long)
    both = f"{notes}:0.5,{grown}:0.5"
    second = recipe(**how_long, dataset=both, init_from=first)
    spoilt = recipe(**{**MADE, "learning_rate": 5.0}, dataset=both, init_from=first)
    held_back = tmp_path / "held_back.jsonl"
    draw = random.Random(7)
    new = [{"text": "; ".join(draw.choices(RASH, k=5)), "label": "a rash"} for _ in range(20)]
    old = [{name: row[name] for name in ("text", "label")} for row in rows_of(notes)[:60]]
    rows = [row | {"patient": number} for number, row in enumerate([*old, *new])]
    held_back.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = [f"--dataset={held_back}", "--group_column=patient"]
    capsys.readouterr()
    main(["compare", str(first), str(second), *how, "--require=better:accuracy"])
    assert "better:accuracy: kept" in capsys.readouterr().out
    for run in (first, spoilt):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(second), str(run), *how, "--require=not_worse:macro_f1:0.01"])
        assert ended.value.code == 1
    main(["compare", str(first), str(second), *how, f"--output={tmp_path / 'found.json'}"])
    found = json.loads((tmp_path / "found.json").read_text())["figures"]["accuracy"]
    main(["predict", str(first), f"--dataset={held_back}", f"--output={tmp_path / 'told.jsonl'}"])
    told = [json.loads(line)["prediction"] for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    right = [one == row["label"] for one, row in zip(told, rows, strict=True)]
    assert found["first"] == pytest.approx(sum(right) / len(right))
    assert not any(right[60:])


@pytest.mark.parametrize("nested", ["longest", "each_label"])
def test_a_run_with_a_new_type_of_entities_is_compared_with_that_before(
    nested: str, tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both on rows with both types, which one never predicts: figures as seqeval has them of what `predict` tells."""
    draw, new, told = random.Random(3), tmp_path / "new.jsonl", tmp_path / "told.jsonl"
    texts = [draw.choices(WORDS, k=draw.randint(2, 30)) for _ in range(80)]
    tags = [[["B-sign", "B-drug", "O"][WORDS.index(word) % 3] for word in words] for words in texts]
    rows = [{"tokens": words, "tags": of_text} for words, of_text in zip(texts, tags, strict=True)]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"nested": nested, "lora.rank": 0, "num_epochs": "null"}
    first = run_of("clinical_ner", tmp_path, tmp_path / "first", **how, max_steps=100, learning_rate=0.003)
    still = {**how, "max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0, "init_from": first}
    both = f"{tmp_path / 'clinical_ner-data'}:0.3,{new}:0.7"
    second = run_of("clinical_ner", tmp_path, tmp_path / "second", **still, dataset=both)
    main(["compare", str(first), str(second), f"--dataset={new}", f"--output={tmp_path / 'found.json'}"])
    assert "one run does not know all types of the other" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "found.json").read_text())["figures"]
    assert "loss" not in found
    types = ["sign", "drug"] if nested == "each_label" else [None]
    truth = [layer_of(of_text, name) for name in types for of_text in tags]
    by_run: list[list[Any]] = []
    for side, run in (("first", first), ("second", second)):
        main(["predict", str(run), f"--dataset={new}", f"--output={told}"])
        by_run.append([json.loads(line)["prediction_tags"] for line in told.read_text().splitlines()])
        told.unlink()
        predicted = [
            of_text.get(name, ["O"] * len(words)) if name else of_text
            for name in types
            for of_text, words in zip(by_run[-1], texts, strict=True)
        ]
        assert found["f1"][side] == pytest.approx(f1_score(truth, predicted))
        assert found["precision"][side] == pytest.approx(precision_score(truth, predicted))
        assert found["recall"][side] == pytest.approx(recall_score(truth, predicted))
        right = [one == other for one, other in zip(chain(*truth), chain(*predicted), strict=True)]
        assert found["word_accuracy"][side] == pytest.approx(sum(right) / len(right))
    assert found["f1"]["first"] > 0.3
    if nested == "each_label":  # the layer of the earlier type is as it was
        assert [list(of_text) for of_text in by_run[1]] == [["sign", "drug"]] * len(texts)
        assert [of_text["sign"] for of_text in by_run[1]] == [of_text["sign"] for of_text in by_run[0]]


def test_numbers_as_tags_mean_what_they_did_in_the_runs(tmp_path: Path, accelerator: object) -> None:
    """Trained on columns typed as classes; of other data, which are not, as of the same rows with the type."""
    draw, of_first = random.Random(3), ["O", "B-sign", "I-sign"]
    texts = [draw.choices(WORDS[:39], k=draw.randint(2, 12)) for _ in range(60)]
    names_of = {"first": of_first, "second": [*of_first, "B-drug", "I-drug"]}
    for name, names in names_of.items():
        which = [0, 1, len(names) - 2]  # O, and the B of the first and the last type
        rows = [{"tokens": words, "tags": [which[WORDS.index(word) % 3] for word in words]} for words in texts]
        typed = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
        Dataset.from_list(rows, features=typed).to_parquet(tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, rows: str, **how: Any) -> Path:
        how = {"num_epochs": "null", "lora.rank": 0, "max_steps": 40, "learning_rate": 0.003} | how
        return run_of("clinical_ner", tmp_path, tmp_path / name, **how, dataset=tmp_path / rows)

    first = run("one", "first.parquet")
    second = run("two", "second.parquet", init_from=first)
    found = []
    for rows in ("second.parquet", "second.jsonl"):
        main(["compare", str(first), str(second), f"--dataset={tmp_path / rows}", f"--output={tmp_path / rows}.json"])
        found.append(json.loads((tmp_path / f"{rows}.json").read_text())["figures"])
    assert found[0] == found[1]
    assert found[0]["f1"]["second"] > found[0]["f1"]["first"]
    again = run("three", "first.jsonl", init_from=first, max_steps=1)
    entities = [entity for row in told_in(again) for entity in row["entities"]]
    assert {entity["label"] for entity in entities} == {"sign"}
    assert all(WORDS.index(entity["text"]) % 3 for entity in entities)


def layer_of(tags: list[str], name: str | None) -> list[str]:
    """A text's tags, or those of one type alone."""
    return [tag if name is None or tag.endswith(f"-{name}") else "O" for tag in tags]


def test_a_new_number_in_masks_is_a_new_class(tmp_path: Path, accelerator: object) -> None:
    """Of a run whose classes have no names. Both are compared by their overlap with the masks, counted here anew."""
    draw, new, told = random.Random(4), tmp_path / "new.parquet", tmp_path / "told.jsonl"
    masks = [Image.new("L", (SIDE, SIDE)) for _ in range(40)]
    for number, mask in enumerate(masks):
        left, top = draw.randint(2, 14), draw.randint(2, 14)
        ImageDraw.Draw(mask).rectangle((left, top, left + 14, top + 14), fill=1 + number % 4)
    colours = np.array([(90, 90, 90), (20, 40, 200), (20, 180, 60), (200, 30, 30), (220, 210, 30)], np.uint8)
    images = [Image.fromarray(colours[np.asarray(mask)]) for mask in masks]
    rows = [{"image": {"bytes": stored(i)}, "mask": {"bytes": stored(m)}} for i, m in zip(images, masks, strict=True)]
    Dataset.from_list(rows).to_parquet(new)
    how = {"lora.rank": 0, "num_epochs": "null"}
    recipe_id = "driving_images-segmentation"
    first = run_of(recipe_id, tmp_path, tmp_path / "first", **how, max_steps=80, learning_rate=0.02)
    more = {**how, "max_steps": 60, "learning_rate": 0.02, "init_from": first}
    second = run_of(recipe_id, tmp_path, tmp_path / "second", **more, dataset=new)
    main(["compare", str(first), str(second), f"--dataset={new}", f"--output={tmp_path / 'found.json'}"])
    found = json.loads((tmp_path / "found.json").read_text())["figures"]
    truth = np.stack([np.asarray(mask) for mask in masks])
    for side, run in (("first", first), ("second", second)):
        main(["predict", str(run), f"--dataset={new}", f"--output={told}"])
        paths = [json.loads(line)["mask_file"] for line in told.read_text().splitlines()]
        predicted = np.stack([np.asarray(Image.open(tmp_path / path)) for path in paths])
        told.rename(tmp_path / f"{side}.jsonl")
        (tmp_path / "told-images").rename(tmp_path / f"{side}-images")
        both = [((truth == n) & (predicted == n)).sum() / ((truth == n) | (predicted == n)).sum() for n in range(5)]
        assert found["mean_iou"][side] == pytest.approx(np.mean(both))
        assert found["overall_accuracy"][side] == pytest.approx((truth == predicted).mean())
        assert (both[4] > 0.2) == (side == "second"), both


def test_labels_in_another_order_move_nothing_but_the_head(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    """Also where another weight has as many rows as there are labels: of types of tokens, two."""
    two = tmp_path / "two.jsonl"
    two.write_text("".join(json.dumps(row) + "\n" for row in rows_of(notes) if row["label"] != "muscle"))
    how = {**MADE, "lora.rank": 0, "dataset": two}
    first = recipe(**{**how, "learning_rate": 1e-3, "max_steps": 3})
    still = {"max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0, "init_from": first}
    before, after = weights_in(first), weights_in(recipe(**{**how, **still}, labels="heart,eye"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        is_of_labels = ".classifier." in name
        assert torch.allclose(after[name], tensor.flip(0) if is_of_labels else tensor, atol=1e-6), name


def test_what_cannot_be_started_from_is_said(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = recipe(**{**MADE, "max_steps": 2})

    def said(**flags: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            recipe(**{**MADE, "max_steps": 2, "init_from": first, **flags})
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "has to be the folder of a run" in said(init_from=tmp_path)
    (tmp_path / "current").symlink_to(first)
    assert "give another --output_dir" in said(init_from=tmp_path / "current", output_dir=first)
    assert not first.with_name(f"{first.name}-earlier-1").exists()
    assert "--lora.rank 4: has to be 16, as in the run that it starts from" in said(**{"lora.rank": 4})
    assert "has an adapter, which --lora.rank 16 goes on with" in said(**{"lora.rank": 0})
    assert "--pooling mean: has to be cls" in said(pooling="mean")
    assert "--problem" in said(problem="multi_label_classification")
    assert "muscle is missing" in said(labels="eye,heart,other", on_bad_row="skip", max_skipped_share=0.9)
    others = tmp_path / "others.jsonl"
    rows = [{"text": f"lung {n}", "label": "lung" if n % 2 else "liver", "patient": n} for n in range(60)]
    others.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "there has to be one in common" in said(dataset=others)
    (first / "evaluation.json").unlink()
    assert "the run is not through" in said()


def test_an_adapter_of_another_base_is_refused(
    recipe: Recipe, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    first = recipe(**{**MADE, "max_steps": 2})
    other = tmp_path / "other-base"
    shutil.copytree(tiny_model, other)
    again = recipe(**{**MADE, "max_steps": 1}, init_from=first, model=other)  # the same weights, elsewhere
    assert (again / "adapter").is_dir()
    from transformers import BertModel

    model = BertModel.from_pretrained(tiny_model)
    weight = model.embeddings.word_embeddings.weight
    weight.data.copy_(torch.randn(weight.shape))  # not nn.init: transformers may have it leave what was loaded
    model.save_pretrained(other)
    with pytest.raises(SystemExit):
        recipe(**{**MADE, "max_steps": 1}, init_from=first, model=other)
    assert "was trained on another base model" in capsys.readouterr().err
