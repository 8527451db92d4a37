"""Sweeps: one failed run is one failed run, a broken sweep is finished, and every launcher gives the same numbers.

Most sweeps here are of runs that take no time: `STUB` stands in for the pipeline in every process, whoever starts it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_runs import SMALL, environment, lines
from forked import run_forked
from hydra import compose, initialize_config_dir
from old_targets import with_old_targets
from omegaconf import DictConfig, OmegaConf

from gkd_rl.cli import sweeps
from gkd_rl.cli.command_line import check_command_line
from gkd_rl.cli.sweeps import finished_numbers, objective_values, recording_failure, share_threads, with_resumed_sweep
from gkd_rl.config import Config
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError
from gkd_rl.run import find_config_dir
from reward_models.guard import entry_lock

ROOT = Path(__file__).resolve().parents[2]
CONF = find_config_dir()
STUB = """
import json, os, signal, sys, types

def listed(name, value):
    return str(value) in os.environ.get(name, "").split()

def run_configured(config, settings, folder):
    from omegaconf import OmegaConf
    from gkd_rl.errors import RewardError
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(settings, resolve=True))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"openmp": os.environ.get("OMP_NUM_THREADS"), "process": os.getpid()}) + "\\n")
    with open("runs.txt", "a") as file:
        file.write(f"{folder.name}\\n")
    if listed("FAILS", config.seed) or listed("FAILS_AT", folder.name):
        raise RewardError(f"the reward of seed {config.seed} is unusable")
    if listed("DIES", folder.name):
        os.kill(os.getpid(), signal.SIGKILL)
    after = {"reward": 1 - config.alpha, "rouge2": 10 * config.alpha}
    objective = -((config.alpha - 0.3) ** 2)
    rows = {name: {"mean": value} for name, value in after.items()}
    (folder / "eval.json").write_text(json.dumps({"objective": objective, "student after": rows}))
    return types.SimpleNamespace(numbers=lambda alpha: {"objective": objective, **after})

module = types.ModuleType("gkd_rl.pipeline.experiment")
module.run_configured = run_configured
sys.modules["gkd_rl.pipeline.experiment"] = module
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every Python process of a stubbed sweep reads first."""
    folder = tmp_path_factory.mktemp("stub")
    (folder / "sitecustomize.py").write_text(STUB, encoding="utf-8")
    return folder


def sweep(stub: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in `folder` whose runs take no time."""
    return subprocess.run(
        [sys.executable, "-m", "gkd_rl.run", *arguments],
        cwd=folder,
        env=environment(folder, stub, **variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def times_run(folder: Path) -> Counter[str]:
    return Counter((folder / "runs.txt").read_text(encoding="utf-8").split())


@pytest.mark.slow
def test_a_failed_run_is_named_and_run_again(stub: Path, tmp_path: Path) -> None:
    done = sweep(stub, tmp_path, "-m", "alpha=0.5", "seed=0,1,2", "hydra.sweep.dir=s", FAILS="1")
    assert done.returncode == 1
    assert times_run(tmp_path) == {"0": 1, "1": 1, "2": 1}
    assert "this resumes it: python -m gkd_rl.run sweep.resume=s" in done.stdout
    named = done.stderr.splitlines()
    assert named[-3:-1] == ["1 of 3 runs failed:", "  s/1: alpha=0.5 seed=1: the reward of seed 1 is unusable"]
    assert named[-1].endswith("sweep.resume=s") and "Traceback" not in done.stderr
    assert "RewardError" in (tmp_path / "s" / "1" / "error.txt").read_text(encoding="utf-8")

    done = run_forked(["sweep.resume=s", "seed=0,1,2"], tmp_path, STUB)
    assert done.returncode == 0, done.stderr
    assert times_run(tmp_path) == {"0": 1, "1": 2, "2": 1}
    again = tmp_path / "s" / "1"
    assert len(lines(again / "metrics.jsonl")) == 1 and not (again / "error.txt").exists()
    settings = yaml.safe_load((again / "config.yaml").read_text(encoding="utf-8"))
    assert (settings["seed"], settings["sweep"]["resume"]) == (1, None)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_job_of_submitit_that_fails_does_not_stop_the_others(stub: Path, tmp_path: Path) -> None:
    command = ["-m", "seed=0,1,2", "hydra/launcher=submitit_local", "hydra.sweep.dir=s"]
    done = sweep(stub, tmp_path, *command, FAILS="1")
    assert done.returncode == 1
    assert "1 of 3 runs failed:\n  s/1: seed=1: the reward of seed 1 is unusable\n" in done.stderr
    runs = [tmp_path / "s" / number for number in "012"]
    assert [(run / "eval.json").is_file() for run in runs] == [True, False, True]
    assert len({row["process"] for run in runs for row in lines(run / "metrics.jsonl")}) == 3


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_search_that_was_killed_finds_what_an_undisturbed_one_finds(tmp_path: Path) -> None:
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    for folder in (undisturbed, broken):
        folder.mkdir()
    command = [
        "sweep=search",
        "alpha=interval(0,1)",
        "hydra.sweeper.n_trials=5",
        "hydra.sweeper.sampler.n_startup_trials=2",
        "hydra.sweep.dir=s",
    ]
    done = run_forked(command, undisturbed, STUB)
    assert done.returncode == 0, done.stderr
    assert run_forked(command, broken, STUB, DIES="3").returncode == -signal.SIGKILL
    done = run_forked(["sweep.resume=s"], broken, STUB)
    assert done.returncode == 0, done.stderr
    assert times_run(broken) == {str(number): 2 if number == 3 else 1 for number in range(5)}
    found = [
        (folder / "s" / "optimization_results.yaml").read_text(encoding="utf-8") for folder in (undisturbed, broken)
    ]
    assert found[0] == found[1]
    best = yaml.safe_load(found[0])
    tried = [yaml.safe_load((undisturbed / "s" / str(i) / "config.yaml").read_text())["alpha"] for i in range(5)]
    assert best["best_params"]["alpha"] == min(tried, key=lambda alpha: abs(alpha - 0.3))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_search_for_two_numbers_keeps_the_runs_that_no_other_beats(stub: Path, tmp_path: Path) -> None:
    command = ["sweep=pareto", "hydra.sweeper.n_trials=4", "hydra/launcher=parallel", "hydra.sweeper.n_jobs=2"]
    done = sweep(stub, tmp_path, *command, "hydra.sweep.dir=s", FAILS_AT="1")
    assert done.returncode == 1 and "1 of 4 runs failed:\n  s/1: " in done.stderr
    half = str(max(1, (os.cpu_count() or 1) // 2))
    for number in "0123":
        run = tmp_path / "s" / number
        assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["scale"]["threads"] == 1
        assert [row["openmp"] for row in lines(run / "metrics.jsonl")] == [half]
    front = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text(encoding="utf-8"))["solutions"]
    assert len(front) == 3  # in the stub each alpha is best at some exchange rate
    for one in front:
        assert one["values"] == pytest.approx([1 - one["params"]["alpha"], 10 * one["params"]["alpha"]])


# --- without a process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sweep=search", "alpha=interval(0,2)"], ["alpha=2.0", ">= 0 and <= 1"]),
        (["sweep=search", "divergence=choice(jsd,nope)"], ["divergence=nope", "forward_kl"]),
        (["sweep=search", "sweep.objectives=[reward,rouge2]"], ["2 objectives", "direction=[maximize,maximize]"]),
        (["sweep=pareto", "sweep.objectives=[reward]"], ["1 objectives", "direction=[maximize]"]),
        (["sweep.objectives=[rouge3]"], ["sweep.objectives=rouge3", "Did you mean rouge"]),
        (["sweep.objectives=[reward]", "reward=none", "alpha=1"], ["sweep.objectives=reward", "objective"]),
        (["sweep.objectives=[]"], ["sweep.objectives=[]", "[objective]"]),
    ],
)
def test_a_wrong_search_is_refused_before_it_starts(arguments: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command_line(CONF, arguments)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("hydra/launcher=parallel", "joblib"),
        pytest.param("hydra/launcher=slurm", "submitit", marks=pytest.mark.exhaustive),
        pytest.param("hydra/launcher=ray_cluster", "ray", marks=pytest.mark.exhaustive),
        ("hydra/sweeper=search", "optuna"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(
    choice: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_command_line(CONF, ["-m", choice, "alpha=0.5"])
    assert caught.value.problems[0].startswith(f"{choice} needs hydra_{extra}_")
    assert f'pip install "gkd_rl[{extra}]"' in caught.value.problems[0]


def test_the_ready_slurm_file_has_only_settings_of_its_launcher() -> None:
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    ready = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text(encoding="utf-8"))
    known = OmegaConf.structured(SlurmQueueConf)
    assert ready.keys() <= known.keys() and ready["_target_"] == known._target_


def with_hydra(*overrides: str) -> tuple[DictConfig, Any]:
    """The composed settings of a job, and Hydra's."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
    hydra = composed.hydra
    hydra.overrides.task = [text for text in overrides if not text.startswith("hydra")]
    return composed, hydra


@pytest.mark.parametrize(
    ("overrides", "threads"),
    [
        ([], 2),
        (["hydra/launcher=parallel"], 1),
        (["hydra/launcher=parallel", "hydra.launcher.n_jobs=4"], 1),
        (["hydra/launcher=parallel", "hydra.launcher.n_jobs=1"], 2),
        (["hydra/launcher=parallel", "scale.threads=6"], 6),
        (["hydra/launcher=parallel", "scale=single_gpu"], 0),
        (["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"], 1),
        (["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=8"], 2),
        (["hydra/launcher=ray_cluster", "hydra.launcher.ray.remote.num_cpus=1"], 1),
    ],
)
def test_runs_at_once_share_the_threads(overrides: list[str], threads: int) -> None:
    settings, hydra = with_hydra(*overrides)
    share_threads(settings, hydra)
    assert settings.scale.threads == threads


def test_minus_one_job_is_one_for_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    settings, hydra = with_hydra("hydra/launcher=parallel", "hydra.launcher.n_jobs=-1")
    settings.scale.threads = 8
    share_threads(settings, hydra)
    assert settings.scale.threads == 2


def test_what_a_sweeper_receives() -> None:
    numbers = {"objective": 1.0, "reward": 2.0, "rouge2": 3.0}
    assert objective_values(numbers, ["objective"]) == 1.0
    assert objective_values(numbers, ["rouge2", "reward"]) == [3.0, 2.0]
    with pytest.raises(ConfigError, match=r"reward/kind.*objective, reward, rouge2"):
        objective_values(numbers, ["reward/kind"])


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A sweep's folder."""
    started = {"task": ["alpha=0,1", "name=mine"], "hydra": ["hydra/launcher=parallel", "hydra.launcher.n_jobs=4"]}
    (tmp_path / "sweep.json").write_text(json.dumps(started), encoding="utf-8")
    return tmp_path


def test_a_sweep_goes_on_with_the_settings_that_it_began_with(record: Path) -> None:
    resume = f"sweep.resume={record}"
    former = ["-m", "alpha=0,1", "name=mine", "hydra/launcher=parallel"]
    here = [resume, f"hydra.sweep.dir={record}"]
    assert with_resumed_sweep([resume]) == [*former, "hydra.launcher.n_jobs=4", *here]
    again = ["--config-dir", "mine", "-m", "alpha=0,1", resume, "hydra.launcher.n_jobs=2"]
    assert with_resumed_sweep(again) == [*former, "hydra.launcher.n_jobs=2", "--config-dir", "mine", *here]
    for unrelated in ([], ["alpha=0.5"], ["sweep.resume=null"], ["sweep=alpha"]):
        assert with_resumed_sweep(unrelated) == unrelated


def test_a_resumed_sweep_takes_no_other_settings(record: Path) -> None:
    with pytest.raises(ConfigError, match=r"alpha=0,2 beside sweep.resume.*alpha=0,1 name=mine"):
        with_resumed_sweep(["alpha=0,2", f"sweep.resume={record}"])
    with pytest.raises(ConfigError, match=r"sweep.resume=nowhere: there is no sweep.json"):
        with_resumed_sweep(["sweep.resume=nowhere"])


def finished(folder: Path, *overrides: str) -> DictConfig:
    """A finished run in `folder`; returns its settings."""
    settings, _ = with_hydra(*overrides)
    del settings.hydra
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(settings, resolve=True), encoding="utf-8")
    results = {"objective": 0.1, "student after": {"reward": {"mean": 1 / 3}, "rouge2": {"mean": "nan"}}}
    (folder / "eval.json").write_text(json.dumps(results), encoding="utf-8")
    return settings


def test_a_finished_run_gives_its_numbers_and_keeps_its_files(tmp_path: Path) -> None:
    settings = finished(tmp_path, "experiment=xsum_rl", "trainer.learning_rate=1e-3")
    settings.scale.threads, settings.cache_dir = 1, "elsewhere"
    numbers = finished_numbers(settings, tmp_path)
    assert numbers is not None and numbers["objective"] == 0.1 and numbers["reward"] == 1 / 3
    assert numbers["rouge2"] != numbers["rouge2"]
    assert (tmp_path / "eval.json").is_file()


def test_a_sweep_made_before_targets_moved_is_resumed(tmp_path: Path) -> None:
    started = {"task": ["task._target_=gkd_rl.tasks.wmt.Wmt"], "hydra": ["hydra.sweeper.params={seed: '0,1'}"]}
    (tmp_path / "sweep.json").write_text(json.dumps(started), encoding="utf-8")
    resume = f"sweep.resume={tmp_path}"
    there = ["-m", "task._target_=gkd_rl.data.tasks.wmt.Wmt", *started["hydra"], resume, f"hydra.sweep.dir={tmp_path}"]
    assert with_resumed_sweep([resume]) == with_resumed_sweep([resume, *started["task"]]) == there
    settings = finished(tmp_path, "experiment=xsum_rl")
    stored = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config.yaml").write_text(with_old_targets(stored), encoding="utf-8")
    assert with_old_targets(stored).count("reward_models.trained_entailment.TrainedEntailment") == 1
    numbers = finished_numbers(settings, tmp_path)
    assert numbers is not None and numbers["objective"] == 0.1


def test_a_finished_run_of_other_settings_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    settings = finished(tmp_path, "alpha=0.5")
    settings.alpha = 0.25
    with pytest.raises(ConfigError, match=r"alpha is 0.5 there and 0.25 here"):
        finished_numbers(settings, tmp_path)
    assert (tmp_path / "eval.json").is_file()


def test_an_unfinished_run_starts_from_an_empty_folder(tmp_path: Path) -> None:
    settings = finished(tmp_path)
    (tmp_path / "eval.json").unlink()
    for name in (".hydra/overrides.yaml", "model/weights", "wandb/run"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for name in ("metrics.jsonl", "gkd_rl.log", "error.txt"):
        (tmp_path / name).touch()
    assert finished_numbers(settings, tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {".hydra", "gkd_rl.log"}
    assert finished_numbers(settings, tmp_path / "never begun") is None


def test_a_failure_is_one_line_and_its_traceback(tmp_path: Path) -> None:
    with recording_failure(tmp_path):
        raise KeyError("first\nsecond")
    note = (tmp_path / "error.txt").read_text(encoding="utf-8")
    assert note.startswith("KeyError: 'first\\nsecond'\n\nTraceback")
    with recording_failure(tmp_path):
        pass
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize("sweep", ["search", "pareto"])
def test_ready_searches_compose(sweep: str) -> None:
    for config in check_command_line(CONF, [f"sweep={sweep}", "experiment=xsum_rl"]):
        assert isinstance(config, Config)
        validate(config)


# --- locks -----------------------------------------------------------------------------------------------------------

MAKER = """
import logging, sys, time
from pathlib import Path
from reward_models.guard import entry_lock
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
entry = Path(sys.argv[1])
with entry_lock(entry):
    print("made" if entry.is_dir() else "making", flush=True)
    sys.stdin.readline()
    entry.mkdir(exist_ok=True)
"""


def maker(entry: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(entry)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(entry.parent), stdin=pipe, stdout=pipe, text=True)


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_makes_an_entry_and_a_dead_one_is_not_waited_for(killed: bool, tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "key"
    first = maker(entry)
    assert first.stdout is not None and first.stdout.readline() == "making\n"
    second = maker(entry)
    assert second.stdout is not None
    assert second.stdout.readline() == f"Waiting for {entry}, which another process makes ...\n"
    assert not select.select([second.stdout], [], [], 1)[0], "it did not wait"
    if killed:
        first.kill()
    else:
        first.communicate("\n", timeout=20)
    assert second.stdout.readline() == ("making\n" if killed else "made\n")
    second.communicate("\n", timeout=20)
    first.wait(timeout=20)
    assert second.returncode == 0 and entry.is_dir()


# --- runs that train -------------------------------------------------------------------------------------------------

TRAINED = ["-m", *SMALL, "alpha=0.25,0.5,0.75", "tracking=none", "hydra.sweep.dir=s"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in `folder`, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gkd_rl.run", *arguments],
        cwd=folder,
        env=environment(folder, OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def trained(folder: Path, *arguments: str) -> str:
    """What a command in `folder` printed."""
    folder.mkdir(exist_ok=True)
    done = run_forked(list(arguments), folder, GKD_RL_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith("time/")}


def numbers(run: Path) -> list[Any]:
    """All that a run found, without seconds and bytes."""
    results = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    results["cost"] = untimed(results["cost"])
    assert results.pop("memory")["peak_bytes"] > 0
    return [*map(untimed, lines(run / "metrics.jsonl")), results, lines(run / "predictions.jsonl")]


def log_of(run: Path) -> str:
    file = run / "gkd_rl.log"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_jobs_at_once_and_a_sweep_that_was_killed_give_the_numbers_of_one_after_the_other(tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    trained(plain, *TRAINED)

    third = broken / "s" / "2" / "metrics.jsonl"
    firsts = [broken / "s" / number for number in "01"]
    with ExitStack() as both_wait:  # the first two runs want the same models of an empty cache at the same time
        for model in (plain / "cache" / "supervised").glob("*/"):
            both_wait.enter_context(entry_lock(broken / "cache" / "supervised" / model.name))
        process = start(broken, *TRAINED, "hydra/launcher=parallel")
        while process.poll() is None and not all("Waiting for" in log_of(run) for run in firsts):
            time.sleep(0.1)
    while process.poll() is None and not (third.is_file() and third.stat().st_size):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert third.is_file() and not (third.parent / "eval.json").exists()
    done = [run for run in firsts if (run / "eval.json").is_file()]
    assert done  # one of them at least makes room for the third
    logs = [log_of(run) for run in firsts]
    for model in ("teacher", "student"):
        assert sum(f"{model}: kept the supervised model" in log for log in logs) == 1
        assert sum(f"{model}: reused the supervised model" in log for log in logs) == 1

    output = trained(broken, "sweep.resume=s", "hydra/launcher=basic")
    assert output.count("Finished before, not run again") == len(done)
    for number in "012":
        assert numbers(broken / "s" / number) == numbers(plain / "s" / number)
