"""Sample once -> Rollout; and dataset references as a Rollout of the same shape.

The prompt is read once for its K completions, finished rows leave the batch while decoding, and sampling happens in
evaluation mode without gradient: the paper does not differentiate through y ~ p_S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.beam_search import Beams, beam_search
from gkd_rl.chat import ChatTemplate
from gkd_rl.errors import DataError, ModelError
from gkd_rl.masking import completion_mask
from gkd_rl.static_decoding import StaticDecoding
from gkd_rl.types import Example, PromptBatch, Rollout, Source

COMPACT_SHARE = 0.25  # finished rows leave once they are this share of the running batch
LOOK_EVERY = {"cpu": 1}  # tokens between two looks at who has finished; a GPU is waited for to look
LOOK_EVERY_ELSEWHERE = 8


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
        return _drawn(logits.softmax(dim=-1), generator)


def _drawn(chances_BV: Tensor, generator: torch.Generator | None) -> Tensor:
    """A word of each row with its chance, by inverting the cumulated chances; shape (B,).

    One random number a row, where torch.multinomial draws one a word: a tenth of a small model's rollout on a CPU.
    """
    upto_BV = chances_BV.double().cumsum(dim=-1)
    total_B1 = upto_BV[:, -1:]
    at_B1 = total_B1 * torch.rand(total_B1.shape, dtype=torch.float64, device=total_B1.device, generator=generator)
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))  # the product may round up to the total
    return torch.searchsorted(upto_BV, torch.minimum(at_B1, below_B1), right=True).squeeze(1)


GREEDY = Sampling(temperature=0.0)


class TextCodec:
    """Text <-> padded ids, with the length limits of the task.

    For an encoder-decoder, prompt and completion are texts of their own, each with the special tokens that the
    tokenizer adds. For a decoder-only model they are two parts of one: the prompt has the tokenizer's start token, if
    there is one, and no end; the completion has the end-of-sequence token and nothing else. With a chat template the
    prompt is a user's turn, and the completion the answer up to the end of its turn.

    Attributes:
        eos_ids: ids that end a completion; the first ends references.
        pad_id: fills up rows. It may be one of `eos_ids`: masks alone tell what is padding.
        vocabulary: words that can be sampled; an embedding may have more rows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        max_completion_tokens: int,
        device: torch.device,
        *,
        decoder_only: bool = False,
        eos_ids: Sequence[int] = (),
        chat: ChatTemplate | None = None,
    ) -> None:
        """Make the codec of a tokenizer.

        Args:
            tokenizer: the model's.
            max_prompt_tokens: longer prompts are cut.
            max_completion_tokens: longer completions are cut.
            device: of the ids.
            decoder_only: completions continue their prompts.
            eos_ids: what else ends a completion, from the model's configuration.
            chat: renders prompts.

        Raises:
            ModelError: nothing ends a completion.
        """
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.device = device
        self.decoder_only = decoder_only
        self.chat = chat
        ends = (None if chat is None else chat.end_id, tokenizer.eos_token_id, *eos_ids)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(int(end) for end in ends if isinstance(end, int)))
        if not self.eos_ids:
            raise ModelError(
                "neither the tokenizer nor the model's configuration names an end-of-sequence token: choose a "
                "tokenizer that has an eos_token."
            )
        pad_id = tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad_id is None else int(pad_id)  # pyright: ignore[reportArgumentType]
        self.vocabulary = len(tokenizer)
        self._adds_end = self._tokenise(["a"], None)[0][-1:] == [tokenizer.eos_token_id]

    def prompts(self, examples: Sequence[Example]) -> PromptBatch:
        """Tokenise and right-pad; longer prompts are cut to `max_prompt_tokens`.

        Raises:
            DataError: a prompt without any token.
        """
        texts = [example.prompt for example in examples]
        if self.chat is not None:
            ids = [self.chat.ids(text, self.max_prompt_tokens) for text in texts]
        elif self.decoder_only and self._adds_end:
            ids = [row[:-1] for row in self._tokenise(texts, self.max_prompt_tokens + 1)]
        else:
            ids = self._tokenise(texts, self.max_prompt_tokens)
        for text, row in zip(texts, ids, strict=True):
            if not row:
                raise DataError(f"prompt {text!r} has no tokens: a model continues at least one, give it some text.")
        return PromptBatch(examples, *self._padded(ids))

    def references(self, examples: Sequence[Example]) -> Rollout:
        """The dataset's completions as a Rollout, one per prompt; a text that is cut still ends."""
        texts = [example.reference for example in examples]
        if self.decoder_only:
            words = self._tokenise(texts, self.max_completion_tokens - 1, add_special_tokens=False)
            ids = [[*row, self.eos_ids[0]] for row in words]
        else:
            ids = self._tokenise(texts, self.max_completion_tokens)
        return replace(self.completions(examples, ids, Source.dataset), texts=texts)

    def lengths(self, examples: Sequence[Example]) -> tuple[list[int], list[int]]:
        """Tokens of every prompt and of every reference with its end, as they were if nothing were cut."""
        prompts = [example.prompt for example in examples]
        if self.chat is not None:
            read = [self.chat.length(text) for text in prompts]
        else:
            own_end = int(self.decoder_only and self._adds_end)
            read = [len(row) - own_end for row in self._tokenise(prompts, None)]
        references = [example.reference for example in examples]
        words = self._tokenise(references, None, add_special_tokens=not self.decoder_only)
        return read, [len(row) + int(self.decoder_only) for row in words]

    def completions(self, examples: Sequence[Example], ids: Sequence[Sequence[int]], source: Source) -> Rollout:
        """Completions that are given as ids, one per prompt, as a Rollout; what follows their first end is dropped."""
        ends = [next((i + 1 for i, word in enumerate(row) if word in self.eos_ids), None) for row in ids]
        ids_BT, mask_BT = self._padded([row[:end] for row, end in zip(ids, ends, strict=True)])
        return Rollout(
            prompts=self.prompts(examples),
            prompt_index_B=torch.arange(len(examples), device=self.device),
            ids_BT=ids_BT,
            mask_BT=mask_BT,
            truncated_B=torch.tensor([end is None for end in ends], device=self.device),
            texts=self.decode(ids_BT, mask_BT),
            source=source,
        )

    def decode(self, ids_BT: Tensor, mask_BT: Tensor) -> list[str]:
        """Completions as text, without special tokens and without what follows the end."""
        rows = [ids[mask].tolist() for ids, mask in zip(ids_BT.cpu(), mask_BT.cpu(), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _tokenise(self, texts: list[str], max_length: int | None, add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of texts; the tokenizer's special tokens stay when a text is cut."""
        cut = max_length is not None
        encoded = self.tokenizer(
            texts, truncation=cut, max_length=max_length, add_special_tokens=add_special_tokens, verbose=False
        )
        return encoded["input_ids"]  # pyright: ignore[reportReturnType]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and their mask."""
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        ids = pad_sequence(tensors, batch_first=True, padding_value=self.pad_id)
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in tensors], batch_first=True)
        return ids.to(self.device), mask.to(self.device)


class Sampler:
    """Takes completions from a model: drawn, greedy, or the likeliest of a beam search."""

    def __init__(self, codec: TextCodec, sampling: Sampling | Beams, static: StaticDecoding | None = None) -> None:
        """Make a sampler.

        Args:
            codec: text <-> ids.
            sampling: how completions are taken.
            static: decodes in its buffers of fixed length; beams do not.
        """
        self.codec = codec
        self.sampling = sampling
        self.static = static

    @torch.no_grad()
    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        """`per_prompt` completions of every prompt, up to the task's `max_completion_tokens`.

        Args:
            model: sampled in evaluation mode; its mode is restored.
            prompts: P prompts.
            per_prompt: K.
            generator: on the model's device; None only for greedy decoding and beams, which have one completion.
        """
        training = model.training
        model.eval()
        with model.generating():
            if isinstance(self.sampling, Beams):
                ids_BT = self._search(model, prompts, self.sampling)
            else:
                ids_BT = self._decode(model, prompts, per_prompt, self.sampling, generator)
        model.train(training)
        mask_BT, truncated_B = completion_mask(ids_BT, self.codec.eos_ids)
        longest = int(mask_BT.sum(dim=1).max())
        ids_BT, mask_BT = ids_BT[:, :longest], mask_BT[:, :longest]
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

    def _search(self, model: HiddenStateModel, prompts: PromptBatch, beams: Beams) -> Tensor:
        """Token ids (P, T) of the best beams."""
        codec = self.codec
        return beam_search(
            model,
            model.own(prompts),
            beams,
            longest=codec.max_completion_tokens,
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
        """Token ids (B, T), padded with the end-of-sequence id after it; T is the limit of the task."""
        if self.static is None:
            state = model.start(prompts, per_prompt)
        else:
            state = self.static.start(model, prompts, per_prompt)
        head, vocabulary = model.head(), self.codec.vocabulary
        sequences = len(prompts.examples) * per_prompt
        eos_ids = torch.tensor(self.codec.eos_ids, device=prompts.ids_PS.device)
        ids_BT = eos_ids[0].repeat(sequences, self.codec.max_completion_tokens)
        live = torch.arange(sequences, device=ids_BT.device)  # rows of ids_BT that the state holds
        done = torch.zeros_like(live, dtype=torch.bool)
        for position in range(self.codec.max_completion_tokens):
            if position > 0:
                state.step(ids_BT[live, position - 1])
            logits = head.logits(state.hidden_BD, min(vocabulary, head.weight_VD.shape[0]))
            drawn = torch.where(done, eos_ids[0], sampling.draw(logits, generator))
            ids_BT[live, position] = drawn
            done = done | torch.isin(drawn, eos_ids)
            if (position + 1) % LOOK_EVERY.get(ids_BT.device.type, LOOK_EVERY_ELSEWHERE):
                continue
            finished = int(done.sum())
            if finished == done.numel():
                return ids_BT
            if finished >= COMPACT_SHARE * done.numel():
                rows = (~done).nonzero().squeeze(1)
                state.keep(rows)
                live, done = live[rows], done[rows]
        return ids_BT
