"""Texts of the sample browser: one prompt with the completions of every run, and their unsupported claims.

Each text is kept once. In the generated news the exact checker (`gkd_rl.data.embedded.news`) finds unsupported claims.
Texts are untrusted: control characters are made visible, long texts are shortened and say so, nothing is HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from experiments.runs import RunFolder, predictions, samples
from gkd_rl.data.embedded.news import EVENT_OF_PARTICIPLE, SUMMARIES, NewsChecker, generate, pattern, stated_facts

LONGEST = 1200  # characters of a text that are kept
STEPS = 8  # log steps of a run whose samples are kept
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_CHECKER = NewsChecker()


def marked(article: str, summary: str) -> dict[str, Any]:
    """The checker's result for a summary.

    Args:
        article: of the generated news.
        summary: any text.

    Returns:
        `spans`: [start, end] of each unsupported claim in the summary; `note`: e.g. "2 of 5 claims unsupported".
    """
    verdict = _CHECKER(article, summary)
    if not verdict.grammatical:
        return {"spans": [], "note": "not a sentence of the grammar"}
    missing = verdict.claims - verdict.supported
    note = f"{missing} of {verdict.claims} claims unsupported" if missing else f"all {verdict.claims} claims supported"
    return {"spans": _unsupported(article, summary), "note": note + (", evasive" if verdict.evasive else "")}


def _unsupported(article: str, summary: str) -> list[list[int]]:
    """Spans of the slots whose values the article does not state."""
    facts = stated_facts(article)
    found = next(match for one in SUMMARIES if (match := pattern(one).fullmatch(summary)))
    claimed = {slot: value for slot, value in found.groupdict().items() if value is not None}

    def stated(slot: str, value: str) -> bool:
        claim = EVENT_OF_PARTICIPLE[value] if slot == "participle" else value
        return facts.get(slot) == claim

    return sorted(list(found.span(slot)) for slot, value in claimed.items() if not stated(slot, value))


def visible(text: str) -> str:
    """The text with control characters, direction marks and lone surrogates shown, e.g. as ␛ or ⟨U+202E⟩."""

    def shown(match: re.Match[str]) -> str:
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"

    return _CONTROLS.sub(shown, text)


class Texts:
    """All texts of a page without repetition."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self._places: dict[tuple[str, str | None], int] = {}

    def place(self, text: Any, article: str | None = None) -> int:
        """Index of a text; with the article, its unsupported claims are marked."""
        text = str(text)
        key = (text, article)
        if key not in self._places:
            self._places[key] = len(self.kept)
            self.kept.append(_entry(text, article))
        return self._places[key]


def _entry(text: str, article: str | None) -> dict[str, Any]:
    """Text, number of characters left out, marked spans and the checker's note."""
    entry: dict[str, Any] = {"text": visible(text[:LONGEST])}
    if len(text) > LONGEST:
        entry["left_out"] = len(text) - LONGEST
    elif article is not None:
        verdict = marked(article, text)
        entry |= {"note": verdict["note"]} | ({"spans": verdict["spans"]} if verdict["spans"] else {})
    return entry


def held_out_rows(runs: Sequence[RunFolder], texts: Texts, count: int) -> list[dict[str, Any]]:
    """The first rows of the evaluation split: prompt, reference and the completion of every model of every run.

    Rows are joined over runs by prompt and reference, so that runs on other data have rows of their own.

    Args:
        runs: in the order of the page; a run is identified by its index.
        texts: the texts that are used are added to it.
        count: rows of a run.
    """
    rows: dict[tuple[str | None, str], dict[str, Any]] = {}
    for place, run in enumerate(runs):
        found = predictions(run)[:count]
        articles = _articles(run, found)
        for number, (row, article) in enumerate(zip(found, articles, strict=True)):
            prompt, reference = row.get("prompt", article), str(row.get("reference", ""))
            completions = {key: text for key, text in row.items() if key not in ("prompt", "reference")}
            if (prompt, reference) not in rows:
                at = None if prompt is None else texts.place(prompt)
                fixed = {"row": number + 1, "prompt": at, "reference": texts.place(reference, article), "cells": {}}
                rows[prompt, reference] = fixed
            cells = {model: texts.place(text, article) for model, text in completions.items()}
            rows[prompt, reference]["cells"][str(place)] = cells
    return list(rows.values())


def training_rows(runs: Sequence[RunFolder], texts: Texts) -> list[dict[str, Any]]:
    """Samples of some log steps: prompt, reference and each run's completion with its reward, ordered by step."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for place, run in enumerate(runs):
        found = samples(run)
        steps = sorted({sample["step"] for sample in found})
        kept = {steps[round(i * (len(steps) - 1) / max(1, STEPS - 1))] for i in range(STEPS)} if steps else set()
        for sample in found:
            if sample["step"] not in kept:
                continue
            step, prompt = int(sample["step"]), str(sample.get("prompt", ""))
            article = prompt if is_news(run) else None
            if (step, prompt) not in rows:
                reference = texts.place(sample.get("reference", ""), article)
                rows[step, prompt] = {"step": step, "prompt": texts.place(prompt), "reference": reference, "cells": {}}
            completion = texts.place(sample.get("completion", ""), article)
            cell: dict[str, Any] = {str(sample.get("source", "student")): completion}
            if isinstance(sample.get("reward"), (int, float)):
                cell["reward"] = float(f"{sample['reward']:.4g}")
            rows[step, prompt]["cells"][str(place)] = cell
    return sorted(rows.values(), key=lambda row: row["step"])


def is_news(run: RunFolder) -> bool:
    """Whether the run's prompts are generated news, which the exact checker can parse."""
    settings = run.settings
    target, prefix = str(settings.get("task._target_", "")), settings.get("task.prompt_prefix")
    generated = settings.get("task.data") == "embedded" and not settings.get("task.data_files")
    return target.endswith(".Xsum") and generated and not prefix


def _articles(run: RunFolder, rows: Sequence[dict[str, Any]]) -> list[str | None]:
    """The article of each row, None if the task is not the news; generated again if an older run did not keep it."""
    if not is_news(run):
        return [None] * len(rows)
    if all("prompt" in row for row in rows):
        return [str(row["prompt"]) for row in rows]
    items = generate(str(run.settings["evaluation.split"]), len(rows), int(run.settings["task.seed"]))
    return [
        item.article if item.summary == row.get("reference") else None for item, row in zip(items, rows, strict=True)
    ]
