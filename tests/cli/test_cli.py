"""Mistakes on the command line end in seconds with one message, no traceback and no files; help and settings print."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_rl import run

ROOT = Path(__file__).resolve().parents[2]

# arguments, and what the message must name: key and value, what is allowed, what to type
MISTAKES = {
    "out of range": (["alpha=1.5"], ["alpha=1.5", ">= 0 and <= 1"]),
    "not a number": (["alpha=abc"], ["alpha=abc", ">= 0 and <= 1"]),
    "no value": (["alpha="], ["alpha=", ">= 0 and <= 1"]),
    "malformed": (["alpha=="], ["alpha==", "KEY=VALUE", ">= 0 and <= 1"]),
    "no equals sign": (["alpha"], ["KEY=VALUE"]),
    "no key": (["=3"], ["=3", "KEY=VALUE"]),
    "not whole": (["seed=1.5"], ["seed=1.5", "a whole number >= 0"]),
    "not a member": (["divergence.scale=big"], ["divergence.scale=big", "one of raw, unit"]),
    "not a choice": (["evaluation.split=tset"], ["evaluation.split=tset", "train, validation, test"]),
    "no such file": (["experiment=nope"], ["experiment=nope", "xsum_rl", "sft"]),
    "no such group": (["experimnt=xsum_rl"], ["experimnt=xsum_rl", "Did you mean experiment?"]),
    "a group without a name": (["reward=null"], ["reward=null", "faithfulness"]),
    "misspelt": (
        ["trainer.lerning_rate=1"],
        ["trainer.lerning_rate=1", "not a setting", "Did you mean trainer.learning_rate?", "warmup_steps"],
    ),
    "without its group": (["warmup_steps=1"], ["warmup_steps=1", "Did you mean", "trainer.warmup_steps"]),
    "in the wrong group": (["trainer.alpha=0.2"], ["trainer.alpha=0.2", "Did you mean alpha?"]),
    "added at the top": (["+zzz=1"], ["zzz=1", "not a setting", "lmbda"]),
    "added in a group": (["+trainer.zzz=1"], ["trainer.zzz=1", "not a setting", "learning_rate"]),
    "added though it is there": (["+alpha=1"], ["+alpha=1", "Type alpha=1"]),
    "truncated sampling": (["rollout.top_p=0.9"], ["rollout.top_p=0.9", "must be 1", "alpha=1"]),
    "nothing left out": (["rollout.per_prompt=1"], ["rollout.per_prompt=1", ">= 2", "baseline=batch_mean"]),
    "no teacher": (["teacher=none"], ["alpha=0.5", "teacher=t5_small", "alpha=0"]),
    "foreign code": (["task._target_=os.system"], ["task._target_=os.system", "gkd_rl or reward_models"]),
    "not a folder name": (["name=a/b"], ["name=a/b", "letters"]),
    "a sweep without -m": (["alpha=0.25,0.75"], ["alpha=0.25,0.75", "put -m before"]),
    "a task without this scale": (
        ["task=cnn_dailymail"],
        ["task=cnn_dailymail", "scale=embedded", "add scale=single_gpu", "preset="],
    ),
    "a scale without this task": (["task=walk", "scale=paper"], ["scale=paper", "task=gsm8k, instruct, wmt, xsum"]),
    "no such preset": (["preset=mine"], ["preset=mine", "embedded/xsum"]),
    "no such size": (["scale=paper", "scale.size=huge"], ["scale.size=huge", "small, base, large"]),
    "a cooldown that never comes": (["trainer.cooldown_steps=5"], ["trainer.cooldown_steps=5", "decay=cooldown"]),
    "no such folder": (["--config-dir", "nowhere"], ["--config-dir nowhere", "no such folder"]),
    "two at once": (["alpha=abc", "lmbda=2"], ["alpha=abc", "lmbda=2.0", "lmbda takes a number >= 0 and <= 1"]),
    "in one job of a sweep": (["-m", "alpha=0.5,1.5", "seed=0,1"], ["alpha=1.5", ">= 0 and <= 1"]),
    "in a sweep's file": (["sweep=alpha", "lmbda=0", "seed=0"], ["alpha=0.25 with lmbda=0", "set alpha=1"]),
}


def start(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "gkd_rl.run", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.usefixtures("commands_composed_once")
@pytest.mark.parametrize(("arguments", "parts"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_as_one_message(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gkd_rl.run", *arguments])
    monkeypatch.setattr(run, "WANTS_TRACEBACK", False)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    for name in ("HYDRA_FULL_ERROR", "OMP_WAIT_POLICY"):  # set by the command
        monkeypatch.setenv(name, "")
    for name in ("torch", "gkd_rl.pipeline.preflight", "gkd_rl.pipeline.experiment"):  # slow to import
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as ended:
        run.cli()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    refused_with(parts, shown.out, shown.err)
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def refused_with(parts: list[str], out: str, err: str) -> None:
    assert out == ""
    for part in parts:
        assert part in err
    for noise in ("Traceback", 'File "', "To append", "full_key", "hydra.cc"):
        assert noise not in err


@pytest.mark.parametrize("name", ["misspelt", "in one job of a sweep"])
def test_a_mistake_takes_seconds(name: str, tmp_path: Path) -> None:
    """Processor time with the interpreter's start, and what libraries print."""
    arguments, parts = MISTAKES[name]
    begun = os.times()
    done = start(arguments, tmp_path)
    seconds = processor_seconds(begun)
    assert done.returncode == 2, done.stderr
    refused_with(parts, done.stdout, done.stderr)
    assert seconds < 5, f"{seconds:.1f} s to refuse {arguments}"
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def processor_seconds(begun: os.times_result) -> float:
    """User and system time of the child processes that have ended since."""
    ended = os.times()
    return ended.children_user - begun.children_user + ended.children_system - begun.children_system


SLOW = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "numpy", "pandas", "wandb", "evaluate")
LISTED = f"""
import sys
from gkd_rl.run import cli
try:
    cli()
finally:
    print("imported:", *sorted({{name.partition(".")[0] for name in sys.modules}} & set({SLOW})))
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["alpha=2"], 2), (["--cfg", "job"], 0), (["resume=auto", "alpha=2"], 2)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_slow_library_is_imported(arguments: list[str], status: int, tmp_path: Path) -> None:
    """For help, a refused setting and the composed settings, which take a fraction of a second of processor time."""
    begun = os.times()
    done = subprocess.run(
        [sys.executable, "-c", LISTED, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    seconds = processor_seconds(begun)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    assert seconds < 5, f"{seconds:.1f} s for {arguments}"
    assert not list(tmp_path.iterdir())


def test_a_variable_shows_the_traceback(tmp_path: Path) -> None:
    done = start(["alpha=1.5"], tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "alpha=1.5 is out of range" in done.stderr


def test_a_mistake_in_a_users_own_experiment_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\ntrainer:\n  lerning_rate: 1\n", encoding="utf-8")
    done = start(["--config-dir", "mine", "experiment=typo"], tmp_path)
    assert done.returncode == 2
    assert "experiment=typo" in done.stderr
    assert "trainer.lerning_rate is not a setting" in done.stderr


def test_help_names_the_dials_the_choices_and_examples(tmp_path: Path) -> None:
    done = start(["--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "alpha   share",
        "lmbda   student data fraction",
        "seed    ",
        "experiment: dapo, f_distill, ",
        "python -m gkd_rl.run experiment=xsum_rl alpha=0.5",
        "alpha=0.25,0.75 seed=0,1",
        "sweep=alpha",
    ):
        assert part in done.stdout


DONE = (
    "(folder / 'eval.json').write_text('{}'); return types.SimpleNamespace(numbers=lambda alpha: {'objective': alpha})"
)


def run_in_process(arguments: list[str], folder: Path, body: str = DONE) -> subprocess.CompletedProcess[str]:
    """The command line with a run that does nothing but `body`."""
    code = (
        "import sys, types\n"
        f"def run_configured(config, settings, folder):\n    {body}\n"
        "module = types.ModuleType('gkd_rl.pipeline.experiment')\n"
        "module.run_configured = run_configured\n"
        "sys.modules['gkd_rl.pipeline.experiment'] = module\n"
        "from gkd_rl.run import cli\n"
        "cli()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_run_has_its_own_folder_and_a_read_only_config(tmp_path: Path) -> None:
    body = "from omegaconf import OmegaConf; assert OmegaConf.is_readonly(settings); (folder / 'here').touch(); " + DONE
    done = run_in_process(["experiment=xsum_rl", "alpha=0.5"], tmp_path, body)
    assert done.returncode == 0, done.stderr
    (marker,) = (tmp_path / "outputs" / "xsum_rl").glob("*/here")
    assert (marker.parent / ".hydra" / "config.yaml").is_file()
    assert (marker.parent / "gkd_rl.log").is_file()
    assert len(marker.parent.name.rpartition("-")[2]) == 6  # microseconds: two runs in one second get two folders


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["-m", "alpha=0.25,0.75"], 2),
        pytest.param(["sweep=alpha", "seed=3"], 5, marks=pytest.mark.exhaustive),
        pytest.param(["sweep=alpha", "alpha=0.5", "seed=3"], 1, marks=pytest.mark.exhaustive),
    ],
    ids=["-m", "sweep=alpha", "a sweep with a key fixed"],
)
def test_a_sweep_makes_numbered_folders(arguments: list[str], jobs: int, tmp_path: Path) -> None:
    done = run_in_process([*arguments, "name=mine"], tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "multirun" / "mine").iterdir()
    numbered = {str(number) for number in range(jobs)}
    assert {path.name for path in sweep.iterdir()} == numbered | {"multirun.yaml", "sweep.json"}


def test_an_error_of_the_run_is_one_message_too(tmp_path: Path) -> None:
    body = "from gkd_rl.errors import DataError; raise DataError('task.data_files.train=x.jsonl: no such file')"
    done = run_in_process(["alpha=0.5"], tmp_path, body)
    assert done.returncode == 1
    assert "task.data_files.train=x.jsonl: no such file" in done.stderr
    assert "Traceback" not in done.stderr
