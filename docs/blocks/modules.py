"""The list of modules: every Python file with the first line of its docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from blocks.settings import prose
from blocks.values import ROOT, table

ORDER = (
    "config", "outputs", "losses", "models", "generation", "data", "training", "evaluation", "planning", "pipeline",
    "cli",
)  # fmt: skip
TREES = ("gkd_rl", "reward_models", "experiments")


def modules() -> str:
    """A section for each package, a row for each file."""
    parts = []
    for tree in TREES:
        folders = sorted({path.parent for path in _files(ROOT / tree)}, key=_place)
        for folder in folders:
            name = folder.relative_to(ROOT).as_posix().replace("/", ".")
            rows = [[f"`{path.name}`", prose(_summary(path))] for path in sorted(folder.glob("*.py")) if _summary(path)]
            parts += [f"## {name}", table(["file", ""], rows)]
    return "\n\n".join(parts)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def _place(folder: Path) -> tuple[int, str]:
    parts = folder.relative_to(ROOT).parts
    first = ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else -1 if len(parts) == 1 else len(ORDER)
    return first, "/".join(parts)


def _summary(path: Path) -> str:
    """The first paragraph's first sentence or line."""
    doc = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    return " ".join(doc.split())
