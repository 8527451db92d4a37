"""A scalar reward model: one number for a prompt and its completion, as trl.RewardTrainer trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from reward_models.models.checkpoint import Checkpoint, in_batches, longest_input

FORMATS = ("pair", "text", "chat")


class ScalarReward:
    """The output of a sequence classifier with one label, without a bound. Nothing is loaded before the first call.

    Args:
        checkpoint: the model.
        format: how prompt and completion are encoded: "pair" (two segments), "text" (concatenated, with the
            end-of-sequence token: what `reward_models.train reward=scalar` trains on), or "chat" (the chat template).
        batch_size: inputs in one forward pass.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self, checkpoint: Checkpoint, format: Literal["pair", "text", "chat"] = "text", batch_size: int = 32
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"format={format}: takes one of {', '.join(FORMATS)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: takes a whole number >= 1")
        self.checkpoint, self.format, self.batch_size = checkpoint, format, batch_size
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Rewards of B completions, [B].

        Raises:
            ValueError: an input is longer than the model's limit, or the checkpoint is not a scalar reward model.
        """
        model, tokenizer = self._load()
        inputs = [
            encode(tokenizer, self.format, prompt, text) for prompt, text in zip(prompts, completions, strict=True)
        ]
        lengths = [len(one["input_ids"]) for one in inputs]
        longest = longest_input(model, tokenizer, self.checkpoint.max_tokens)
        if max(lengths, default=0) > longest:
            raise ValueError(
                f"a prompt with its completion has {max(lengths)} tokens; the reward model takes {longest}."
            )

        def score(rows: list[int]) -> torch.Tensor:
            batch = tokenizer.pad({key: [inputs[i][key] for i in rows] for key in inputs[0]}, return_tensors="pt")
            return model(**batch.to(model.device)).logits[:, 0]

        return in_batches(lengths, self.batch_size, score)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            tokenizer = self.checkpoint.tokenizer()
            if self.format == "chat" and tokenizer.chat_template is None:
                raise ValueError(
                    f"format=chat: {self.checkpoint.path} has no chat template; set format to text or pair."
                )
            model = self.checkpoint.model(AutoModelForSequenceClassification)
            if model.config.num_labels != 1:
                raise ValueError(
                    f"path={self.checkpoint.path}: it has {model.config.num_labels} labels, one is needed."
                )
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
            self._loaded = model, tokenizer
        return self._loaded


def encode(tokenizer: PreTrainedTokenizerBase, format: str, prompt: str, completion: str) -> Any:
    """Token ids and attention mask of a prompt with its completion; `format` as in `ScalarReward`."""
    if format == "pair":
        return tokenizer(prompt, completion)
    if format == "text":
        text = prompt + completion
        return tokenizer(text if text.endswith(str(tokenizer.eos_token)) else text + str(tokenizer.eos_token))
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
