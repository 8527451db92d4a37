"""Trusted Hydra targets: which code a setting `_target_` may name. Decided from source files, without importing them.

A dotted name can reach through a module to what that module imports (`gkd_rl.outputs.run_record.subprocess.run`).
A target is therefore accepted only if its class or function is defined in the file that the name leads to.
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
    """(dotted key, value) of every `_target_` in nested dicts and lists.

    Args:
        node: a plain container.
        prefix: dotted key of `node`.
        names: keys whose values name code.
    """
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        if name in names:
            yield f"{prefix}.{name}", child
        else:
            yield from find_targets(child, f"{prefix}.{name}", names)


def refusal(key: str, target: Any, trusted: Sequence[str] = ()) -> str | None:
    """Why a target must not be called, as one sentence; None if it may be.

    Args:
        key: dotted key of the setting.
        target: its value.
        trusted: packages that the user trusts; their targets are not checked.
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
    if not is_defined(str(target)):
        return (
            f"{key}={target}: there is no class or function {'.'.join(rest)} in {package}; {key} takes one that exists."
        )
    return None


@functools.cache
def is_defined(target: str) -> bool:
    """Whether the file that a dotted name leads to defines that class or function, and its name is public."""
    package, *path = target.split(".")
    spec = find_spec(package) if package.isidentifier() and path else None
    if spec is None or not all(part.isidentifier() for part in path) or path[-1].startswith("_"):
        return False
    for folder in spec.submodule_search_locations or ():
        module = Path(folder, *path[:-1])
        for file in (module.with_suffix(".py") if path[:-1] else module, module / "__init__.py"):
            if file.is_file() and path[-1] in _defined_names(file, package):
                return True
    return False


def _defined_names(file: Path, package: str) -> set[str]:
    """Classes and functions that a file defines; an `__init__.py` also has those it imports from its own package."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            own = node.level > 0 or str(node.module).split(".")[0] == package
            found |= {alias.asname or alias.name for alias in node.names} if own else set()
    return found
