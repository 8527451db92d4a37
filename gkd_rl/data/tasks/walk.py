"""The number walk: a long chain of steps with more than one right answer. Rows are generated."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gkd_rl.data.embedded.tokenizer import word_tokenizer
from gkd_rl.data.embedded.walk import generate, vocabulary
from gkd_rl.errors import DataError
from gkd_rl.types import Example


@dataclass(frozen=True)
class Walk:
    """Rows of the number walk (`gkd_rl.data.embedded.walk`).

    Attributes:
        seed: of the generated walks.
        train_size: rows of the train split; likewise the other sizes.
        targets: targets in each walk, 1 to max_prompt_tokens - 4.
        max_prompt_tokens: longest prompt.
        max_completion_tokens: longest completion.

    Raises:
        DataError: `targets` is out of range.
    """

    seed: int
    train_size: int
    validation_size: int
    test_size: int
    targets: int
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.targets <= self.max_prompt_tokens - 4:
            raise DataError(
                f"task.targets={self.targets}: it takes a whole number from 1 to task.max_prompt_tokens - 4 = "
                f"{self.max_prompt_tokens - 4}."
            )

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        walks = generate(split, sizes[split], self.seed, self.targets)
        return [Example(prompt=walk.prompt, reference=walk.path, columns={}) for walk in walks]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One token for each word of prompts and answers."""
        return word_tokenizer(vocabulary())
