"""A run's command in a process of its own, forked from one that has imported all of it: importing takes 15 seconds.

Commands that have to begin with a new interpreter (other files on its path, workers of a launcher, what libraries
print) are started as a user starts them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gkd_rl import run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["gkd_rl.pipeline", "hydra_plugins.hydra_optuna_sweeper._impl"])
SECONDS = 300


def run_forked(
    arguments: list[str], folder: Path, before: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m gkd_rl.run` with `arguments` in `folder`, after the Python statements `before`."""
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_command, args=(arguments, folder, before, variables, *outputs))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments}: {SECONDS} s")
        out, err = (file.read_text(encoding="utf-8") for file in outputs)
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def _command(arguments: list[str], folder: Path, before: str, variables: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.update(variables)
    run.WANTS_TRACEBACK = False
    sys.argv = ["gkd_rl.run", *arguments]
    exec(before, {})
    run.cli()
