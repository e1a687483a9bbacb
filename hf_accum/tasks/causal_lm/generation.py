"""What a language model writes behind prompts: the most likely token, again and again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hf_accum.models.loading import num_positions, quiet_transformers
from hf_accum.models.modes import keeping_modes
from hf_accum.models.precision import autocast_of
from hf_accum.seeding import keeping_random_state
from hf_accum.tasks.language_modeling.chunked_loss import with_output_layer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Continuation:
    """What was written behind a prompt, and whether it came to an end, not only to the most tokens allowed."""

    text: str
    is_ended: bool


def most_new_tokens(model: nn.Module, num_new_tokens: int, num_prompt_tokens: int) -> int:
    """How many tokens there are places for behind a prompt: no more than so many, and than the model has left."""
    positions = num_positions(model)
    return num_new_tokens if positions is None else min(num_new_tokens, positions - num_prompt_tokens)


def go_on(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[np.ndarray], num_new_tokens: int
) -> list[Continuation]:
    """What the model writes behind each prompt, token ids (num_tokens,), up to the end of a text.

    It writes no more than it has positions for behind the longest prompt, which has to leave one at least. The
    model's modes and the generators of random numbers are as before afterwards. `model` is the one that transformers
    or peft made; it may have been told to stop before its output layer.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    width = max(map(len, prompts))
    known: Any = getattr(model, "generation_config", None)
    ending: Any = tokenizer.eos_token_id  # a text
    endings = sorted(map(int, {ending, *np.atleast_1d(getattr(known, "eos_token_id", None) or [])} - {None}))
    padding: Any = tokenizer.pad_token_id
    if padding is None:
        padding = endings[0] if endings else 0
    how = GenerationConfig(
        max_new_tokens=most_new_tokens(model, num_new_tokens, width),
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=endings or None,
        pad_token_id=padding,
    )
    ids, mask = (torch.zeros(len(prompts), width, dtype=torch.long) for _ in range(2))
    ids += padding
    for row, prompt in enumerate(prompts):  # padded in front: what is written follows the prompt
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    with (
        torch.no_grad(),
        autocast_of(model),
        keeping_modes(model),
        keeping_random_state(device),
        with_output_layer(model),
        quiet_transformers(),
    ):
        model.eval()
        generated: Any = model
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        rows = generated.generate(**inputs, generation_config=how)[:, width:].cpu()
    return [
        Continuation(
            str(tokenizer.decode(row, skip_special_tokens=True)), any(ending in row.tolist() for ending in endings)
        )
        for row in rows
    ]
