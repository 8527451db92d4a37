"""Weight files of a local checkpoint: whether all are there and whole, told by their headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gkd_rl.errors import ModelError
from gkd_rl.model_files import PLAIN, LoadOptions, base_of, first_line, locate

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_weights(path: str, key: str, options: LoadOptions = PLAIN) -> None:
    """Refuse a folder whose weights are not all there or damaged; what the Hub and GGUF files hold is not looked at.

    Raises:
        ModelError: with the setting that named it.
    """
    base = base_of(path, key)
    if base is not None:
        _check_whole(Path(path).expanduser(), [ADAPTER_WEIGHTS], f"{key}={path}")
        path = base
    place = locate(path, key, options)
    folder = Path(place.path)
    if place.gguf or not folder.is_dir():
        return
    files = [*_files(folder, f"{key}={path}")]
    if files:
        _check_whole(folder, files, f"{key}={path}")
        return
    if not list(folder.glob("*.bin")):
        raise ModelError(f"{key}={path}: the folder has no {WEIGHTS}. Set {key} to one that has its weights.")
    if options.use_safetensors:
        raise ModelError(
            f"{key}={path}: its weights are pickled. Set {key.rpartition('.')[0]}.use_safetensors=false to read them, "
            f"or convert them to {WEIGHTS}."
        )


def _files(folder: Path, named: str) -> Iterator[str]:
    """The safetensors files that the folder says it has."""
    if (folder / WEIGHTS).is_file():
        yield WEIGHTS
    elif (folder / INDEX).is_file():
        try:
            yield from sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{named}: {INDEX} is damaged ({first_line(error)}): copy the checkpoint again."
            ) from error


def _check_whole(folder: Path, files: list[str], named: str) -> None:
    """Refuse files that are absent, or shorter than their headers say."""
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{named}: {len(absent)} of {len(files)} files of weights are not there, the first is {absent[0]}: "
            "copy the checkpoint again."
        )
    for name in files:
        try:
            with safe_open(folder / name, framework="pt"):  # pyright: ignore[reportGeneralTypeIssues]
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{named}: {name} is damaged ({first_line(error)}): copy the checkpoint again.") from error
