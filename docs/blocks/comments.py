"""Comments of the files in conf/: a setting's behind its value, a choice's in the first lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from blocks.values import ROOT

CONF = ROOT / "conf"
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w]*):(?P<rest>.*)$")
_COMMENT = re.compile(r"(?:^|\s)#\s?(?P<text>.*)$")
_DEFAULT = re.compile(r"^  - (?P<group>\w+): ")
_BLOCK = re.compile(r"[|>][+-]?$")


@dataclass(frozen=True)
class YamlFile:
    """One file of conf/.

    Attributes:
        path: the file.
        head: the comment at its top, in one line.
        package: prefix of its keys in the configuration, "" or `trainer.`.
        comments: dotted key (with the prefix) -> comment.
        groups: entry of the defaults list -> comment.
        keys: every key that the file gives a value, in order; mappings are followed.
    """

    path: Path
    head: str
    package: str
    comments: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@cache
def read(path: Path) -> YamlFile:
    """Parse a file's comments; YAML itself drops them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = [line[1:].strip() for line in _leading(lines)]
    head = " ".join(line for line in start if not line.startswith("@package"))
    group = path.parent.relative_to(CONF).as_posix().replace("/", ".")
    package = "" if "@package _global_" in start or group == "." else f"{group}."
    comments, keys = {}, []
    listed = [(_DEFAULT.match(line), _split(line)[1]) for line in lines]
    groups = {match["group"]: comment for match, comment in listed if match and comment}
    for key, comment, has_value in _settings(lines):
        if key.partition(".")[0] in ("defaults", "hydra"):
            continue
        if comment:
            comments[package + key] = comment
        if has_value:
            keys.append(package + key)
    return YamlFile(path, head, package, comments, groups, keys)


def _leading(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def _settings(lines: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Dotted key, comment (behind the value, else on the line above), and whether a value stands on the line."""
    stack: list[tuple[int, str]] = []
    found: list[list[object]] = []
    block = column = -1
    above = ""
    for line in lines[len(list(_leading(lines))) :]:
        indent = len(line) - len(line.lstrip())
        if block >= 0 and (not line.strip() or indent > block):
            continue
        block = -1
        text, comment = _split(line)
        match = _LINE.match(text)
        if match is None:
            if not text.strip() and comment and found and line.index("#") == column:
                found[-1][1] = f"{found[-1][1]} {comment}"  # goes on below
            else:
                above = comment
            continue
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, match["key"]))
        rest = match["rest"].strip()
        block = indent if _BLOCK.search(rest) else -1
        column = line.index("#", len(text)) if comment else -1
        found.append([".".join(key for _, key in stack), comment or above, bool(rest)])
        above = ""
    for key, comment, has_value in found:
        yield str(key), str(comment), bool(has_value)


def _split(line: str) -> tuple[str, str]:
    """A line without its comment, and the comment; a # in quotation marks begins none."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda match: "x" * len(match.group()), line)
    match = _COMMENT.search(bare)
    if match is None:
        return line.rstrip(), ""
    return line[: match.start()].rstrip(), line[match.start("text") :].strip()


def files(group: str) -> list[YamlFile]:
    """Every file of a group, by name."""
    return [read(path) for path in sorted((CONF / group).glob("*.yaml"))]
