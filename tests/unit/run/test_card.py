"""The card of a run: metadata that huggingface_hub reads back, facts of the run's files, no row of the data."""

import json
from pathlib import Path

import pytest
from card_runs import CONFIG, FIGURES, RUN, make_run
from huggingface_hub import ModelCard, metadata_load

from hf_accum.models.usage import Usage, write_usage
from hf_accum.run.card import card_of, write_card


def test_the_metadata_are_read_back_by_the_hubs_own_classes(tmp_path: Path) -> None:
    run = make_run(tmp_path, base={"hub_id": "some/model", "revision": "abc"})
    write_card(run)
    data = ModelCard.load(run / "adapter" / "README.md").data.to_dict()
    assert data == metadata_load(run / "adapter" / "README.md")
    assert (data["library_name"], data["pipeline_tag"], data["base_model"]) == (
        "peft",
        "text-classification",
        "some/model",
    )
    assert "datasets" not in data  # what is embedded is none of the hub
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"loss": 2.5, "accuracy": 0.75}


def test_the_facts_are_told_and_no_note_that_may_quote_the_data(tmp_path: Path) -> None:
    card = card_of(make_run(tmp_path))
    for fact in (
        "32 examples per optimizer step",
        "rank 16, alpha 32",
        "- examples to train on: 6,650",
        "1,483",
        "rows with the same `patient`",
        "nf4",
        "2 x NVIDIA T4, precision bf16",
        "torch 2.13.0",
        "| accuracy | 0.75 | 0.5 to 0.875 |",
        "17 groups",
        "not a medical device",
        "other sites",
        "0: `1`",
        "`7` in the data is `2`",
    ):
        assert fact in card, fact
    assert "a text of a patient" not in card


@pytest.mark.parametrize(
    ("task", "columns", "same", "said"),
    [
        ("text-generation", {"prompt": "question"}, "prompt", "once, at most: 64"),
        ("fill-mask", {"text": "note"}, "text", "once, at most: 64"),
        (
            "sentence-similarity",
            {"query": "term"},
            "document",
            "On 60 held-out examples, each looked for among 1,234",
        ),
        ("image-classification", {"image": "photo"}, "image", "images scaled to, in pixels a side: 224"),
    ],
)
def test_a_task_says_what_its_groups_and_inputs_are(
    tmp_path: Path, task: str, columns: dict[str, str], same: str, said: str
) -> None:
    is_of_images = task.startswith("image")
    run = make_run(tmp_path)
    config = {"max_length": 512} | ({"resolution": 224} if is_of_images else {})
    (run / "config.yaml").write_text(json.dumps({**CONFIG, **config, "group_column": None}))
    if task == "sentence-similarity":
        (run / "evaluation.json").write_text(json.dumps(FIGURES | {"num_documents": 1234}))
    pooling = "mean" if task == "sentence-similarity" else None
    usage = Usage(
        task=task, auto_class="X", columns=columns, max_length=None if is_of_images else 64, pooling=pooling
    )
    write_usage(usage, run / "adapter")
    card = card_of(run)
    assert f"- groups, never on both sides of that: rows with the same {same}\n" in card
    assert said in card
    assert "512" not in card  # a flag that says nothing of images


@pytest.mark.parametrize(
    ("dataset", "ids"),
    [("stanfordnlp/imdb", ["stanfordnlp/imdb"]), ("notes.jsonl", None), ("/data/ward7/notes", None)],
)
def test_of_datasets_only_those_of_the_hub_are_named(tmp_path: Path, dataset: str, ids: list[str] | None) -> None:
    run = make_run(tmp_path)
    (run / "run.json").write_text(json.dumps(RUN | {"dataset": dataset}))
    card = card_of(run)
    assert ModelCard(card).data.to_dict().get("datasets") == ids
    assert (dataset in card) == (ids is not None)


def test_it_does_without_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("run.json", "evaluation.json", "config.yaml", "adapter/usage.json", "adapter/config.json"):
        (run / name).unlink()
        card = card_of(run)
        assert ModelCard(card).data.to_dict()["library_name"] == "peft"
        assert "not a medical device" in card
    assert "Not measured yet" in card
