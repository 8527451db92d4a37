"""What a `_target_` takes: types and descriptions of its arguments, read from the source without importing it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

from blocks.values import ROOT

_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "None": "null"}
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")


@dataclass(frozen=True)
class Target:
    """A class or function that settings name.

    Attributes:
        summary: first line of its docstring.
        takes: argument -> its type in words.
        does: argument -> its description.
    """

    summary: str
    takes: dict[str, str]
    does: dict[str, str]


@cache
def target(name: str) -> Target:
    """Read a dotted name, `gkd_rl.data.tasks.xsum.Xsum`.

    Raises:
        ValueError: the module has no such class or function.
    """
    module, _, own = name.rpartition(".")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == own:
            break
    else:
        raise ValueError(f"{module} has no {own}")
    inherited = [target(base) for base in _bases(node, tree)]
    takes = {key: text for one in inherited for key, text in one.takes.items()}
    does = {key: text for one in inherited for key, text in one.does.items()}
    doc = ast.get_docstring(node) or ""
    return Target(doc.partition("\n")[0], takes | dict(_arguments(node)), does | _described(doc))


def _bases(node: ast.AST, tree: ast.Module) -> list[str]:
    """Dotted names of the bases that the file imports from this repository."""
    if not isinstance(node, ast.ClassDef):
        return []
    imported = {
        alias.asname or alias.name: f"{one.module}.{alias.name}"
        for one in tree.body if isinstance(one, ast.ImportFrom) for alias in one.names
    }  # fmt: skip
    names = [imported.get(base.id, "") for base in node.bases if isinstance(base, ast.Name)]
    return [name for name in names if name.startswith(("gkd_rl.", "reward_models."))]


def _arguments(node: ast.ClassDef | ast.FunctionDef) -> list[tuple[str, str]]:
    """Arguments of a function or of `__init__`; fields of a dataclass without one."""
    body = node.body if isinstance(node, ast.ClassDef) else [node]
    for one in body:
        if isinstance(one, ast.FunctionDef) and (one is node or one.name == "__init__"):
            found = [*one.args.args, *one.args.kwonlyargs]
            return [(arg.arg, in_words(arg.annotation)) for arg in found if arg.arg != "self"]
    fields = [one for one in body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    own = [one for one in fields if not ast.unparse(one.annotation).startswith("ClassVar")]
    return [(one.target.id, in_words(one.annotation)) for one in own if isinstance(one.target, ast.Name)]


def in_words(annotation: ast.expr | None) -> str:
    """A type in words: `text, or null`, `one of a, b`, `a list of numbers`."""
    if annotation is None:
        return "any value"
    if isinstance(annotation, ast.BinOp):
        parts = [in_words(annotation.left), in_words(annotation.right)]
        return ", or ".join(part for part in parts if part != "null") + (", or null" if "null" in parts else "")
    text = ast.unparse(annotation)
    if text in _WORDS:
        return _WORDS[text]
    outer, _, inner = text.partition("[")
    if outer == "Literal":
        return "one of " + ", ".join(str(one) for one in ast.literal_eval(f"[{inner}"))
    if outer in ("dict", "Mapping"):
        return "a mapping of names to values"
    if outer in ("list", "Sequence", "tuple"):
        words = {"int": "whole numbers", "float": "numbers"}
        return f"a list of {words.get(inner.rstrip(']').partition(',')[0], 'names')}"
    return "any value"


def _described(doc: str) -> dict[str, str]:
    """Entries of `Args:` or `Attributes:` in a Google docstring."""
    found: dict[str, str] = {}
    inside, names = False, []
    for line in doc.splitlines():
        if line and not line.startswith(" "):
            inside = line in ("Args:", "Attributes:")
            continue
        match = _ENTRY.match(line)
        if inside and match:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif inside and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
