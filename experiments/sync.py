"""Upload to W&B what runs kept offline: after the fact, once, and only what is not there yet.

    python -m experiments.sync FOLDER...                             # every run in and below the folders
    python -m experiments.sync FOLDER... --report OUT --group SWEEP  # and the plots of a report, as a run of their own
    python -m experiments.sync FOLDER... --dry-run                   # only says what it would upload

Runs that still go on are left for later. `wandb sync` does the work, with the account of `wandb login`.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import Status, find_runs
from gkd_rl.errors import GkdRlError
from gkd_rl.tracking import Listing, Tracker

COMMAND = (sys.executable, "-m", "wandb", "sync")
PLOTS = (".png", ".html")
REPORT = "wandb_report"  # folder of the run that holds the plots, in the report's folder


def offline_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """W&B folders that are not uploaded yet: of ended runs, and of runs that still go on.

    Raises:
        DataError: a folder is not there.
    """
    going = [run.path for run in find_runs(folders) if run.status is Status.running]
    files = {file: None for folder in folders for file in sorted(folder.rglob("wandb/offline-run-*/*.wandb"))}
    waiting = [file.parent for file in files if not file.with_name(f"{file.name}.synced").exists()]
    later = [path for path in waiting if path.parent.parent in going]
    return [path for path in waiting if path not in later], later


def write_report(folder: Path, listing: Listing) -> None:
    """One W&B run, offline, with every PNG and HTML file of a report's folder.

    Raises:
        GkdRlError: there is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in PLOTS and REPORT not in path.parts)
    if not files:
        raise GkdRlError(f"--report {folder}: there is no PNG or HTML file in it; it takes the folder of a report.")
    with Tracker(folder / REPORT, "offline", listing, {}) as tracker:
        tracker.log_plots(files)


def upload(paths: Sequence[Path], options: Sequence[str], command: Sequence[str] = COMMAND) -> None:
    """`wandb sync` on these folders.

    Raises:
        GkdRlError: it failed, with what it said last.
    """
    done = subprocess.run(
        [*command, *options, *map(str, paths)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise GkdRlError(
            f"W&B did not take the runs ({said}): run `wandb login` once (--host URL for a server of your own), or set "
            "WANDB_API_KEY. Nothing is lost: the runs stay in their folders."
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folders, or folders that hold them")
    made.add_argument("--project", help="W&B project; by default the one each run was made for")
    made.add_argument("--entity", help="W&B user or team; by default that of the account")
    made.add_argument("--report", type=Path, metavar="DIR", help="upload the plots of this report too")
    made.add_argument("--group", help="W&B group of the report, e.g. the sweep's folder name")
    made.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and stop")
    return made


def main() -> None:
    """Command line; exit status 1 with one message for what cannot be uploaded."""
    arguments = parser().parse_args()
    try:
        if importlib.util.find_spec("wandb") is None:
            raise GkdRlError("experiments.sync needs the package wandb: pip install wandb.")
        folders = list(arguments.folders)
        if arguments.report is not None and not arguments.dry_run:
            listing = Listing(arguments.project or "gkd_rl", arguments.group, arguments.report.name, "report")
            write_report(arguments.report, listing)
            folders.append(arguments.report)
        ready, later = offline_runs(folders)
        for words, paths in (("to upload", ready), ("left for later, the run goes on", later)):
            sys.stdout.writelines(f"{words}: {path}\n" for path in paths)
        if not ready:
            sys.stdout.write("Nothing to upload: no offline run of W&B (tracking=offline) that is not there yet.\n")
        elif not arguments.dry_run:
            named = {"--project": arguments.project, "--entity": arguments.entity}
            upload(ready, [word for key, value in named.items() if value for word in (key, value)])
    except GkdRlError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
