"""Several runs and what they showed: studies, the comparison of runs, the report, benchmarks, tests of reliability.

conf/experiment is one run; a question that takes several runs is a study here. No other package imports this one.

- `studies/`: one file a topic, each with one or several studies; `study/`: the mechanism that runs and judges them.
- `paper.py`: runs all studies and gives a verdict for each statement of the paper.
- `runs/`: run folders read back, groups of runs, comparison; `compare.py` and `report/` show them, `sync.py` exchanges
  them with W&B.
- `benchmarks/`: speed and memory beside other packages.
- `faults.py` and `soak.py`: runs that are killed, and a long run whose resources are monitored.
- `results/`: numbers of studies, benchmarks and reliability tests as these commands wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence


def markdown_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
