"""Two processes compute the step of one: the same gradient and metrics, one output folder, clear error messages."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import SMALL, lines
from conftest import assert_close, configured
from forked import Started, start_forked
from rank_cases import CASES, ENDPOINT, KINDS, everything

from gkd_rl.cli.command_line import check_command_line
from gkd_rl.cli.single_run import ending_together, find_config_dir
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError
from gkd_rl.training import processes as processes_module
from gkd_rl.training.processes import merge_rank_shares, rank_seed, rank_share

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"{kind}: {name}" for kind in KINDS for name in CASES] + [ENDPOINT]
FAILING = """
import sys, types
from gkd_rl.errors import RewardError
from gkd_rl.config.launch import rank
from gkd_rl.training.processes import gather_objects

def run_configured(config, settings, folder):
    print("spoken")
    if rank() == 1:
        raise RewardError(f"reward of seed {config.seed} is unusable")
    gather_objects("rank 0 waits for the other here")

module = types.ModuleType("gkd_rl.pipeline.experiment")
module.run_configured = run_configured
sys.modules["gkd_rl.pipeline.experiment"] = module
"""
KILLED = """
import os, pathlib, signal, time
from gkd_rl.pipeline import experiment
from gkd_rl.config.launch import rank
from gkd_rl.training.processes import gather_objects
from gkd_rl.run import cli
whole = experiment.run_configured

def run_configured(config, settings, folder):
    if config.seed == 0:
        return whole(config, settings, folder)
    if rank() == 1:
        while not pathlib.Path("s/1/run.json").is_file():  # rank 0 writes it
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    gather_objects("rank 0 waits for the other here")

experiment.run_configured = run_configured
cli()
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_ranks(*arguments: str, cwd: Path, before: str = "") -> list[Started]:
    """Two processes with the variables of `accelerate launch`, without its imports and those of new interpreters."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    variables |= {"GKD_RL_CACHE": str(cwd / "cache")}
    ranks = [{"RANK": number, "LOCAL_RANK": number} for number in "01"]
    return [start_forked(list(arguments), cwd, before, **variables, **rank) for rank in ranks]


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of two processes with the package's configuration."""
    config = find_config_dir() / "accelerate" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", "--num_processes=2"]
    command += [f"--main_process_port={free_port()}", *arguments]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GKD_RL_CACHE": str(cwd / "cache")}
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"} | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    typed = ["rank_cases.py", str(folder)]
    cases = f"import runpy, sys; sys.argv = {typed}; runpy.run_module('rank_cases', None, '__main__'); sys.exit()"
    for started in start_ranks(cwd=folder, before=cases):
        done = started.finish()
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((folder / "samples").iterdir())) == 5  # of 13 rows in chunks of 3
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES)
def test_two_processes_have_the_gradient_of_one(case: str, alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    expected, metrics = alone["gradients"][case]
    kind, _, name = case.partition(": ")
    split = any("micro_batch_size=3" in one for one in CASES.get(name, []))
    # a prompt whose completions are split is computed twice, and decoder-only models choose a layout for each batch
    ignored = ("time/", "padding_share", *(("flops/",) if split or "llama" in kind else ()))
    for rank in ranks:
        found, others = rank["gradients"][case]
        assert_close(found, expected, 5e-5)
        assert others.keys() == metrics.keys()
        for key, value in metrics.items():
            if not key.startswith(ignored):
                assert others[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert torch.equal(ranks[0]["gradients"][case][0], ranks[1]["gradients"][case][0])  # the weights stay the same


@pytest.mark.slow
def test_ranks_divide_the_requests_to_a_remote_teacher(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    assert [rank["requests"] for rank in ranks] == [alone["requests"] // 2] * 2


@pytest.mark.slow
def test_ranks_divide_teacher_samples_and_evaluation(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    expected = alone["evaluation"]
    assert [len(expected.values[key]) for key in ("rouge2", "sampled/reward", "self_bleu")] == [13, 7, 3]
    assert len(set(expected.completions)) > 6 and len(set(map(tuple, alone["samples"]))) > 6
    for rank in ranks:
        assert rank["samples"] == alone["samples"]
        found = rank["evaluation"]
        assert found.completions == expected.completions
        assert found.values.keys() == expected.values.keys()
        for key, numbers in expected.values.items():
            assert found.values[key].shape == numbers.shape
            if not key.startswith(("sampled/", "self_bleu")):  # of greedy completions
                np.testing.assert_allclose(found.values[key], numbers, rtol=1e-6)
    assert "sampled/divergence" in expected.by_position
    for name in expected.by_position:
        assert np.array_equal(*(rank["evaluation"].by_position[name] for rank in ranks)), name
    for key in expected.values:
        assert np.array_equal(*(rank["evaluation"].values[key] for rank in ranks)), key


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep by `accelerate launch`: the first run ends, one of the second's processes is killed."""
    folder = tmp_path_factory.mktemp("launched")
    script = folder.with_name(f"{folder.name}.py")
    script.write_text(KILLED, encoding="utf-8")
    sweep = ["-m", *SMALL, "seed=0,1", "hydra.sweep.dir=s", "tracking=none", "adapter=lora"]
    return folder, launch(str(script), *sweep, cwd=folder)


@pytest.mark.slow
def test_a_run_of_two_processes_leaves_one_folder(launched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = launched
    folder = place / "s" / "0"
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [1, 2, 3], done.stderr[-3000:]
    assert json.loads((folder / "eval.json").read_text(encoding="utf-8"))["student after"]["rouge2"]["n"] == 20
    assert json.loads((folder / "environment.json").read_text(encoding="utf-8"))["processes"] == 2
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert (folder / "model" / "adapter_model.safetensors").is_file() and (folder / ".hydra" / "config.yaml").is_file()
    assert sorted(path.name for path in place.iterdir()) == ["cache", "s"]
    assert {path.name for path in (place / "s").iterdir()} <= {"0", "1", "multirun.yaml", "sweep.json"}
    kept = [path for path in (place / "cache" / "supervised").iterdir() if path.is_dir()]  # the others are locks
    assert len(kept) == 2  # student and teacher
    assert done.stdout.count("Run folder:") == 1


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(launched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = launched
    assert done.returncode != 0
    assert re.search(r"SIGKILL|exitcode *: -9", done.stderr), done.stderr[-3000:]
    assert json.loads((place / "s" / "1" / "run.json").read_text(encoding="utf-8"))["status"] != "finished"
    assert not (place / "s" / "1" / "eval.json").exists()


@pytest.mark.slow
def test_an_indivisible_batch_is_refused_once_before_anything_starts(tmp_path: Path) -> None:
    first, second = start_ranks(*SMALL, "trainer.prompts_per_step=5", cwd=tmp_path)
    done = first.finish()
    second.process.kill()  # as the launcher does; it waits for the first
    assert done.returncode == 2
    assert done.stderr.count("trainer.prompts_per_step=5 cannot be divided evenly among 2 processes") == 1
    assert second.finish().stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_error_of_one_rank_ends_all_with_one_message(tmp_path: Path) -> None:
    ended = [one.finish() for one in start_ranks("-m", "seed=7,8", cwd=tmp_path, before=FAILING)]
    assert [done.returncode for done in ended] == [1, 1]
    printed = "".join(done.stderr for done in ended)
    assert printed.count("reward of seed 7 is unusable") == 1
    assert "Traceback" not in printed, printed
    assert "seed 8" not in printed and "closed by peer" not in printed
    assert [done.stdout.count("spoken") for done in ended] == [1, 0]


@pytest.mark.parametrize("first", [True, False])
def test_the_first_rank_prints_the_traceback_of_a_bug(
    first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_rank(monkeypatch, 1, 2)
    monkeypatch.setattr(processes_module, "is_first_failure", lambda: first)
    with pytest.raises(SystemExit, match="1"), ending_together():
        raise KeyError("a bug")
    printed = capsys.readouterr().err
    assert ("Traceback" in printed and "KeyError: 'a bug'" in printed) if first else printed == ""


def test_the_configuration_of_accelerate_is_not_a_setting() -> None:
    with pytest.raises(
        ConfigError, match=r"accelerate=ddp is not a setting of a run.* accelerate launch --config_file"
    ):
        check_command_line(find_config_dir(), ["accelerate=ddp"])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0, 1, 4, 7])
def test_shares_of_ranks_are_merged_in_order(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, parts = list(range(size)), []
    for rank in range(count):
        as_rank(monkeypatch, rank, count)
        parts.append(rank_share(rows))
    assert len({len(part) for part in parts}) == 1
    assert sum(map(len, parts)) < size + count  # rows are repeated only to fill up
    assert merge_rank_shares(parts, size) == rows


def test_every_rank_has_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_seed(3) == 3
    seeds = []
    for rank in range(4):
        as_rank(monkeypatch, rank, 4)
        seeds += [rank_seed(3), rank_seed(4)]
    assert seeds[0] == 3 and len(set(seeds)) == 8


@pytest.mark.parametrize(
    ("variables", "overrides", "texts"),
    [
        ({}, ["trainer.prompts_per_step=5"], ["trainer.prompts_per_step=5", "a multiple of 2, e.g. 6"]),
        ({}, ["student.sft.batch_size=7"], ["student.sft.batch_size=7", "divisor of 7"]),
        ({}, ["teacher.sft.batch_size=9"], ["teacher.sft.batch_size=9", "2 processes"]),
        (
            {},
            ["trainer.prompts_per_step=2", "teacher.prompts=shuffled"],
            ["teacher.prompts=shuffled", "set trainer.prompts_per_step to 4 or more"],
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, [], ["FSDP", "outside of the wrapped forward", "conf/accelerate/ddp.yaml"]),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], ["DeepSpeed"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, [], ["mixed_precision=bf16", "student.dtype=bfloat16"]),
    ],
)
def test_unsupported_settings_are_refused(
    variables: dict[str, str], overrides: list[str], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(*overrides)
    validate(config)
    as_rank(monkeypatch, 0, 2)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    (problem,) = caught.value.problems
    for text in texts:
        assert text in problem


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 0, 2)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"2 processes on a machine with 1 devices.*--num_processes to 1 or less"):
        processes_module.start_processes()


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))
