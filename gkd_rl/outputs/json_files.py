"""JSON that survives what a model writes and what happens to a process: whole lines, whole files, no bare NaN."""

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

# json escapes below U+0020. These are left: C1 controls (terminal codes), line separators that `str.splitlines` breaks
# on, and lone surrogates, which UTF-8 cannot encode.
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain(value: Any) -> Any:
    """`value` made of what JSON knows.

    NaN and infinities become the words "nan", "inf" and "-inf", arrays become lists, dataclasses mappings, enums their
    names, sets sorted lists, and anything else its text.
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
    """Plain JSON as UTF-8 and one newline, with the unsafe characters as JSON's own escapes."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return (UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n").encode("utf-8")


def json_line(record: Mapping[str, Any]) -> bytes:
    """One record as one line that no text can break; `json.loads` gives the text back."""
    return _encode(record)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON as `write_whole` does. NaN and inf become words."""
    write_whole(path, _encode(data, indent=2))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, and who comes after a kill, sees the old one or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty where there is no file, or nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class JsonLines:
    """A file that grows by whole lines, each in one write to the system: a killed process keeps every finished line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        """Drop half a line that a power cut or a full disk left, so that the next one is not glued to it."""
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - 1))
        if end == 0 or self._file.read(1) == b"\n":
            return
        self._file.seek(0)
        self._file.truncate(self._file.readall().rfind(b"\n") + 1)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """One line per record, whole or not at all.

        Raises:
            OSError: with the file's name; the system cannot take the line, e.g. because the disk is full.
        """
        for record in records:
            rest, end = memoryview(json_line(record)), self._file.seek(0, os.SEEK_END)
            try:
                while rest:  # a disk that becomes full takes a part first
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._file.truncate(end)
                error.filename = self._file.name
                raise

    def size(self) -> int:
        """Bytes of the file, all of which outlive a power cut when this returns."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Drop what stands after the first `size` bytes."""
        self._file.truncate(size)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
