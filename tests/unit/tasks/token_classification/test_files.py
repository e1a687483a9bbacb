"""Which files of a folder are read, as what, and what is said of the others."""

import json
from pathlib import Path

import pytest

from hf_accum.data.source import Source
from hf_accum.tasks.token_classification.files import Columns

COLUMNS = Columns("tokens", "tags", "text", None)
CONLL = "no O\nfever B-sign\n\n"


def make(folder: Path, **contents: str) -> str:
    for name, content in contents.items():
        file = folder / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(folder)


def rows_of(source: Source) -> list[object]:
    return [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]


def test_a_folder_of_documents_has_its_splits_by_folders(tmp_path: Path) -> None:
    files = {
        f"{split}__p{number}_{end}": "" for split in ("train", "dev") for number in (1, 2) for end in ("txt", "ann")
    }
    folder = make(tmp_path, **{name: "fever" if name.endswith("txt") else "" for name in files})
    assert COLUMNS.open(folder, "train").names == ("p1.txt", "p2.txt")
    assert COLUMNS.open(folder, "validation").names == COLUMNS.open(folder, "dev").names == ("p1.txt", "p2.txt")
    assert COLUMNS.open(folder, "train").notes == ()
    with pytest.raises(ValueError, match="has no split 'test': it has train, validation"):
        COLUMNS.open(folder, "test")


def test_without_names_of_splits_all_is_to_train_on(tmp_path: Path) -> None:
    folder = make(tmp_path, a_txt="fever", a_ann="", b_txt="", README_md="", annotation_conf="")
    source = COLUMNS.open(folder, "train")
    assert source.names == ("a.txt",)
    assert source.notes == ("3 files of the dataset are not read: README.md, annotation.conf, b.txt",)
    with pytest.raises(ValueError, match="has no split 'test': no file or folder of it has such a name"):
        COLUMNS.open(folder, "test")


def test_annotations_without_their_text_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, a_ann="")
    with pytest.raises(ValueError, match=r"no file .*a\.txt, of which there are annotations"):
        COLUMNS.open(folder, "train")


def test_a_text_or_its_annotations_that_change_end_the_run(tmp_path: Path) -> None:
    source = COLUMNS.open(make(tmp_path, a_txt="fever", a_ann=""), "train")
    (tmp_path / "a.ann").write_text("T1\tSign 0 5\tfever\n")
    with pytest.raises(ValueError, match=r"a\.ann: was changed while the run reads it"):
        rows_of(source)


def test_column_files_by_name_or_by_their_first_line(tmp_path: Path) -> None:
    folder = make(tmp_path, c__train_conll=CONLL, c__testa_conll=CONLL, c__test_conll=CONLL, t__train_tsv=CONLL)
    source = COLUMNS.open(f"{folder}/c", "train")
    assert source.names == ("train.conll",)
    assert source.notes == ("1 files of the dataset are not read: testa.conll",)
    row = {"tokens": ["no", "fever"], "tags": ["O", "B-sign"], "document": 1}
    for file in ("c/train.conll", "c", "t", "t/train.tsv"):
        assert rows_of(COLUMNS.open(f"{folder}/{file}", "train")) == [row]
    for name in ("a_bio", "a_iob", "a_txt"):
        make(tmp_path, **{name: CONLL})
        assert rows_of(COLUMNS.open(str(tmp_path / name.replace("_", ".")), "train")) == [row]


def test_another_dataset_is_opened_as_ever(tmp_path: Path) -> None:
    row = {"tokens": "a", "tags": "O"}
    folder = make(tmp_path, a__rows_jsonl=json.dumps(row) + "\n", b__rows_tsv="tokens\ttags\na\tO\n")
    for file in ("a", "a/rows.jsonl", "b/rows.tsv"):
        assert rows_of(COLUMNS.open(f"{folder}/{file}", "train")) == [row]


def test_a_file_without_tags_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, a_txt="Patient has fever.\n")
    with pytest.raises(ValueError, match=r"a\.txt: line 1: 'Patient has fever\.' is no word with its tag"):
        COLUMNS.open(f"{folder}/a.txt", "train")


def test_a_revision_is_of_the_hub_and_links_lead_nowhere(tmp_path: Path) -> None:
    folder = make(tmp_path, a__a_conll=CONLL, b_conll=CONLL)
    with pytest.raises(ValueError, match="`dataset_revision` v1: has to be left out with a local dataset"):
        COLUMNS.open(f"{folder}/a", "train", revision="v1")
    (tmp_path / "a" / "b.conll").symlink_to(tmp_path / "b.conll")
    with pytest.raises(ValueError, match="names a file outside of it"):
        COLUMNS.open(f"{folder}/a", "train")
