"""The command a user types, at a size of seconds: what it leaves behind, twice the same, in folders of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from command_runs import SMALL, lines
from forked import run_forked
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gkd_rl import ConfigError, GkdRlError, run_experiment

pytestmark = pytest.mark.slow


def run(folder: Path, *overrides: str, before: str = "") -> str:
    """Run the command in `folder`, with `before` first on the path; returns what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GKD_RL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([before, str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "gkd_rl.run", *SMALL, *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def run_again(folder: Path, *overrides: str) -> str:
    """The same command in a process that need not import everything anew."""
    done = run_forked([*SMALL, *overrides], folder, GKD_RL_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one finished run in `outputs`."""
    folder = tmp_path_factory.mktemp("work")
    output = run(folder, "alpha=0.5", "hydra.run.dir=first", "trainer.profile=true")
    assert "the mean of 3 steps" in output and "everything else" in output
    assert "student after" in output and "ROUGE-2" in output and "JSD(0.9), unit scale, sequence_mean" in output
    assert "embedded scale" in output
    return folder


def test_a_run_leaves_everything(folder: Path) -> None:
    first = folder / "first"
    metrics, samples = lines(first / "metrics.jsonl"), lines(first / "samples.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    wanted = {"loss", "policy_gradient", "divergence", "reward/mean", "reward/all_supported", "entropy", "alpha"}
    assert wanted <= metrics[0].keys()
    assert {row["step"] for row in samples} == {2, 3} and {"prompt", "completion", "reward"} <= samples[0].keys()
    results = json.loads((first / "eval.json").read_text(encoding="utf-8"))
    assert {"teacher", "student before", "student after", "after - before"} <= results.keys()
    rouge = results["student after"]["rouge2"]
    assert rouge["n"] == 20 and rouge["low"] <= rouge["mean"] <= rouge["high"]
    assert results["teacher"]["sampled/divergence"]["mean"] == pytest.approx(0, abs=1e-6)
    profiles = {model: found["sampled/divergence"] for model, found in results["by_position"].items()}
    assert profiles["teacher"] == pytest.approx([0] * len(profiles["teacher"]), abs=1e-6)
    own = results["student after"]["sampled/divergence"]
    assert 1 < len(profiles["student after"]) <= 12 and 0 < own["mean"] < 2 * max(profiles["student after"])
    assert len(lines(first / "predictions.jsonl")) == 20 and lines(first / "predictions.jsonl")[0]["prompt"]
    assert yaml.safe_load((first / "config.yaml").read_text(encoding="utf-8"))["alpha"] == 0.5
    assert json.loads((first / "environment.json").read_text(encoding="utf-8"))["packages"]["torch"]
    assert list((first / "wandb").glob("offline-run-*"))
    assert json.loads((first / "run.json").read_text(encoding="utf-8"))["status"] == "finished"


def test_the_saved_model_writes_the_reported_summaries(folder: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "first" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "first" / "model")
    from gkd_rl.data.embedded.news import generate

    article = generate("test", 1, 0)[0].article
    with torch.no_grad():
        ids = model.generate(**tokenizer(article, return_tensors="pt"), do_sample=False, max_new_tokens=12)
    written = tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert written == lines(folder / "first" / "predictions.jsonl")[0]["student after"]
    card = (folder / "first" / "model" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSeq2SeqLM" in card and "JSD(0.9), unit scale" in card


def untimed(values: dict) -> dict:
    return {key: value for key, value in values.items() if not key.startswith("time/")}


def numbers(path: Path) -> list[dict]:
    results = json.loads((path / "eval.json").read_text(encoding="utf-8"))
    results["cost"] = untimed(results["cost"])
    assert results.pop("memory")["peak_bytes"] > 0
    return [*map(untimed, lines(path / "metrics.jsonl")), results]


def test_the_same_seed_twice_at_once_is_the_same_run_in_two_folders(folder: Path) -> None:
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda _: run_again(folder, "alpha=0.5", "tracking=none"), range(2)))
    assert all(output.count("reused the supervised model") == 2 for output in outputs)
    found = sorted((folder / "outputs" / "xsum_rl").iterdir())
    assert len(found) == 2

    for path in found:
        assert numbers(path) == numbers(folder / "first")


@pytest.mark.exhaustive
def test_a_sweep_gives_every_combination_its_own_folder(folder: Path) -> None:
    run_again(folder, "-m", "alpha=0.25,0.75", "seed=0,1", "tracking=none", "trainer.steps=1", "save_model=false")
    found = sorted((folder / "multirun" / "xsum_rl").glob("*/*/config.yaml"))
    settings = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in found]
    assert sorted((one["alpha"], one["seed"]) for one in settings) == [(0.25, 0), (0.25, 1), (0.75, 0), (0.75, 1)]


@pytest.mark.exhaustive
def test_the_supervised_control_needs_neither_teacher_nor_rollouts_nor_wandb(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['wandb'] = None", encoding="utf-8")
    control = ("experiment=sft", "hydra.run.dir=control", "tracking=none", "trainer.prompts_per_step=8")
    run(folder, *control, before=str(tmp_path))
    row = lines(folder / "control" / "metrics.jsonl")[0]
    assert "reward/mean" not in row and "policy_gradient" not in row
    assert row["tokens/student_generated"] == 0 and row["tokens/teacher_scored"] == 0 and row["divergence"] > 0


def test_the_run_of_python_is_the_run_of_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKD_RL_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    loggers = {name: logging.getLogger(name) for name in ("gkd_rl", "reward_models")}
    before = {name: (logger.level, logger.propagate, list(logger.handlers)) for name, logger in loggers.items()}
    results = run_experiment([*SMALL, "alpha=0.5", "tracking=none"], "python")
    assert {name: (one.level, one.propagate, one.handlers) for name, one in loggers.items()} == before
    python = folder / "python"
    assert results.folder == python and numbers(python) == numbers(folder / "first")
    stored = json.loads((python / "eval.json").read_text(encoding="utf-8"))
    assert results.objective(0.5) == stored["objective"]
    assert results.estimates()["student after"]["rouge2"].mean == stored["student after"]["rouge2"]["mean"]
    for name in ("run.json", "command.json", "gkd_rl.log", ".hydra/overrides.yaml", ".hydra/config.yaml"):
        assert (python / name).is_file(), name
    assert "the supervised model" in (python / "gkd_rl.log").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="that run is finished"):
        run_experiment(["resume=python"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["alpha=2"], ["alpha=2.0", ">= 0 and <= 1"]),
        (["alpha=2", "lmbda=3"], ["alpha=2.0", "lmbda=3.0"]),
        (["alpha=0,1"], ["alpha=0,1"]),
        (["sweep=alpha"], ["one run"]),
        (["sweep.resume=s"], ["one run"]),
        (["-m", "alpha=1"], ["one run"]),
        (["task.data_files={train: no.jsonl, validation: no.jsonl, test: no.jsonl}"], ["no.jsonl"]),
    ],
    ids=lambda values: values[0],
)
def test_python_is_refused_what_the_command_is(
    overrides: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GkdRlError) as refused:
        run_experiment(overrides, tmp_path / "run")
    for part in parts:
        assert part in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_overrides_are_a_list() -> None:
    with pytest.raises(TypeError, match="overrides is a list"):
        run_experiment("alpha=0.5")
