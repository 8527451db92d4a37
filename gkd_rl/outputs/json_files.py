"""JSON files that stay readable whatever a model generates and whenever a process is killed.

Files and lines are written whole or not at all, NaN and infinities are texts, and unsafe characters are escaped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

# Characters that `json` does not escape (it does those below U+0020): C1 controls (terminal codes), line separators of
# `str.splitlines`, and lone surrogates, which UTF-8 cannot encode.
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain(value: Any) -> Any:
    """`value` as JSON types.

    NaN and infinities become the texts "nan", "inf" and "-inf", arrays lists, dataclasses mappings, enums their names,
    sets sorted lists, and any other object its `str`.
    """
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return [plain(entry) for entry in sorted(value, key=str)]
    to_list = getattr(value, "tolist", None)  # numpy and torch, scalars included
    return plain(to_list()) if callable(to_list) else str(value)


def _encode(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8 with a newline at the end and unsafe characters escaped."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return (UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n").encode("utf-8")


def json_line(record: Mapping[str, Any]) -> bytes:
    """One record as one line, whatever text is in it; `json.loads` restores the text."""
    return _encode(record)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON by `write_whole`. NaN and infinities become texts."""
    write_whole(path, _encode(data, indent=2))


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader, also after a kill, finds the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty if there is no file or it cannot be parsed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class JsonLines:
    """A file of JSON lines, each appended in one system call, so that a killed process leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        """Remove an incomplete last line, left by a power failure or a full disk, before the next one is appended."""
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - 1))
        if end == 0 or self._file.read(1) == b"\n":
            return
        self._file.seek(0)
        self._file.truncate(self._file.readall().rfind(b"\n") + 1)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append one line for each record, whole or not at all.

        Raises:
            OSError: with the file's name; the line cannot be written, e.g. because the disk is full.
        """
        for record in records:
            rest, end = memoryview(json_line(record)), self._file.seek(0, os.SEEK_END)
            try:
                while rest:  # a full disk accepts a part first
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._file.truncate(end)
                error.filename = self._file.name
                raise

    def size(self) -> int:
        """Bytes of the file, after all of them have been synchronised to disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Truncate the file to its first `size` bytes."""
        self._file.truncate(size)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
