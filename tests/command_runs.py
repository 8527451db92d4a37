"""Runs that tests start as commands: small settings, environment variables, and rows of their output files."""

from __future__ import annotations

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMALL = [
    "experiment=xsum_rl",
    "reward=faithfulness",  # the default reward trains a model first
    "task.train_size=200",
    "task.test_size=20",
    "student.sft.steps=3",
    "teacher.sft.steps=3",
    "student.architecture.dropout_rate=0.1",  # draws from torch's global generator in every stage
    "teacher.architecture.dropout_rate=0.1",
    "student.sft.batch_size=8",
    "teacher.sft.batch_size=8",
    "trainer.steps=3",
    "trainer.log_every=2",
    "trainer.prompts_per_step=4",
    "rollout.per_prompt=2",
    "task.max_completion_tokens=12",
    "evaluation.rollout_prompts=8",
    "evaluation.self_bleu_prompts=2",
    "evaluation.bootstrap_samples=100",
    "scale.threads=1",
]


def lines(file: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def environment(folder: Path, *first: Path, **variables: str) -> dict[str, str]:
    """Environment of a run: offline, cache below `folder`, `first` before the project on the path, then `variables`."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR", "OMP_NUM_THREADS")}
    paths = os.pathsep.join(map(str, (*first, ROOT)))
    return kept | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "GKD_RL_CACHE": str(folder / "cache")} | variables
