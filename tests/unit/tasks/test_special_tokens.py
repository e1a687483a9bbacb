"""The special tokens around a text."""

import numpy as np
from tiny import make_tokenizer
from transformers import AutoTokenizer

from hf_accum.tasks.special_tokens import Frame
from recipes.embedded.models import minilm


def test_the_special_tokens_are_the_tokenizer_s() -> None:
    for tokenizer in (make_tokenizer(), AutoTokenizer.from_pretrained(minilm())):
        ids = tokenizer("w1 w2", add_special_tokens=False)["input_ids"]
        assert Frame.of(tokenizer).around(np.array(ids)).tolist() == tokenizer("w1 w2")["input_ids"]
