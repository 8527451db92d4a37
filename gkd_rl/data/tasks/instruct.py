"""Instruction tuning on a mixture of sources (FLAN; GKD paper, section 4.4): generators, files, data sets on the Hub.

Each source has a weight, its share of the rows as long as it has enough. The generators contribute their short and
simple rows, so that models of some 100,000 weights can learn all kinds at once; each has the columns that its reward
reads. Files and data sets have an instruction, optionally a context, and a response, as Dolly and Alpaca do. A source
with train rows only is divided into train, validation and test by the CRC-32 of the prompt.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from gkd_rl.data.embedded import german, instructions, news, word_problems
from gkd_rl.data.embedded.splits import split_of
from gkd_rl.data.embedded.tokenizer import subword_tokenizer
from gkd_rl.data.rows import SPLITS, Row, RowReport, RowRules, TaskRows
from gkd_rl.errors import DataError
from gkd_rl.types import Example


def _news(split: str, size: int, seed: int) -> list[Example]:
    return [
        Example(f"Summarise: {item.article}", item.summary, {"kind": "news", "document": item.article})
        for item in news.generate(split, size, seed, distractors=0)
    ]


def _translation(split: str, size: int, seed: int) -> list[Example]:
    return [
        Example(f"Translate: {one.english}", one.german, {"kind": "translation", "accepted": list(one.accepted)})
        for one in german.generate(split, size, seed, simple=True)
    ]


def _word_problems(split: str, size: int, seed: int) -> list[Example]:
    problems = word_problems.generate(split, size, seed, min_operations=1, max_operations=2, distractors=0, largest=20)
    return [
        Example(f"Solve: {p.question}", p.plain_solution, {"kind": "word_problems", "final_answer": str(p.answer)})
        for p in problems
    ]


def _instructions(split: str, size: int, seed: int) -> list[Example]:
    return [
        Example(one.prompt, one.answer, {"kind": "instructions", "instructions": list(one.checks)})
        for one in instructions.generate(split, size, seed)
    ]


GENERATORS: dict[str, Callable[[str, int, int], list[Example]]] = {
    "news": _news,
    "translation": _translation,
    "word_problems": _word_problems,
    "instructions": _instructions,
}


FILES = "files"  # name of the source that `data_files` makes


@dataclass(frozen=True)
class SourceSettings:
    """Where the rows of one data set are, and their columns.

    Attributes:
        data_files: split -> file, at least train; None reads the Hub.
        hub_id: data set on the Hub.
        hub_config: its configuration, if it has several.
        instruction_column: column of the instruction.
        context_column: column of the context, which may be missing or empty.
        response_column: column of the response.
    """

    data_files: Mapping[str, str] | None
    hub_id: str
    hub_config: str | None
    instruction_column: str
    context_column: str
    response_column: str


@dataclass(frozen=True)
class Instruct:
    """Rows of the mixture. The column `kind` has the name of a row's source, which selects its reward.

    Attributes:
        seed: of the generators and of the order of the rows.
        train_size: rows of the train split, fewer if the sources have fewer; likewise the other sizes.
        mixture: source -> weight >= 0; the sources are the keys of `GENERATORS` and of `sources`.
        sources: name -> fields of `SourceSettings`.
        data_files: split -> file; replaces the mixture by one source.
        instruction_column: column of `data_files`; likewise context_column and response_column.
        prompt_template: the prompt, with {instruction} and {context}.
        id_column: as in `DataSource`; likewise on_malformed and max_characters.
        subwords: size of the vocabulary that is trained on a mixture of generators.
        max_prompt_tokens: longer prompts are truncated.
        max_completion_tokens: longest completion.

    Raises:
        DataError: a setting is out of range, or a source is unknown.
    """

    seed: int
    train_size: int
    validation_size: int
    test_size: int
    mixture: dict[str, float]
    sources: dict[str, dict[str, Any]]
    data_files: dict[str, str] | None
    instruction_column: str
    context_column: str
    response_column: str
    prompt_template: str
    id_column: str | None
    on_malformed: Literal["drop", "refuse"]
    max_characters: int
    subwords: int
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        if "{instruction}" not in self.prompt_template:
            raise DataError(
                f"task.prompt_template={self.prompt_template!r}: it takes a text with {{instruction}} in it, and "
                "{context} if there is one."
            )
        if not self.data_files:
            known = [*GENERATORS, *self.sources]
            for name, weight in self.mixture.items():
                if name not in known:
                    raise DataError(f"task.mixture.{name}: there is no such source; sources are {', '.join(known)}.")
                if weight < 0:
                    raise DataError(f"task.mixture.{name}={weight}: a weight takes a number >= 0.")
            if not any(self.mixture.values()):
                raise DataError(
                    f"task.mixture={self.mixture}: at least one weight must be above 0, "
                    "e.g. 'task.mixture={news: 1, translation: 2}'."
                )
        for split in (self.data_files or {}).keys() - set(SPLITS):
            raise DataError(f"task.data_files.{split}: there is no such split; it takes {', '.join(SPLITS)}.")
        if self.data_files and "train" not in self.data_files:
            raise DataError("task.data_files needs train; validation and test are taken from it unless they are given.")
        _ = self.tables  # checks their settings

    @property
    def weights(self) -> dict[str, float]:
        """Source -> share of the rows, for the sources with a weight above 0."""
        weights = {FILES: 1.0} if self.data_files else {name: w for name, w in self.mixture.items() if w > 0}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @cached_property
    def tables(self) -> dict[str, TaskRows]:
        """The rows of each source that is not a generator."""
        rules = RowRules(self.on_malformed, self.max_characters, self.id_column)
        found = {}
        for name in self.weights.keys() - GENERATORS.keys():
            source = self._source(name)
            names = ("instruction_column", "context_column", "response_column")
            prefix = "task" if name == FILES else f"task.sources.{name}"
            columns = {f"{prefix}.{key}": getattr(source, key) for key in names}
            found[name] = TaskRows(source.data_files, source.hub_id, source.hub_config, rules, columns)
        return found

    @property
    def row_reports(self) -> dict[str, RowReport]:
        """SOURCE/SPLIT -> report, for the rows that were read from files or the Hub."""
        return {
            f"{name}/{split}": report for name, rows in self.tables.items() for split, report in rows.reports.items()
        }

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test", of all sources in random order.

        A column that a row's source does not have is None.

        Raises:
            DataError: the split is unknown, or a source has no usable rows in it.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        rows: list[Example] = []
        for name, share in self.weights.items():
            count = max(1, round(share * sizes[split]))
            rows += GENERATORS[name](split, count, self.seed) if name in GENERATORS else self._read(name, split)[:count]
        columns = sorted({column for row in rows for column in row.columns})
        rows = [Example(row.prompt, row.reference, {name: row.columns.get(name) for name in columns}) for row in rows]
        random.Random(zlib.crc32(f"{self.seed} {split}".encode())).shuffle(rows)
        return rows

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Subwords trained on the train split; None, for the checkpoint's tokenizer, if not all rows are generated."""
        if self.tables:
            return None
        texts = [text for one in self.examples("train") for text in (one.prompt, one.reference)]
        return subword_tokenizer(texts, self.subwords, split_digits=False)

    def _source(self, name: str) -> SourceSettings:
        if name == FILES:
            columns = self.instruction_column, self.context_column, self.response_column
            return SourceSettings(self.data_files, "", None, *columns)
        try:
            return SourceSettings(**self.sources[name])
        except TypeError as error:
            fields = ", ".join(SourceSettings.__dataclass_fields__)
            raise DataError(f"task.sources.{name}: {error}; a source takes {fields}.") from None

    def _read(self, name: str, split: str) -> list[Example]:
        """Rows of one source: of the split's own file, or the train rows that belong to the split."""
        table, source = self.tables[name], self._source(name)
        parse = self._parser(name, source)
        if source.data_files and split in source.data_files and split != "train":
            return table.examples(split, parse)
        given = set(source.data_files or ()) - {"train"}
        rows = table.examples("train", parse)
        owners = [split_of(row.prompt) for row in rows]
        # Rows of a split that has a file of its own stay in train.
        rows = [row for row, owner in zip(rows, owners, strict=True) if ("train" if owner in given else owner) == split]
        if not rows:
            raise DataError(
                f"{table.source('train')}: it has too few rows to take {split} from; set a file for {split}."
            )
        return rows

    def _parser(self, name: str, source: SourceSettings) -> Callable[[Row], Example]:
        def parse(row: Row) -> Example:
            instruction, context = row.text(source.instruction_column), row.optional_text(source.context_column)
            prompt = self.prompt_template.replace("{context}", context).replace("{instruction}", instruction).strip()
            return Example(prompt, row.text(source.response_column), {"kind": name})

        return parse
