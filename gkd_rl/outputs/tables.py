"""Presentation of results: estimates with intervals, tables as plain text and Markdown, and the model card."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 120  # of plain text, in characters
_ABSENT = "-"
_NAME_WIDTH = 24
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True)
class Estimate:
    """A mean over n examples with its interval, in the units of the metric."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """`45.8 [45.0, 46.6]`: more decimals for small numbers, no interval for a single example."""
        largest = max(abs(value) for value in (self.mean, self.low, self.high) if value == value)
        digits = 1 if largest >= 1 or largest == 0 else 2 if largest >= 0.1 else 3
        mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]" if self.n > 1 else f"{mean} (n={self.n})"


def one_line(text: str) -> str:
    """`text` with every sequence of line breaks and other control characters replaced by a space."""
    return _CONTROL.sub(" ", text).strip()


def markdown_text(text: str) -> str:
    """`text` on one line, with the characters escaped that have a meaning in Markdown or its tables."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line(text))


def _grid(rows: Mapping[str, Mapping[str, Estimate | str]], columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Lines of cells as text; the first cell is the row's name.

    Raises:
        ValueError: if there are no rows or no columns.
    """
    if not rows or not columns:
        raise ValueError(f"results table: rows={list(rows)}, columns={list(columns)}; takes at least one of each.")
    return [
        [one_line(name), *(str(cells[key]) if key in cells else _ABSENT for key, _ in columns)]
        for name, cells in rows.items()
    ]


def results_table(
    rows: Mapping[str, Mapping[str, Estimate | str]], columns: Sequence[tuple[str, str]], title: str, caption: str
) -> str:
    """A plain-text table without colours, at most 120 characters wide unless cells of two lines do not fit.

    Args:
        rows: name of the row ("student after") -> metric key -> estimate; an absent key shows "-".
        columns: (metric key, heading) in order.
        title: above the table.
        caption: below the table: split, number of examples, units, scale.

    Returns:
        ASCII frame, no trailing spaces, one newline at the end.

    Raises:
        ValueError: if there are no rows or no columns.
    """
    grid = _grid(rows, columns)
    headings = ["", *(one_line(heading) for _, heading in columns)]
    needed = sum(max(map(len, column)) + 3 for column in zip(headings, *grid, strict=True)) + 1
    tall = needed > WIDTH
    if tall:  # the interval below the mean; names and headings are wrapped, numbers are not
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
    """The same table in GitHub-flavoured Markdown: title in bold above, caption as a paragraph below.

    Raises:
        ValueError: if there are no rows or no columns.
    """
    grid = _grid(rows, columns)
    lines = [[" ", *(markdown_text(heading) for _, heading in columns)], ["---", *["---:"] * len(columns)]]
    lines += [[markdown_text(line[0]), *line[1:]] for line in grid]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    parts = [f"**{markdown_text(title)}**" if title else "", table, markdown_text(caption)]
    return "\n\n".join(part for part in parts if part) + "\n"


_ARCHITECTURE_CLASSES = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")

_CARD = """\
---
library_name: transformers
tags:
- gkd
- reinforcement-learning
- knowledge-distillation
---

# {name}

A student language model trained with {method} by gkd_rl: reinforcement learning and on-policy distillation in one
objective, after Agarwal et al., *On-Policy Distillation of Language Models*
([arXiv:2306.13649](https://arxiv.org/abs/2306.13649)):

    maximise (1 - alpha) E[r] - alpha E[D(p_T || p_S)]

r is the reward of the student's own samples, D the divergence of the student p_S from the teacher p_T. alpha = 1 is
pure distillation, alpha = 0 pure reinforcement learning.

## Scale

{notice}

## Settings

| setting | value |
| --- | --- |
{settings}

## Results

{results}

## Use

```python
from transformers import {architecture_class}, AutoTokenizer

folder = "."  # this folder, or the model's id on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {architecture_class}.from_pretrained(folder)
inputs = tokenizer("Your prompt, in the form of the training task", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

No licence is stated here. Whoever publishes the model chooses one, within the terms of the initial student, the teacher
and the data.
"""


def model_card(
    name: str,
    method: str,
    settings: Mapping[str, str],
    results_markdown: str,
    notice: str,
    architecture_class: str,
) -> str:
    """A Hugging Face model card: what the student is, how it was trained, its results, how to load it.

    Args:
        name: of the model.
        method: e.g. "RL + on-policy GKD".
        settings: name -> value, in order: alpha, divergence, lmbda, steps, seed, teacher, ...
        results_markdown: from `markdown_table`; inserted unchanged.
        notice: of the scale, what the numbers can be compared with.
        architecture_class: the transformers class that loads the model.

    Returns:
        Markdown with YAML front matter, for README.md in the model's folder.

    Raises:
        ValueError: for a class without instructions on this card.
    """
    if architecture_class not in _ARCHITECTURE_CLASSES:
        raise ValueError(f"architecture_class={architecture_class}: takes {' or '.join(_ARCHITECTURE_CLASSES)}.")
    return _CARD.format(
        name=markdown_text(name),
        method=markdown_text(method),
        settings="\n".join(
            f"| {markdown_text(key)} | {markdown_text(str(value))} |" for key, value in settings.items()
        ),
        results=results_markdown.strip(),
        notice=markdown_text(notice),
        architecture_class=architecture_class,
    )
