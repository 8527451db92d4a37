"""Beam search through transformers' `generate`: the likeliest completions, as translations are decoded.

The length penalty divides a beam's log-probability by its length to this power. The paper takes beam 4 and 0.6 (section
4.2, from Raffel et al. 2020), whose own penalty is ((5 + length) / 6)^0.6 (Wu et al. 2016): nearly the same ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.types import PromptBatch


@dataclass(frozen=True)
class Beams:
    """How many beams, and how much longer ones are preferred."""

    count: int
    length_penalty: float


def beam_search(
    model: HiddenStateModel,
    prompts: PromptBatch,
    beams: Beams,
    *,
    longest: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    vocabulary: int,
) -> Tensor:
    """The best completion of each prompt, ids of shape (P, T), padded after the end of a completion.

    Args:
        model: in evaluation mode, ready to write.
        prompts: P prompts, right-padded.
        beams: how they are searched.
        longest: most tokens of a completion.
        eos_ids: what ends one.
        pad_id: what fills rows up.
        vocabulary: ids below it can be written.
    """
    inner = model.model
    ids_PS, mask_PS = prompts.ids_PS, prompts.mask_PS
    decoder_only = not inner.config.is_encoder_decoder
    if decoder_only:  # a completion continues its row: padding goes to the left
        order_PS = mask_PS.int().argsort(dim=1, stable=True)
        ids_PS, mask_PS = ids_PS.gather(1, order_PS), mask_PS.gather(1, order_PS)
    there = prompts.ids_PS.device if inner.device.type == "meta" else inner.device  # meta: accelerate's hooks move it
    unused = torch.arange(vocabulary, model.head().weight_VD.shape[0]).tolist()
    written = inner.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids_PS.to(there),
        attention_mask=mask_PS.long().to(there),
        num_beams=beams.count,
        length_penalty=beams.length_penalty,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=longest,
        eos_token_id=list(eos_ids),
        pad_token_id=pad_id,
        suppress_tokens=unused or None,
    )
    start = ids_PS.shape[1] if decoder_only else 1
    return written[:, start:].to(prompts.ids_PS.device)
