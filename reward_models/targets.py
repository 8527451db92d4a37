"""Code that settings name (`_target_`): which of it may be called, told by its source and without importing any.

A dotted name can reach through a module to whatever that imports (`gkd_rl.outputs.run_record.subprocess.run`), so a name is
taken only if the class or function is written in that very file.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ALLOWED_PACKAGES = ("gkd_rl", "reward_models")


def find_targets(node: Any, prefix: str, names: Sequence[str] = ("_target_",)) -> Iterator[tuple[str, Any]]:
    """Every `_target_` under a plain container, with its dotted key; other keys that name code by `names`."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        if name in names:
            yield f"{prefix}.{name}", child
        else:
            yield from find_targets(child, f"{prefix}.{name}", names)


def refusal(key: str, target: Any, trusted: Sequence[str] = ()) -> str | None:
    """Why a target is not called; None where it may be.

    Args:
        key: the setting.
        target: its value.
        trusted: packages that the user named, whose code is not looked at.
    """
    package, *rest = str(target).split(".")
    if package in trusted:
        return None
    allowed = " or ".join(ALLOWED_PACKAGES)
    if package not in ALLOWED_PACKAGES:
        return (
            f"{key}={target} is outside this project: {key} takes a class of {allowed}, or of a package of yours that "
            f"trusted_packages=[{package}] names."
        )
    if not is_written(str(target)):
        return f"{key}={target}: there is no class or function {'.'.join(rest)} in {package}; {key} takes one that is."
    return None


@functools.cache
def is_written(target: str) -> bool:
    """Whether a class or function that anybody may use stands in the file that a dotted name leads to."""
    package, *path = target.split(".")
    spec = find_spec(package) if package.isidentifier() and path else None
    if spec is None or not all(part.isidentifier() for part in path) or path[-1].startswith("_"):
        return False
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *path[:-1])
        for file in (place.with_suffix(".py") if path[:-1] else place, place / "__init__.py"):
            if file.is_file() and path[-1] in _names(file, package):
                return True
    return False


def _names(file: Path, package: str) -> set[str]:
    """Classes and functions of a file, and what a package's own file takes from its modules."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            own = node.level > 0 or str(node.module).split(".")[0] == package
            found |= {alias.asname or alias.name for alias in node.names} if own else set()
    return found
