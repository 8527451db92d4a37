"""What became of a run's data: rows that were dropped, prompts and references that the limits cut."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gkd_rl.rollout import TextCodec
from gkd_rl.tasks.task import Task, row_reports
from gkd_rl.types import Example

log = logging.getLogger(__name__)

ROWS = 2048  # of a split, whose lengths are looked at


@dataclass(frozen=True)
class TextLengths:
    """TextLengths of one kind of text, in tokens.

    Attributes:
        limit: longer texts are cut.
        longest: before anything was cut.
        cut: how many are longer than the limit.
    """

    limit: int
    longest: int
    cut: int


@dataclass(frozen=True)
class CutReport:
    """How many of the rows that were looked at are cut.

    Attributes:
        rows: the first so many of the split.
        prompts: theirs.
        references: theirs, with their end.
    """

    rows: int
    prompts: TextLengths
    references: TextLengths

    def __str__(self) -> str:
        return (
            f"of {self.rows:,} rows {self.prompts.cut:,} prompts are longer than {self.prompts.limit} tokens (longest "
            f"{self.prompts.longest:,}), and {self.references.cut:,} references than {self.references.limit} (longest "
            f"{self.references.longest:,})"
        )

    def advice(self) -> str:
        """The settings that would leave every text whole."""
        limits = {"prompt": self.prompts, "completion": self.references}
        cut = [f"task.max_{name}_tokens={one.longest}" for name, one in limits.items() if one.cut]
        return f"Nothing is cut at {' and '.join(cut)}" if cut else "Nothing is cut"


def cut_report(codec: TextCodec, examples: Sequence[Example]) -> CutReport:
    """Look at the first rows of a split."""
    rows = examples[:ROWS]
    prompts, references = codec.lengths(rows)

    def of(lengths: list[int], limit: int) -> TextLengths:
        return TextLengths(limit, max(lengths), sum(length > limit for length in lengths))

    return CutReport(len(rows), of(prompts, codec.max_prompt_tokens), of(references, codec.max_completion_tokens))


def data_facts(task: Task, codec: TextCodec, splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """What eval.json says about the data; texts that are cut are a warning.

    Args:
        task: has read the splits.
        codec: of the student.
        splits: name -> rows.
    """
    lengths = {name: cut_report(codec, examples) for name, examples in splits.items()}
    for name, report in lengths.items():
        if report.prompts.cut or report.references.cut:
            log.warning("%s: %s: they are cut at their end. %s.", name, report, report.advice())
    rows = {name: report.as_dict() for name, report in row_reports(task).items()}
    return {"rows": rows, "lengths": {name: asdict(report) for name, report in lengths.items()}}
