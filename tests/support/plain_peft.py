"""Loading an adapter as its README does: the base from where it is, the labels from the config beside the adapter."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoConfig


def load_adapter(auto_class: Any, adapter: Path | str, base: Path | str) -> Any:
    """A model with an adapter on it, by transformers and peft alone."""
    how = {"config": AutoConfig.from_pretrained(adapter)} if (Path(adapter) / "config.json").is_file() else {}
    return PeftModel.from_pretrained(auto_class.from_pretrained(base, **how), str(adapter)).eval()
