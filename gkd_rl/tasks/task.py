"""The contract of a task; a new task is one file with these members and one YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from gkd_rl.tasks.rows import RowReport
from gkd_rl.types import Example


class Task(Protocol):
    """Rows of one data set, as prompts and references."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are cut."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """Longest completion, its end-of-sequence token included."""
        ...

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test"."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that comes with the data; None when the checkpoint must bring its own."""
        ...


@runtime_checkable
class ReadTask(Protocol):
    """A task that also tells what became of the rows of files or the Hub."""

    @property
    def row_reports(self) -> Mapping[str, RowReport]:
        """Split -> report, of the splits that were read."""
        ...


def row_reports(task: Task) -> Mapping[str, RowReport]:
    """A task's reports; none of one that generates its rows."""
    return task.row_reports if isinstance(task, ReadTask) else {}
