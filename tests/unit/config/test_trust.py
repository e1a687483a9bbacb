"""How far a model of others is trusted: by default not at all."""

from hf_accum.config.trust import Trust


def test_by_default_no_code_runs_and_weights_are_safetensors() -> None:
    trust = Trust()
    assert trust.of_hub == {"revision": None, "trust_remote_code": False}
    assert trust.of_weights == {"use_safetensors": True, "weights_only": True}


def test_what_is_trusted_is_passed_on_and_a_pickle_is_read_for_its_weights_only() -> None:
    trust = Trust("v1", trust_remote_code=True, code_revision="v2", allow_pickle_weights=True)
    assert trust.of_hub == {"revision": "v1", "trust_remote_code": True, "code_revision": "v2"}
    assert trust.of_weights == {"use_safetensors": None, "weights_only": True}
