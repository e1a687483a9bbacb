"""How a result is used, written beside the weights and read back."""

from pathlib import Path

from hf_accum.models.usage import Usage, read_usage, write_usage


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    usage = Usage(
        task="text-classification",
        auto_class="AutoModelForSequenceClassification",
        columns={"text": "note", "label": "Dringlichkeit"},
        problem="single_label_classification",
        label_codes={"1": "immediate"},
        max_length=8,
        windows={"max_length": 8, "overlap": 2, "most": 3, "pooling": "mean"},
        base={"hub_id": "some/model"},
    )
    write_usage(usage, tmp_path)
    assert read_usage(tmp_path) == usage
    assert '"overlap": 2' in (tmp_path / "usage.json").read_text()


def test_of_a_folder_without_it_nothing_is_said(tmp_path: Path) -> None:
    assert read_usage(tmp_path) is None
