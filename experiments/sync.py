"""W&B in both directions: uploads runs that were tracked offline, and downloads runs as run folders.

    python -m experiments.sync FOLDER...                             # every run in and below the folders
    python -m experiments.sync FOLDER... --report OUT --group SWEEP  # also the plots of a report, as a run of its own
    python -m experiments.sync FOLDER... --dry-run                   # only prints what it would upload

A run is uploaded once, after it has ended. `wandb sync` does the upload, with the account of `wandb login`. `fetch` is
the other direction: `experiments.compare wandb:ENTITY/PROJECT` reads the folders that it writes.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.runs import Status, find_runs
from gkd_rl.errors import GkdRlError
from gkd_rl.outputs.json_files import JsonLines, plain, write_json
from gkd_rl.outputs.run_record import RECORD
from gkd_rl.outputs.tracking import Listing, Tracker

SCHEME = "wandb:"
STATES = {"finished": "finished", "running": "running", "pending": "running", "preempting": "running"}
PARTS = ("mean", "low", "high", "n")
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
COMMAND = (sys.executable, "-m", "wandb", "sync")
PLOTS = (".png", ".html")
REPORT = "wandb_report"  # folder of the run with the plots, in the report's folder


def fetch(address: str, folder: Path, api: Any = None) -> Path:
    """Write every run of `wandb:ENTITY/PROJECT[/GROUP]` below `folder`.

    Args:
        address: of a project, or of one group in it.
        folder: gets one folder for the address, with one folder for each run.
        api: a `wandb.Api`; by default one with the account of `wandb login`.

    Returns:
        The folder of the address.

    Raises:
        GkdRlError: the address is malformed, wandb is not installed, or W&B refuses.
    """
    parts = address.removeprefix(SCHEME).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise GkdRlError(f"{address}: an address of W&B is wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/GROUP.")
    filters = {"group": parts[2]} if len(parts) > 2 else None
    target = folder / "_".join(parts).replace("/", "_")
    target.mkdir(parents=True, exist_ok=True)
    try:
        api = _api() if api is None else api
        for run in api.runs("/".join(parts[:2]), filters=filters):
            _write(target / f"{run.name}-{run.id}".replace("/", "_"), run)
    except GkdRlError:
        raise
    except Exception as error:  # of wandb, of requests, of the server
        raise GkdRlError(
            f"{address}: W&B cannot be read ({' '.join(str(error).split())}): run `wandb login` once, check that the "
            "project exists, or name run folders instead."
        ) from error
    return target


def _api() -> Any:
    """W&B's API with the account of `wandb login`."""
    try:
        import wandb
    except ImportError as error:
        raise GkdRlError(f"wandb: addresses need the package wandb ({error}): pip install wandb.") from error
    return wandb.Api()


def _write(folder: Path, run: Any) -> None:
    """One run as config.yaml, metrics.jsonl, run.json and, if it finished, eval.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(dict(run.config))), encoding="utf-8")
    lines = JsonLines(folder / "metrics.jsonl")
    lines.append(_metrics(row) for row in run.scan_history() if row.get("step") is not None)
    lines.close()
    results = _results(dict(run.summary))
    state = STATES.get(run.state, "failed")
    if state == "finished" and results:
        write_json(folder / "eval.json", results)
    error = f"its state in W&B is {run.state}" if state == "failed" else None
    record = {"status": state, "machine": "wandb", "pid": 0, "process": 0.0, "started": time.time(), "error": error}
    write_json(folder / RECORD, record)


def _metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that `Tracker.log_step` logged (W&B has NaN and infinity as text), without keys that W&B adds."""
    own = {key: value for key, value in row.items() if not key.startswith("_")}
    return {key: value for key, value in own.items() if isinstance(value, (int, float)) or value in NOT_FINITE}


def _results(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Estimates and costs as in eval.json, from a summary whose keys `Tracker.summary` joined by "/"."""
    results: dict[str, dict[str, Any]] = {}
    for key, value in summary.items():
        model, _, rest = key.partition("/")
        metric, _, part = rest.rpartition("/")
        if model == "cost":
            results.setdefault(model, {})[rest] = value
        elif metric and part in PARTS and f"{model}/{metric}/mean" in summary:
            results.setdefault(model, {}).setdefault(metric, {})[part] = value
    return results


def offline_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """W&B folders that are not uploaded yet: of runs that have ended, and of runs that are still running.

    Raises:
        DataError: a folder does not exist.
    """
    running = [run.path for run in find_runs(folders) if run.status is Status.running]
    files = {file: None for folder in folders for file in sorted(folder.rglob("wandb/offline-run-*/*.wandb"))}
    waiting = [file.parent for file in files if not file.with_name(f"{file.name}.synced").exists()]
    later = [path for path in waiting if path.parent.parent in running]
    return [path for path in waiting if path not in later], later


def write_report(folder: Path, listing: Listing) -> None:
    """One W&B run, offline, with every PNG and HTML file of a report's folder.

    Raises:
        GkdRlError: there is no such file.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in PLOTS and REPORT not in path.parts)
    if not files:
        raise GkdRlError(f"--report {folder}: there is no PNG or HTML file in it; it takes the folder of a report.")
    with Tracker(folder / REPORT, "offline", listing, {}) as tracker:
        tracker.log_plots(files)


def upload(paths: Sequence[Path], options: Sequence[str], command: Sequence[str] = COMMAND) -> None:
    """`wandb sync` on these folders.

    Raises:
        GkdRlError: it failed, with the last line of its errors.
    """
    done = subprocess.run(
        [*command, *options, *map(str, paths)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise GkdRlError(
            f"W&B did not accept the runs ({reason}): run `wandb login` once (--host URL for a server of your own), or "
            "set WANDB_API_KEY. Nothing is lost: the runs are kept in their folders."
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folders, or folders that hold them")
    made.add_argument("--project", help="W&B project; by default each run's own")
    made.add_argument("--entity", help="W&B user or team; by default the account's")
    made.add_argument("--report", type=Path, metavar="DIR", help="upload the plots of this report too")
    made.add_argument("--group", help="W&B group of the report, e.g. the sweep's folder name")
    made.add_argument("--dry-run", action="store_true", help="print what would be uploaded, and stop")
    return made


def main() -> None:
    """Command line; exit status 1 with one message if the runs cannot be uploaded."""
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
        for heading, paths in (("to upload", ready), ("not yet, the run is not finished", later)):
            sys.stdout.writelines(f"{heading}: {path}\n" for path in paths)
        if not ready:
            sys.stdout.write("Nothing to upload: every offline run of W&B (tracking=offline) is uploaded already.\n")
        elif not arguments.dry_run:
            named = {"--project": arguments.project, "--entity": arguments.entity}
            upload(ready, [part for key, value in named.items() if value for part in (key, value)])
    except GkdRlError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
