"""Translation from English to German (WMT14; GKD paper, section 4.2). Generated sentences, local files or the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gkd_rl.data.embedded.german import generate
from gkd_rl.data.embedded.tokenizer import subword_tokenizer
from gkd_rl.data.rows import Row
from gkd_rl.data.task import DataSource
from gkd_rl.types import Example


@dataclass(frozen=True)
class Wmt(DataSource):
    """Rows of a translation task. Rewards read the column `accepted`: all translations that are known to be right.

    Attributes:
        seed: of the generated sentences.
        source_column: column of the sentence; `translation.en` is the field `en` of the column `translation`.
        target_column: column of its translation.
        prompt_prefix: text before every sentence.
        subwords: size of the vocabulary that is trained on the generated sentences.
        max_prompt_tokens: longer prompts are truncated.
        max_completion_tokens: longest completion.
    """

    seed: int
    source_column: str
    target_column: str
    prompt_prefix: str
    subwords: int
    max_prompt_tokens: int
    max_completion_tokens: int

    @property
    def columns(self) -> dict[str, str]:
        """Setting -> name of the column that it selects."""
        return {"task.source_column": self.source_column, "task.target_column": self.target_column}

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, or its rows cannot be used.
        """
        size = self.size(split)
        if self.origin == "embedded":
            pairs = generate(split, size, self.seed)
            return [self._example(pair.english, pair.german, list(pair.accepted)) for pair in pairs]
        return self.rows.examples(split, self._parse, size)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Subwords trained on the generated train split; None for other data, which need the checkpoint's tokenizer."""
        if self.origin != "embedded":
            return None
        texts = [text for one in self.examples("train") for text in (one.prompt, one.reference)]
        return subword_tokenizer(texts, self.subwords, split_digits=True)

    def _parse(self, row: Row) -> Example:
        source, target = row.text(self.source_column), row.text(self.target_column)
        return self._example(source, target, [target])

    def _example(self, source: str, target: str, accepted: list[str]) -> Example:
        return Example(prompt=self.prompt_prefix + source, reference=target, columns={"accepted": accepted})
