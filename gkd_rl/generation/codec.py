"""Text <-> token ids: prompts, references and completions with the task's length limits, and chat templates.

`TextCodec` is the only place where text is tokenised or decoded for training and evaluation. With a `ChatTemplate` the
prompt is a user's turn; a prompt that is too long is truncated inside the user's text, never in the template.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import DataError, ModelError
from gkd_rl.types import Example, PromptBatch, Rollout, Source

ANSWER = "answer"  # placeholder, to find the token that follows an answer in the template


class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        end_id: the special token that ends an answer in the template; None where there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
        """Check the template of a tokenizer.

        Args:
            tokenizer: the model's.
            key: the setting that asks for the template, for messages: student.chat or teacher.chat.

        Raises:
            ModelError: there is no template, or it fails on a user's turn with an answer.
        """
        self._tokenizer = tokenizer
        instead = f"Set {key}=false, or {key.rpartition('.')[0]}.tokenizer to one with a chat template."
        if not tokenizer.chat_template:
            raise ModelError(f"{key}=true: the tokenizer has no chat template. {instead}")
        try:
            turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
            conversation = str(tokenizer.apply_chat_template(turns, tokenize=False))
            self._text("")
        except TemplateError as error:
            raise ModelError(f"{key}=true: the tokenizer's chat template fails ({error}). {instead}") from error
        after = self._tokenise(conversation.rpartition(ANSWER)[2].lstrip())
        self.end_id = after[0] if after and after[0] in _special_ids(tokenizer) else None

    def ids(self, prompt: str, max_tokens: int) -> list[int]:
        """Token ids of the prompt as a user's turn, with the start of the answer; at most `max_tokens`.

        Raises:
            DataError: the template alone is longer.
        """
        ids = self._tokenise(self._text(prompt))
        if len(ids) <= max_tokens:
            return ids

        def length(characters: int) -> int:
            return len(self._tokenise(self._text(prompt[:characters])))

        # bisection over the number of characters; where tokens merge, the length is not monotone, hence the loop
        fits = bisect_right(range(len(prompt)), max_tokens, key=length) - 1
        while fits >= 0 and length(fits) > max_tokens:
            fits -= 1
        if fits < 0:
            raise DataError(
                f"task.max_prompt_tokens={max_tokens} is less than the {length(0)} tokens of the chat template alone: "
                f"set task.max_prompt_tokens to more than {length(0)}."
            )
        return self._tokenise(self._text(prompt[:fits]))

    def length(self, prompt: str) -> int:
        """Number of tokens of the whole prompt as a user's turn."""
        return len(self._tokenise(self._text(prompt)))

    def _text(self, prompt: str) -> str:
        turn = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _tokenise(self, text: str) -> list[int]:
        """Ids without the tokenizer's special tokens: the template contains them."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of special tokens: those that no text is encoded to."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


class TextCodec:
    """Text <-> padded ids, with the length limits of the task.

    Encoder-decoder: prompt and completion are separate texts, each with the special tokens that the tokenizer adds.
    Decoder-only: they are two parts of one sequence. The prompt has the tokenizer's start token, if there is one, and
    no end; the completion has the end-of-sequence token and no other special token. With a chat template the prompt is
    a user's turn, and the completion is the answer with the end of its turn.

    Attributes:
        eos_ids: ids that end a completion; the first is appended to references.
        pad_id: pads rows. It may be one of `eos_ids`: only masks distinguish padding.
        vocabulary: number of tokens that can be sampled; an embedding may have more rows.
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
            max_prompt_tokens: longer prompts are truncated.
            max_completion_tokens: longer completions are truncated.
            device: of the ids.
            decoder_only: completions continue their prompts.
            eos_ids: further end-of-sequence ids, from the model's configuration.
            chat: renders prompts; None uses them as they are.

        Raises:
            ModelError: there is no end-of-sequence token.
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
        """Tokenised and right-padded prompts, truncated to `max_prompt_tokens`.

        Raises:
            DataError: a prompt has no token.
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
                raise DataError(f"prompt {text!r} has no tokens: it needs at least one. Give the prompt some text.")
        return PromptBatch(examples, *self._padded(ids))

    def references(self, examples: Sequence[Example]) -> Rollout:
        """The data set's references as a Rollout, one per prompt; a truncated reference has an end as well."""
        texts = [example.reference for example in examples]
        if self.decoder_only:
            tokens = self._tokenise(texts, self.max_completion_tokens - 1, add_special_tokens=False)
            ids = [[*row, self.eos_ids[0]] for row in tokens]
        else:
            ids = self._tokenise(texts, self.max_completion_tokens)
        return replace(self.completions(examples, ids, Source.dataset), texts=texts)

    def lengths(self, examples: Sequence[Example]) -> tuple[list[int], list[int]]:
        """Number of tokens of every prompt, and of every reference with its end, without truncation."""
        prompts = [example.prompt for example in examples]
        if self.chat is not None:
            prompt_tokens = [self.chat.length(text) for text in prompts]
        else:
            removed_end = int(self.decoder_only and self._adds_end)
            prompt_tokens = [len(row) - removed_end for row in self._tokenise(prompts, None)]
        references = [example.reference for example in examples]
        tokens = self._tokenise(references, None, add_special_tokens=not self.decoder_only)
        return prompt_tokens, [len(row) + int(self.decoder_only) for row in tokens]

    def completions(self, examples: Sequence[Example], ids: Sequence[Sequence[int]], source: Source) -> Rollout:
        """Given completions as a Rollout.

        Args:
            examples: P rows; the prompts.
            ids: token ids of one completion per prompt; what follows the first end is dropped.
            source: of the completions.
        """
        ends = [next((i + 1 for i, token in enumerate(row) if token in self.eos_ids), None) for row in ids]
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
        """Completions as B texts, without special tokens and surrounding white space."""
        rows = [ids[mask].tolist() for ids, mask in zip(ids_BT.cpu(), mask_BT.cpu(), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _tokenise(self, texts: list[str], max_length: int | None, add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of texts; the tokenizer keeps its special tokens when it truncates."""
        truncation = max_length is not None
        encoded = self.tokenizer(
            texts, truncation=truncation, max_length=max_length, add_special_tokens=add_special_tokens, verbose=False
        )
        return encoded["input_ids"]  # pyright: ignore[reportReturnType]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and their mask."""
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        ids = pad_sequence(tensors, batch_first=True, padding_value=self.pad_id)
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in tensors], batch_first=True)
        return ids.to(self.device), mask.to(self.device)
