"""Rows of benchmarks in the format of their data sets, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = [("tea", 4), ("ham", 7), ("ice", 12), ("pie", 30), ("fig", 5), ("nut", 9)]


def gsm8k_row(word: str, number: int) -> dict[str, str]:
    return {"question": f"{word}?", "answer": f"{word} #### {number}"}


def gsm8k_files(folder: Path) -> Path:
    place = folder / "gsm8k"
    place.mkdir(parents=True)
    write_lines(place / "test.jsonl", [gsm8k_row(*row) for row in QUESTIONS])
    write_lines(place / "train.jsonl", [gsm8k_row("one", 1), gsm8k_row("two", 2)])
    return place


def humaneval_row(name: str, body: str, value: str) -> dict[str, str]:
    return {
        "task_id": name,
        "prompt": f"def {name}(x):\n",
        "canonical_solution": f"    return {body}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {value}\n",
        "entry_point": name,
    }


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
