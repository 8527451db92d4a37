"""Local files in place of a benchmark's Hub data set, as fields of the harness's task definition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_rl.errors import DataError

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
ENDINGS = ", ".join(READERS)


def local_source(
    suite: str, data: str | dict[str, Any], task: Mapping[str, Any], num_fewshot: int | None
) -> dict[str, Any] | None:
    """Fields that make a task read local files.

    Args:
        suite: the name in the setting `suite`.
        data: a folder with one folder for each suite, or a mapping of suites to a file (the split that is evaluated), a
            folder or a mapping of splits to files. A folder may be a copy of the Hub's repository: its files begin
            with their split's name, and lie in folders of the data set's configurations, where there are several.
        task: the harness's definition.
        num_fewshot: as the setting.

    Returns:
        The fields; None where `data` is a mapping without this suite, whose rows then come from the Hub.

    Raises:
        DataError: a file is missing, or one that the task's examples come from.
    """
    if isinstance(data, dict) and suite not in data:
        return None
    place = str(Path(data) / suite) if isinstance(data, str) else data[suite]
    tested = task.get("test_split") or task.get("validation_split") or "test"
    files = _files(suite, place, task, tested)
    kinds = {READERS[file.suffix] for file in files.values()}
    if len(kinds) > 1:
        raise DataError(f"data.{suite}: {', '.join(map(str, files.values()))}: all files of a suite take one format.")
    examples = _examples_split(task)
    if _shots(task, num_fewshot) > 0 and examples is not None and examples not in files:
        raise DataError(
            f"suite={suite} has {_shots(task, num_fewshot)} examples in its prompts, from its split {examples}, and "
            f"data.{suite} has {', '.join(files)} only: add data.{suite}.{examples}, or set num_fewshot=0."
        )
    absent = {key: None for key in SPLITS if task.get(key) not in files}
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "custom_dataset": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        **absent,
    }


def _examples_split(task: Mapping[str, Any]) -> str | None:
    """The split that examples come from; None where the definition holds them itself."""
    own = task.get("fewshot_config") or {}
    if "split" in own or task.get("fewshot_split"):
        return own.get("split") or task["fewshot_split"]
    return None if "samples" in own else task.get("training_split") or task.get("validation_split")


def _shots(task: Mapping[str, Any], num_fewshot: int | None) -> int:
    """How many examples a prompt has; the harness keeps a 0 of the definition, whatever is asked for."""
    own = task.get("num_fewshot")
    return 0 if own == 0 else num_fewshot if num_fewshot is not None else own or 0


def _files(suite: str, place: Any, task: Mapping[str, Any], tested: str) -> dict[str, Path]:
    """Split -> file, the one that is evaluated among them."""
    if isinstance(place, dict):
        files = {str(split): Path(str(file)).expanduser() for split, file in place.items()}
    else:
        path = Path(str(place)).expanduser().absolute()
        files = _in_folder(path, task, tested) if path.is_dir() else {tested: path}
    for split, file in files.items():
        if file.suffix not in READERS:
            raise DataError(f"data.{suite}={file}: a file ends in {ENDINGS}.")
        if not file.is_file():
            raise DataError(f"data.{suite}={file}: there is no such file for split {split}.")
    if tested not in files:
        raise DataError(
            f"data.{suite}={place} has no file of the split {tested}, which is evaluated: set data.{suite}.{tested} to "
            f"a file, or name a file in the folder {tested}.jsonl."
        )
    return {split: file.absolute() for split, file in files.items()}


def _in_folder(folder: Path, task: Mapping[str, Any], tested: str) -> dict[str, Path]:
    """Files whose names begin with a split's; a file that is alone is the split that is evaluated."""
    name = task.get("dataset_name")
    inner = folder / str(name)
    if name is not None and inner.is_dir():
        folder = inner
    found = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    splits = dict.fromkeys(str(task[key]) for key in SPLITS if task.get(key)) or {tested: None}
    files: dict[str, Path] = {}
    for split in splits:
        of_split = [file for file in found if re.match(rf"{re.escape(split)}(?![a-z])", file.name)]
        if len(of_split) > 1:
            raise DataError(f"{folder} has several files of split {split}: {', '.join(one.name for one in of_split)}.")
        if of_split:
            files[split] = of_split[0]
    return {tested: found[0]} if not files and len(found) == 1 else files
