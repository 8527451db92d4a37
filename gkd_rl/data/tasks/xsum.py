"""Summarisation: XSum (GKD paper, section 4.1), CNN/DailyMail, and any rows with a document and a summary.

Rows are generated (`gkd_rl.data.embedded.news`), or come from local files or the Hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gkd_rl.data.embedded.news import generate
from gkd_rl.data.embedded.tokenizer import build_tokenizer
from gkd_rl.data.rows import Row
from gkd_rl.data.task import DataSource
from gkd_rl.types import Example


@dataclass(frozen=True)
class Xsum(DataSource):
    """Rows of a summarisation task. Rewards read the column `document`, the article without the prefix.

    Attributes:
        seed: of the generated articles.
        document_column: column of the article.
        summary_column: column of the reference.
        prompt_prefix: text before every article.
        max_prompt_tokens: longer prompts are truncated at their end.
        max_completion_tokens: longest completion.
    """

    seed: int
    document_column: str
    summary_column: str
    prompt_prefix: str
    max_prompt_tokens: int
    max_completion_tokens: int

    @property
    def columns(self) -> dict[str, str]:
        """Setting -> name of the column that it selects."""
        return {"task.document_column": self.document_column, "task.summary_column": self.summary_column}

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, or its rows cannot be used.
        """
        size = self.size(split)
        if self.origin == "embedded":
            items = generate(split, size, self.seed)
            return [self._example(item.article, item.summary) for item in items]
        return self.rows.examples(split, self._parse, size)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the generated news; None for other data, which need the checkpoint's tokenizer."""
        return build_tokenizer() if self.origin == "embedded" else None

    def _parse(self, row: Row) -> Example:
        return self._example(row.text(self.document_column), row.text(self.summary_column))

    def _example(self, document: str, summary: str) -> Example:
        return Example(prompt=self.prompt_prefix + document, reference=summary, columns={"document": document})
