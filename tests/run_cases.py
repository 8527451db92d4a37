"""Run folders for tests, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from gkd_rl.outputs.run_record import machine_id


def make_run(folder: Path, config: dict[str, Any], *, overrides: tuple[str, ...] = (), **files: Any) -> Path:
    """A run folder: config.yaml, and the given eval, run (JSON), metrics and samples (JSON lines)."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "run", "seed": 0, **config}), encoding="utf-8")
    for name, content in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else json.dumps(content)
        (folder / f"{name}{'.jsonl' if isinstance(content, list) else '.json'}").write_text(lines, encoding="utf-8")
    return folder


def record_of(process: int, began: float, **more: Any) -> dict[str, Any]:
    """The run.json of a process of this machine."""
    record = {"status": "running", "machine": machine_id(), "pid": process, "process": began, "started": 0.0}
    return {**record, "ended": None, "error": None, **more}
