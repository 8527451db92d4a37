"""Translation, English to German (WMT14, GKD paper, section 4.2). Generated sentences, local files or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gkd_rl.embedded.german import generate
from gkd_rl.embedded.tokenizer import subword_tokenizer
from gkd_rl.errors import DataError
from gkd_rl.tasks.rows import SPLITS, Row, RowReport, RowRules, TaskRows
from gkd_rl.types import Example

TYPE_THIS = "task.data_files={train: a.jsonl, validation: b.jsonl, test: c.jsonl}"


@dataclass(frozen=True)
class Wmt:
    """Rows of a translation task. The reward's column is `accepted`: all translations that are known to be right.

    Attributes:
        data: where rows come from without `data_files`.
        seed: of the generated sentences.
        train_size: generated train rows; for files and the Hub the most that are taken (likewise the other sizes).
        data_files: split -> file.
        hub_id: data set, for data=hub.
        hub_config: its configuration, the pair of languages.
        source_column: column of the sentence; `translation.en` is `en` in the column `translation`.
        target_column: column of its translation.
        id_column: column that no two rows share; None looks for no duplicates.
        on_malformed: rows that cannot be used: "drop" or "refuse".
        max_characters: rows with a longer text cannot be used.
        prompt_prefix: put before every sentence.
        subwords: size of the vocabulary that is learnt from the generated sentences.
        max_prompt_tokens: longer sentences are cut.
        max_completion_tokens: longest translation.
    """

    data: Literal["embedded", "files", "hub"]
    seed: int
    train_size: int
    validation_size: int
    test_size: int
    data_files: dict[str, str] | None
    hub_id: str
    hub_config: str | None
    source_column: str
    target_column: str
    id_column: str | None
    on_malformed: Literal["drop", "refuse"]
    max_characters: int
    prompt_prefix: str
    subwords: int
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        if self.data not in ("embedded", "files", "hub"):
            raise DataError(f"task.data={self.data}: task.data takes embedded, files or hub.")
        missing = [split for split in SPLITS if split not in (self.data_files or {})]
        if self.origin == "files" and missing:
            raise DataError(f"task.data=files needs task.data_files.{missing[0]}: type '{TYPE_THIS}'.")
        _ = self.rows  # its settings are refused here

    @property
    def origin(self) -> str:
        """Where rows come from: the files that are given, else what `data` says."""
        return "files" if self.data_files else self.data

    @cached_property
    def rows(self) -> TaskRows:
        """The rows of files or the Hub."""
        rules = RowRules(self.on_malformed, self.max_characters, self.id_column)
        columns = {"task.source_column": self.source_column, "task.target_column": self.target_column}
        return TaskRows(self.data_files, self.hub_id, self.hub_config, rules, columns)

    @property
    def row_reports(self) -> dict[str, RowReport]:
        """Split -> what became of its rows, of the splits that were read from files or the Hub."""
        return self.rows.reports

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, or its rows cannot be used.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        if self.origin == "embedded":
            pairs = generate(split, sizes[split], self.seed)
            return [self._example(pair.english, pair.german, list(pair.accepted)) for pair in pairs]
        return self.rows.examples(split, self._parse, sizes[split])

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Subwords of the generated train sentences; None for other data, where the checkpoint must bring its own."""
        if self.origin != "embedded":
            return None
        texts = [text for one in self.examples("train") for text in (one.prompt, one.reference)]
        return subword_tokenizer(texts, self.subwords, split_digits=True)

    def _parse(self, row: Row) -> Example:
        source, target = row.text(self.source_column), row.text(self.target_column)
        return self._example(source, target, [target])

    def _example(self, source: str, target: str, accepted: list[str]) -> Example:
        return Example(prompt=self.prompt_prefix + source, reference=target, columns={"accepted": accepted})
