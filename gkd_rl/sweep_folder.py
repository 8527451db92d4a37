"""A sweep as a folder: what it was started with, finishing it after it broke, and its failed runs by name.

`sweep.json` lies in the folder from the first second. `sweep.resume=FOLDER` reads it back, so that the command needs
nothing else; which runs are finished is for each run to say (`sweep_run.py`).
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from gkd_rl.errors import ConfigError
from gkd_rl.json_files import write_json
from gkd_rl.launched import is_main_process
from gkd_rl.sweep_run import FAILURE, RESULT

log = logging.getLogger(__name__)
RECORD = "sweep.json"
RESUME = "sweep.resume="


class SweepRecord(Callback):
    """Hydra's callback at the start of a sweep: keeps the overrides in its folder.

    Attributes:
        folder: of the sweep that this process runs, None before it starts.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Write the record, and say how a broken sweep is finished."""
        folder = SweepRecord.folder = Path(config.hydra.sweep.dir)
        task, hydra = config.hydra.overrides.task, config.hydra.overrides.hydra
        write_json(folder / RECORD, {"task": _kept(task), "hydra": _kept(hydra)})
        log.info("Sweep folder: %s", folder)
        log.info("If the sweep breaks, this finishes it: %s", resuming(folder))


def _kept(overrides: Any) -> list[str]:
    """Overrides without those that a resumed sweep has of its own."""
    return [text for text in map(str, overrides) if _key(text) not in ("sweep.resume", "hydra.sweep.dir", "hydra.mode")]


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")


def resuming(folder: Path) -> str:
    """The command that finishes a sweep."""
    return f"python -m gkd_rl.run {shlex.quote(f'{RESUME}{folder}')}"


def with_former_overrides(arguments: list[str]) -> list[str]:
    """The command line with all that the sweep of `sweep.resume` was started with; any other is left as it is.

    Settings of Hydra may be typed anew: a sweep can be finished by another launcher.

    Raises:
        ConfigError: the folder is no sweep's, or a setting of the runs is typed that the sweep did not have.
    """
    asked = [text for text in arguments if text.startswith(RESUME) and text not in (RESUME, f"{RESUME}null")]
    if not asked:
        return arguments
    folder = Path(asked[-1].removeprefix(RESUME).strip("'\""))
    record = folder / RECORD
    if not record.is_file():
        raise ConfigError([
            f"{asked[-1]}: there is no {RECORD} in that folder: sweep.resume takes the folder of a sweep, "
            "multirun/NAME/TIME."
        ])  # fmt: skip
    former = json.loads(record.read_text(encoding="utf-8"))
    typed = [text for text in arguments if "=" in text and not text.startswith(("-", RESUME))]
    hydra = [text for text in typed if _key(text).startswith(("hydra.", "hydra/"))]
    new = [text for text in typed if text not in hydra and text not in former["task"]]
    if new:
        raise ConfigError([
            f"{' '.join(new)} beside sweep.resume: a sweep is finished with the settings that it began with "
            f"({' '.join(former['task'])}). Leave it out, or start a new sweep."
        ])  # fmt: skip
    known = {_key(text) for text in hydra}
    rest = [text for text in arguments if text not in typed and text not in ("-m", "--multirun")]
    kept = [text for text in former["hydra"] if _key(text) not in known]
    return ["-m", *former["task"], *kept, *hydra, *rest, f"hydra.sweep.dir={folder}"]


@contextmanager
def naming_failed_runs() -> Iterator[None]:
    """Name the runs of a sweep that failed once it is over, however it ended.

    Raises:
        SystemExit: with status 1, if a run failed.
    """
    try:
        yield
    except Exception as error:
        failed, finished = _failed_and_finished()
        _name(failed, len(failed) + len(finished))
        if failed and not finished:  # the error is what the sweeper makes of a sweep without a result
            raise SystemExit(1) from error
        raise
    failed, finished = _failed_and_finished()
    _name(failed, len(failed) + len(finished))
    if failed:
        raise SystemExit(1)


def _failed_and_finished() -> tuple[list[Path], list[Path]]:
    """Folders of the runs of this process's sweep that failed, and of those that did not; none if it has no sweep."""
    if SweepRecord.folder is None or not is_main_process():
        return [], []
    runs = [path.parent.parent for path in SweepRecord.folder.glob("*/.hydra/overrides.yaml")]
    runs.sort(key=lambda path: (len(path.name), path.name))  # 2 before 10
    failed = [path for path in runs if (path / FAILURE).exists() or not (path / RESULT).exists()]
    return failed, [path for path in runs if path not in failed]


def _name(failed: list[Path], count: int) -> None:
    """One line on stderr for each of the `failed` of `count` runs."""
    if not failed:
        return
    lines = [f"{len(failed)} of {count} runs failed:"]
    lines += [f"  {path}: {' '.join(_overrides(path))}: {_said(path)}" for path in failed]
    lines += [f"To run them again: {resuming(failed[0].parent)}"]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _overrides(run: Path) -> list[str]:
    """What made this run differ."""
    return _kept(OmegaConf.load(run / ".hydra" / "overrides.yaml"))


def _said(run: Path) -> str:
    """The error in one line."""
    note = run / FAILURE
    if note.exists():
        return note.read_text(encoding="utf-8").partition("\n")[0]
    return "it ended without a word (killed, or out of memory?)"
