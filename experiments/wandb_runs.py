"""Runs that were uploaded to W&B, written back as run folders, so that all that reads folders reads them too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gkd_rl.errors import GkdRlError
from gkd_rl.json_files import JsonLines, plain, write_json
from gkd_rl.run_record import RECORD

SCHEME = "wandb:"
STATES = {"finished": "finished", "running": "running", "pending": "running", "preempting": "running"}
PARTS = ("mean", "low", "high", "n")
WORDS = ("NaN", "Infinity", "-Infinity")


def fetch(address: str, folder: Path, api: Any = None) -> Path:
    """Write every run of `wandb:ENTITY/PROJECT[/GROUP]` below `folder`.

    Args:
        address: of a project, or of one group in it.
        folder: gets one folder for the address, and in it one for each run.
        api: a `wandb.Api`; by default one with the account of `wandb login`.

    Returns:
        The folder of the address.

    Raises:
        GkdRlError: the address is none, wandb is absent, or W&B refuses.
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
    except Exception as error:  # of its own kinds, of requests, of its servers
        raise GkdRlError(
            f"{address}: W&B cannot be read ({' '.join(str(error).split())}): run `wandb login` once, look whether the "
            "project is there, or name run folders instead."
        ) from error
    return target


def _api() -> Any:
    """W&B's own reader."""
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
    error = f"W&B calls it {run.state}" if state == "failed" else None
    record = {"status": state, "machine": "wandb", "pid": 0, "process": 0.0, "started": time.time(), "error": error}
    write_json(folder / RECORD, record)


def _metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `Tracker.log_step` logged: numbers, of which W&B writes NaN and inf as words, and no keys of W&B's own."""
    own = {key: value for key, value in row.items() if not key.startswith("_")}
    return {key: value for key, value in own.items() if isinstance(value, (int, float)) or value in WORDS}


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
