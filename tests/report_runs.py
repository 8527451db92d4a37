"""Synthetic run folders for the report: any settings, number of steps and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from run_cases import make_run

from gkd_rl.data.embedded.news import generate

MODELS = ("teacher", "student before", "student after")
METRICS = (
    "rouge2",
    "reward",
    "completion_tokens",
    "sampled/rouge2",
    "sampled/reward",
    "sampled/divergence",
    "self_bleu",
)
STEP_METRICS = ("reward/mean", "reward/all_supported", "divergence", "entropy", "completion_tokens", "repetition")
COSTS = ("tokens/student_trained", "tokens/teacher_scored", "time/rollout", "time/student", "time/teacher")


def settings_of(changes: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with dotted keys, as far as the report uses it."""
    return {
        "alpha": 0.5,
        "lmbda": 1.0,
        "seed": 0,
        "name": "xsum_rl",
        "cache_dir": "/secret/place",
        "scale.name": "embedded",
        "task._target_": "gkd_rl.data.tasks.xsum.Xsum",
        "task.data": "embedded",
        "task.seed": 0,
        "task.train_size": 20000,
        "task.prompt_prefix": "",
        "task.data_files": None,
        "teacher.initial_student": False,
        "divergence.name": "jsd",
        "divergence.beta": 0.9,
        "evaluation.split": "test",
        "evaluation.self_bleu_temperature": 1.0,
        "reward.judge": "all_supported",
        "trainer.train_rows": None,
        **changes,
    }


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def write_run(
    folder: Path, changes: dict[str, Any], steps: int = 30, metrics: int = 0, texts: list[str] | None = None
) -> Path:
    """One finished run.

    Args:
        folder: created.
        changes: dotted settings.
        steps: lines of metrics.jsonl.
        metrics: further step metrics.
        texts: the student's completions, row by row; the references if None.
    """
    settings = settings_of(changes)
    generator = np.random.default_rng(
        [settings["seed"], round(settings["alpha"] * 100), round(settings["lmbda"] * 100)]
    )
    items = generate("test", 6 if texts is None else len(texts), 0)
    completions = [item.summary for item in items] if texts is None else texts
    predictions = [
        {"prompt": item.article, "reference": item.summary, **dict.fromkeys(MODELS[:2], item.summary), MODELS[2]: text}
        for item, text in zip(items, completions, strict=True)
    ]
    samples = [
        {"step": 10, "prompt": item.article, "completion": text, "reference": item.summary, "source": "student"}
        | {"reward": 0.25, "rewards": {"all_supported": 0.25}}
        for item, text in zip(items[:2], completions, strict=False)
    ]
    rows = step_rows(settings["alpha"], steps, metrics, generator)
    results = evaluation(settings, generator)
    make_run(folder, nested(settings), eval=results, metrics=rows, predictions=predictions, samples=samples)
    return folder


def evaluation(settings: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """eval.json: quality rises in alpha and lambda, the reward falls in alpha."""
    alpha, lmbda, noise = settings["alpha"], settings["lmbda"], generator.normal(0, 0.3)
    after = {"rouge2": 30 + 20 * alpha + 4 * lmbda + noise, "reward": 0.6 - 0.5 * alpha + noise / 50}
    results: dict[str, Any] = {
        "notice": "made up",
        "cost": {"time/rollout": 30.0, "time/student": 20.0, "time/total": 51.0, "tokens/student_trained": 9000.0},
    }
    for model, shift in zip(MODELS, (8.0, 0.0, None), strict=True):
        values = {name: after.get(name, 20 + 10 * alpha + noise) for name in METRICS}
        if shift is not None:
            values = {"rouge2": 40 + shift, "reward": 0.15 + shift / 100, **dict.fromkeys(METRICS[2:], 10.0 + shift)}
        results[model] = {
            name: {"mean": value, "low": value - 1, "high": value + 1, "n": 100} for name, value in values.items()
        }
    results["after - before"] = {
        name: {"mean": after[name] - results["student before"][name]["mean"], "low": -1, "high": 1, "n": 100}
        for name in after
    }
    return results


def step_rows(alpha: float, steps: int, metrics: int, generator: np.random.Generator) -> list[dict[str, float]]:
    """metrics.jsonl: random walks and costs."""
    names = [*STEP_METRICS, *(f"further_{i}" for i in range(metrics))]
    walks = generator.normal(0, 1, (steps, len(names))).cumsum(0).round(6)
    costs = generator.integers(500, 900, (steps, len(COSTS))).astype(float)
    rows = []
    for step in range(steps):
        row = {"step": step + 1, "alpha": alpha} | dict(zip(names, walks[step].tolist(), strict=True))
        row |= dict(zip(COSTS, costs[step].tolist(), strict=True))
        if step % 10 == 0:
            row |= {"gradient/divergence_share": 0.3, "gradient/cosine": float(walks[step, 0] / 100)}
        rows.append(row)
    return rows
