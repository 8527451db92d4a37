"""Prompts as a user's turn in a chat template, cut inside the user's text, never in the template."""

from __future__ import annotations

from bisect import bisect_right

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import DataError, ModelError

ANSWER = "answer"  # stands for any answer while the template is asked what follows one


class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        end_id: the token that ends an answer in the template; None where it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
        """Refuse a tokenizer without a template, or with one that cannot hold a user's turn and its answer.

        Raises:
            ModelError: with the setting `key`.
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

    def ids(self, prompt: str, longest: int) -> list[int]:
        """Token ids of the prompt as a user's turn, and of the head of the answer; at most `longest`.

        Raises:
            DataError: the template alone is longer.
        """
        ids = self._tokenise(self._text(prompt))
        if len(ids) <= longest:
            return ids

        def length(characters: int) -> int:
            return len(self._tokenise(self._text(prompt[:characters])))

        # the first cut that is too long is found by halving; one before it may be too long only if tokens merge
        fits = bisect_right(range(len(prompt)), longest, key=length) - 1
        while fits >= 0 and length(fits) > longest:
            fits -= 1
        if fits < 0:
            raise DataError(
                f"task.max_prompt_tokens={longest} is less than the {length(0)} tokens of the chat template alone: "
                f"set task.max_prompt_tokens to more than {length(0)}."
            )
        return self._tokenise(self._text(prompt[:fits]))

    def length(self, prompt: str) -> int:
        """Token ids of the whole prompt as a user's turn."""
        return len(self._tokenise(self._text(prompt)))

    def _text(self, prompt: str) -> str:
        turn = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _tokenise(self, text: str) -> list[int]:
        """Ids without the tokenizer's own special tokens: the template has written its start already."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens that text is not made of."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)
