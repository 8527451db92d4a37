"""Sample once -> Rollout; and dataset references as a Rollout of the same shape.

The prompt is read once for its K completions, finished rows leave the batch while decoding, and sampling happens in
evaluation mode without gradient: the paper does not differentiate through y ~ p_S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.masking import completion_mask
from gkd_rl.types import Example, PromptBatch, Rollout, Source

COMPACT_SHARE = 0.25  # finished rows leave once they are this share of the running batch


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
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)


GREEDY = Sampling(temperature=0.0)


class TextCodec:
    """Text <-> padded ids, with the length limits of the task."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        max_completion_tokens: int,
        device: torch.device,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.device = device
        self.eos_ids = (int(tokenizer.eos_token_id),)  # pyright: ignore[reportArgumentType]
        self.pad_id = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        self.vocabulary = len(tokenizer)

    def prompts(self, examples: Sequence[Example]) -> PromptBatch:
        """Tokenise and right-pad; longer prompts are cut to `max_prompt_tokens`."""
        encoded = self._encode([example.prompt for example in examples], self.max_prompt_tokens)
        return PromptBatch(examples, encoded["input_ids"], encoded["attention_mask"].bool())

    def references(self, examples: Sequence[Example]) -> Rollout:
        """The dataset's completions as a Rollout, one per prompt."""
        encoded = self._encode([example.reference for example in examples], self.max_completion_tokens)
        ids_BT = encoded["input_ids"]
        mask_BT = encoded["attention_mask"].bool()
        _, truncated_B = completion_mask(ids_BT, self.eos_ids)
        return Rollout(
            prompts=self.prompts(examples),
            prompt_index_B=torch.arange(len(examples), device=self.device),
            ids_BT=ids_BT,
            mask_BT=mask_BT,
            truncated_B=truncated_B,
            texts=[example.reference for example in examples],
            source=Source.dataset,
        )

    def decode(self, ids_BT: Tensor, mask_BT: Tensor) -> list[str]:
        """Completions as text, without special tokens and without what follows the end."""
        rows = [ids[mask].tolist() for ids, mask in zip(ids_BT.cpu(), mask_BT.cpu(), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _encode(self, texts: list[str], max_length: int):
        """Right-padded ids of texts; the end-of-sequence token stays when a text is cut."""
        return self.tokenizer(
            texts, padding=True, padding_side="right", truncation=True, max_length=max_length, return_tensors="pt"
        ).to(self.device)


class Sampler:
    """Draws completions from a model."""

    def __init__(self, codec: TextCodec, sampling: Sampling) -> None:
        self.codec = codec
        self.sampling = sampling

    @torch.no_grad()
    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        """`per_prompt` completions of every prompt, up to the task's `max_completion_tokens`.

        Args:
            model: sampled in evaluation mode; its mode is restored.
            prompts: P prompts.
            per_prompt: K.
            generator: on the model's device; None only for greedy decoding.
        """
        training = model.training
        model.eval()
        ids_BT = self._decode(model, prompts, per_prompt, generator)
        model.train(training)
        mask_BT, truncated_B = completion_mask(ids_BT, self.codec.eos_ids)
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

    def _decode(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Tensor:
        """Token ids (B, T), padded with the end-of-sequence id after it; T is the longest completion."""
        state = model.architecture.start(model.model, prompts, per_prompt)
        head, vocabulary = model.head(), self.codec.vocabulary
        sequences = len(prompts.examples) * per_prompt
        eos_ids = torch.tensor(self.codec.eos_ids, device=prompts.ids_PS.device)
        ids_BT = eos_ids[0].repeat(sequences, self.codec.max_completion_tokens)
        live = torch.arange(sequences, device=ids_BT.device)  # rows of ids_BT that the state holds
        done = torch.zeros_like(live, dtype=torch.bool)
        last = torch.full_like(live, model.architecture.start_id(model.model))
        for position in range(self.codec.max_completion_tokens):
            logits = head.logits(state.step(last), min(vocabulary, head.weight_VD.shape[0]))
            last = torch.where(done, eos_ids[0], self.sampling.draw(logits, generator))
            ids_BT[live, position] = last
            done = done | torch.isin(last, eos_ids)
            finished = int(done.sum())
            if finished == done.numel():
                return ids_BT[:, : position + 1]
            if finished >= COMPACT_SHARE * done.numel():
                rows = (~done).nonzero().squeeze(1)
                state.keep(rows)
                live, last, done = live[rows], last[rows], done[rows]
        return ids_BT
