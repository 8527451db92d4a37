"""Tables of results: plain text for a terminal or a log file, Markdown for the README and the model card."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gkd_rl.uncertainty import Estimate

WIDTH = 120
MISSING = "-"
_NAME_WIDTH = 24
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def one_line(text: str) -> str:
    """`text` without line breaks, terminal codes and other control characters, each run of them a space."""
    return _CONTROL.sub(" ", text).strip()


def markdown_text(text: str) -> str:
    """`text` on one line with the characters escaped that Markdown or a Markdown table would act on."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line(text))


def _grid(rows: Mapping[str, Mapping[str, Estimate | str]], columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Cells as text, the first one of each line being the row's name.

    Raises:
        ValueError: if there are no rows or no columns.
    """
    if not rows or not columns:
        raise ValueError(f"results table: rows={list(rows)}, columns={list(columns)}; takes at least one of each.")
    return [
        [one_line(name), *(str(cells[key]) if key in cells else MISSING for key, _ in columns)]
        for name, cells in rows.items()
    ]


def results_table(
    rows: Mapping[str, Mapping[str, Estimate | str]], columns: Sequence[tuple[str, str]], title: str, caption: str
) -> str:
    """A plain-text table without colours: 120 columns wide at most, unless its columns do not fit on two lines each.

    Args:
        rows: name of the row ("student after") -> metric key -> estimate; an absent key shows "-".
        columns: (metric key, heading) in order.
        title: above the table.
        caption: below it: split, n, units, which scale.

    Returns:
        ASCII frame, no trailing spaces, one newline at the end.

    Raises:
        ValueError: if there are no rows or no columns.
    """
    grid = _grid(rows, columns)
    headings = ["", *(one_line(heading) for _, heading in columns)]
    needed = sum(max(map(len, column)) + 3 for column in zip(headings, *grid, strict=True)) + 1
    tall = needed > WIDTH
    if tall:  # mean above, interval below; names and headings break where they must, numbers never
        grid = [[line[0], *(cell.replace(" [", "\n[") for cell in line[1:])] for line in grid]
        longest = [max(len(part) for cell in column for part in cell.split("\n")) for column in zip(*grid, strict=True)]
        needed = sum(max(length, 6) + 3 for length in [min(longest[0], _NAME_WIDTH), *longest[1:]]) + 1
    table = Table(box=box.ASCII2, show_lines=tall)
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if index else "left")
    for line in grid:
        table.add_row(*(Text(cell, no_wrap=index > 0) for index, cell in enumerate(line)))
    target = io.StringIO()
    console = Console(
        file=target,
        width=max(WIDTH, needed) if tall else WIDTH,
        color_system=None,
        force_terminal=False,
        emoji=False,
        highlight=False,
    )
    console.print(table)
    parts = [textwrap.fill(one_line(title), WIDTH), target.getvalue(), textwrap.fill(one_line(caption), WIDTH)]
    lines = [line.rstrip() for part in parts for line in part.splitlines()]
    return "\n".join(lines) + "\n"


def markdown_table(
    rows: Mapping[str, Mapping[str, Estimate | str]], columns: Sequence[tuple[str, str]], title: str, caption: str
) -> str:
    """The same table as GitHub-flavoured Markdown: title in bold, caption as a paragraph below.

    Raises:
        ValueError: if there are no rows or no columns.
    """
    grid = _grid(rows, columns)
    lines = [[" ", *(markdown_text(heading) for _, heading in columns)], ["---", *["---:"] * len(columns)]]
    lines += [[markdown_text(line[0]), *line[1:]] for line in grid]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    parts = [f"**{markdown_text(title)}**" if title else "", table, markdown_text(caption)]
    return "\n\n".join(part for part in parts if part) + "\n"
