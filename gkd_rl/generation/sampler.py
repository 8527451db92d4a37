"""Sampling of completions y ~ p_S (paper Algorithm 1): from the model's distribution, greedily, or by beam search.

Each prompt is computed once for its K completions, finished rows leave the batch while the others are decoded, and
sampling runs in evaluation mode without gradient: like the paper, no gradient flows through the sampling.

Beam search uses transformers' `generate` and serves evaluation only. The paper decodes translations with 4 beams and
length penalty 0.6 (section 4.2, from Raffel et al. 2020), whose score divides by ((5 + length) / 6)^0.6 (Wu et al.
2016). transformers divides by length^0.6, which gives nearly the same ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.static_decoding import StaticDecoding
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.types import PromptBatch, Rollout, Source, completion_mask

COMPACT_SHARE = 0.25  # finished rows are removed once they are this share of the running batch
CHECK_EVERY = {"cpu": 1}  # tokens between two checks for finished rows, by type of device
CHECK_EVERY_OTHERWISE = 8  # on a GPU each check waits for the device


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy decoding."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def draw(self, logits_BV: Tensor, generator: torch.Generator | None) -> Tensor:
        """Next token ids, shape (B,)."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits = logits_BV / self.temperature
        if self.top_k > 0:
            kth = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            outside = probabilities.cumsum(dim=-1) - probabilities >= self.top_p  # the first token always stays
            logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
        return _sample_by_inversion(logits.softmax(dim=-1), generator)


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Beams:
    """Beam search.

    Attributes:
        count: number of beams.
        length_penalty: a beam's log-probability is divided by its length to this power.
    """

    count: int
    length_penalty: float


class Sampler:
    """Samples rollouts from a model: by `Sampling`, or by beam search."""

    def __init__(self, codec: TextCodec, sampling: Sampling | Beams, static: StaticDecoding | None = None) -> None:
        """Make a sampler.

        Args:
            codec: text <-> ids.
            sampling: how completions are decoded.
            static: decode with a static cache; not with beams.
        """
        self.codec = codec
        self.sampling = sampling
        self.static = static

    @torch.no_grad()
    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        """Sample `per_prompt` completions of every prompt, of at most the task's `max_completion_tokens` tokens.

        Args:
            model: sampled in evaluation mode; its mode is restored.
            prompts: P prompts.
            per_prompt: K; 1 with beams.
            generator: on the model's device; None only for greedy decoding and beams.
        """
        training = model.training
        model.eval()
        with model.generating():
            if isinstance(self.sampling, Beams):
                ids_BT = self._beam_search(model, prompts, self.sampling)
            else:
                ids_BT = self._decode(model, prompts, per_prompt, self.sampling, generator)
        model.train(training)
        mask_BT, truncated_B = completion_mask(ids_BT, self.codec.eos_ids)
        width = int(mask_BT.sum(dim=1).max())
        ids_BT, mask_BT = ids_BT[:, :width], mask_BT[:, :width]
        ids_BT = ids_BT.masked_fill(~mask_BT, self.codec.pad_id)
        return Rollout(
            prompts=prompts,
            prompt_index_B=torch.arange(len(prompts.examples), device=ids_BT.device).repeat_interleave(per_prompt),
            ids_BT=ids_BT,
            mask_BT=mask_BT,
            truncated_B=truncated_B,
            texts=self.codec.decode(ids_BT, mask_BT),
            source=Source.student,
        )

    def _beam_search(self, model: HiddenStateModel, prompts: PromptBatch, beams: Beams) -> Tensor:
        """Token ids (P, T) of the best beams."""
        codec = self.codec
        return beam_search(
            model,
            model.own(prompts),
            beams,
            max_tokens=codec.max_completion_tokens,
            eos_ids=codec.eos_ids,
            pad_id=codec.pad_id,
            vocabulary=codec.vocabulary,
        )

    def _decode(
        self,
        model: HiddenStateModel,
        prompts: PromptBatch,
        per_prompt: int,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Token ids (B, T), padded with the end-of-sequence id; T is the task's `max_completion_tokens`."""
        if self.static is None:
            state = model.start(prompts, per_prompt)
        else:
            state = self.static.start(model, prompts, per_prompt)
        head, vocabulary = model.head(), self.codec.vocabulary
        sequences = len(prompts.examples) * per_prompt
        eos_ids = torch.tensor(self.codec.eos_ids, device=prompts.ids_PS.device)
        ids_BT = eos_ids[0].repeat(sequences, self.codec.max_completion_tokens)
        live = torch.arange(sequences, device=ids_BT.device)  # rows of ids_BT that the decoding state holds
        done = torch.zeros_like(live, dtype=torch.bool)
        for position in range(self.codec.max_completion_tokens):
            if position > 0:
                state.step(ids_BT[live, position - 1])
            logits = head.logits(state.hidden_BD, min(vocabulary, head.weight_VD.shape[0]))
            drawn = torch.where(done, eos_ids[0], sampling.draw(logits, generator))
            ids_BT[live, position] = drawn
            done = done | torch.isin(drawn, eos_ids)
            if (position + 1) % CHECK_EVERY.get(ids_BT.device.type, CHECK_EVERY_OTHERWISE):
                continue
            finished = int(done.sum())
            if finished == done.numel():
                return ids_BT
            if finished >= COMPACT_SHARE * done.numel():
                rows = (~done).nonzero().squeeze(1)
                state.keep(rows)
                live, done = live[rows], done[rows]
        return ids_BT


def _sample_by_inversion(probabilities_BV: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token id per row, drawn by inverting the cumulative distribution; shape (B,).

    It takes one random number per row, where torch.multinomial draws one per token of the vocabulary: on a CPU that was
    a tenth of the rollout time of a small model.
    """
    cumulative_BV = probabilities_BV.double().cumsum(dim=-1)
    total_B1 = cumulative_BV[:, -1:]
    draw_B1 = total_B1 * torch.rand(total_B1.shape, dtype=torch.float64, device=total_B1.device, generator=generator)
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))  # the product may round up to the total
    return torch.searchsorted(cumulative_BV, torch.minimum(draw_B1, below_B1), right=True).squeeze(1)


def beam_search(
    model: HiddenStateModel,
    prompts: PromptBatch,
    beams: Beams,
    *,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    vocabulary: int,
) -> Tensor:
    """The best completion of each prompt, ids of shape (P, T), padded after the end of a completion.

    Args:
        model: in evaluation mode and in `generating()`.
        prompts: P prompts, right-padded.
        beams: number of beams and length penalty.
        max_tokens: of a completion.
        eos_ids: end-of-sequence ids.
        pad_id: for padding.
        vocabulary: ids from here on are suppressed.
    """
    inner = model.model
    ids_PS, mask_PS = prompts.ids_PS, prompts.mask_PS
    decoder_only = not inner.config.is_encoder_decoder
    if decoder_only:  # a completion continues its row, so padding has to be on the left
        order_PS = mask_PS.int().argsort(dim=1, stable=True)
        ids_PS, mask_PS = ids_PS.gather(1, order_PS), mask_PS.gather(1, order_PS)
    device = prompts.ids_PS.device if inner.device.type == "meta" else inner.device  # meta: accelerate's hooks move it
    unused = torch.arange(vocabulary, model.head().weight_VD.shape[0]).tolist()
    generated = inner.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids_PS.to(device),
        attention_mask=mask_PS.long().to(device),
        num_beams=beams.count,
        length_penalty=beams.length_penalty,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_tokens,
        eos_token_id=list(eos_ids),
        pad_token_id=pad_id,
        suppress_tokens=unused or None,
    )
    start = ids_PS.shape[1] if decoder_only else 1
    return generated[:, start:].to(prompts.ids_PS.device)
