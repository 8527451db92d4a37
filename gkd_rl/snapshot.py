"""Tensors and facts in a folder of their own: written beside and renamed, with a checksum of every file.

A folder that exists is whole; one that was damaged since is told by its checksums. safetensors and JSON, no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gkd_rl.errors import CheckpointError
from gkd_rl.json_files import write_json

TENSORS, FACTS, INDEX = "tensors.safetensors", "facts.json", "index.json"
BESIDE = ".writing-"


@dataclass(frozen=True)
class Snapshot:
    """What one folder holds.

    Attributes:
        tensors: by name, on the CPU.
        facts: JSON; floats come back bit for bit.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_snapshot(folder: Path, snapshot: Snapshot, label: Mapping[str, Any]) -> None:
    """Write `snapshot` to `folder`; what was there is replaced.

    Args:
        folder: its parent is made.
        snapshot: what to write.
        label: JSON that `read_label` gives back without reading the rest.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=BESIDE, dir=folder.parent))
    try:
        save_file({name: one.detach().cpu().contiguous() for name, one in snapshot.tensors.items()}, beside / TENSORS)
        (beside / FACTS).write_text(json.dumps(snapshot.facts), encoding="utf-8")  # NaN stays NaN between us
        sums = {name: _checksum(beside / name) for name in (TENSORS, FACTS)}
        write_json(beside / INDEX, {"label": dict(label), "sha256": sums})
        for name in (TENSORS, FACTS, INDEX, "."):
            _to_disk(beside / name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
        _to_disk(folder.parent)
    except SafetensorError as error:  # it has a full disk in its text only
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_label(folder: Path) -> dict[str, Any]:
    """The label that `folder` was written with.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    return _index(folder)["label"]


def read_snapshot(folder: Path) -> Snapshot:
    """What was written to `folder`.

    Raises:
        CheckpointError: a file is missing, or is not as it was written.
    """
    for name, wanted in _index(folder)["sha256"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        if _checksum(folder / name) != wanted:
            raise CheckpointError(f"{folder / name} is damaged: its checksum is another one")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return Snapshot(load_file(folder / TENSORS), facts)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def remove_unfinished(parent: Path) -> None:
    """Remove what a process that died while writing left in `parent`."""
    for beside in parent.glob(f"{BESIDE}*"):
        shutil.rmtree(beside, ignore_errors=True)


def _index(folder: Path) -> dict[str, Any]:
    """Label and checksums."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX} cannot be read: {error}") from error
    if not isinstance(index, dict) or not {"label", "sha256"} <= index.keys():
        raise CheckpointError(f"{folder / INDEX} is damaged: it lacks label or sha256")
    return index


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, would outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
