"""Faults of the machine, really caused: each ends as docs/faults.md states, with one message and whole files."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from command_runs import SMALL, environment, lines
from forked import run_forked

from gkd_rl.errors import DataError, StorageError, WorkerError, explained, explaining_faults
from reward_models import guard
from reward_models.composite import Composite

ROOT = Path(__file__).resolve().parents[2]
STUB = """
import os, signal, sys, types

def run_configured(config, settings, folder):
    from gkd_rl.outputs.tracking import Listing, Tracker
    with Tracker(folder, "disabled", Listing("p", None, "n"), {}) as tracker:
        for step in range(int(os.environ["STEPS"])):
            tracker.log_step(step, {"loss": 1.0})
            tracker.log_samples(step, [{"text": "x" * 3000}])
        if os.environ.get("DIES") == str(config.seed):
            os.kill(os.getpid(), signal.SIGKILL)
    (folder / "eval.json").write_text("{}")
    return types.SimpleNamespace(numbers=lambda alpha: {"objective": 0.0})

module = types.ModuleType("gkd_rl.pipeline.experiment")
module.run_configured = run_configured
sys.modules["gkd_rl.pipeline.experiment"] = module
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stub")
    (folder / "sitecustomize.py").write_text(STUB, encoding="utf-8")
    return folder


def on_a_disk_of_its_own(
    folder: Path,
    options: str,
    *arguments: str,
    program: tuple[str, ...] = ("-m", "gkd_rl.run"),
    first: tuple[Path, ...] = (),
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """A run whose `disk` is a file system in memory that no other process sees; `after` is what it left there."""
    (folder / "disk").mkdir()
    script = f'mount -t tmpfs -o {options} none disk || exit 99; "$@"; code=$?; cp -r disk after; exit $code'
    command = [sys.executable, *program, *arguments]
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        cwd=folder,
        env=environment(folder, *first, OMP_NUM_THREADS="1", **variables),
        capture_output=True,
        text=True,
        timeout=240,
    )


def message_of(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a run that was ended by a fault."""
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr[-3000:]
    return done.stderr


def test_every_fault_of_the_table_names_tests_that_are_there() -> None:
    rows = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").split("|---|---|---|\n")[1].splitlines()
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    written = "".join(files.values())
    for row in rows:
        named = re.findall(r"test_\w+", row.split("|")[3])
        assert named, row
        for name in named:
            assert name in files or f"def {name}(" in written, name


def test_a_full_disk_ends_the_run_and_leaves_whole_lines(stub: Path, tmp_path: Path) -> None:
    done = on_a_disk_of_its_own(tmp_path, "size=256k", "hydra.run.dir=disk/run", first=(stub,), STEPS="200")
    message = message_of(done)
    assert "samples.jsonl cannot be written, the disk is full (0.0 MiB free in" in message
    assert "hydra.run.dir=FOLDER" in message and message.count("\n") <= 2
    run = tmp_path / "after" / "run"
    steps = [row["step"] for row in lines(run / "samples.jsonl")]  # every line is whole
    assert len(steps) > 20 and steps == list(range(len(steps)))
    assert (run / "samples.jsonl").read_bytes().endswith(b"\n")
    assert not (run / "eval.json").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_model_or_checkpoint_that_does_not_fit_on_the_disk_leaves_none(tmp_path: Path) -> None:
    settings = ["hydra.run.dir=disk/run", "tracking=none", "trainer.checkpoint_every=1"]
    done = on_a_disk_of_its_own(tmp_path, "size=120k", *SMALL, *settings)
    assert "the disk is full" in message_of(done)
    log = (tmp_path / "after" / "run" / "gkd_rl.log").read_text(encoding="utf-8")
    assert all(f"checkpoint of step {step} was not written" in log for step in range(4))
    assert [path.name for path in (tmp_path / "after" / "run" / "checkpoints").iterdir()] == ["before"]
    run = tmp_path / "after" / "run"
    assert len(lines(run / "metrics.jsonl")) == 3
    assert [path.name for path in run.iterdir() if "model" in path.name or path.name == "eval.json"] == []


def test_a_read_only_folder_is_refused(stub: Path, tmp_path: Path) -> None:
    done = on_a_disk_of_its_own(tmp_path, "ro", "hydra.run.dir=disk/run", first=(stub,), STEPS="1")
    refused = "disk/run cannot be opened or written, the file system is read-only: choose another folder"
    assert refused in message_of(done)


CACHED = """
import logging, torch
from pathlib import Path
from gkd_rl.training.teacher_data import TensorShards
logging.basicConfig(format="%(message)s")
shards = TensorShards(Path("disk/teacher"), 2**30, 40_000)
names = [f"{i:032x}" for i in range(20)]
for i, name in enumerate(names):
    shards.add(name, torch.full((10, 1000), float(i)))
    shards.write()
for there in (shards, TensorShards(Path("disk/teacher"), 2**30, 40_000)):
    found = there.read(names)
    assert all(tensor.unique().tolist() == [float(int(name, 16))] for name, tensor in found.items())
    print(len(found))
"""


def test_a_cache_of_the_teacher_that_finds_no_room_goes_on_with_what_it_has(tmp_path: Path) -> None:
    done = on_a_disk_of_its_own(tmp_path, "size=256k", program=("-c", CACHED))
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "No space left" in done.stderr, done.stderr
    assert "disk/teacher" in done.stderr
    here, later = map(int, done.stdout.split())
    assert 4 <= here == later < 20
    assert {file.suffix for file in (tmp_path / "after" / "teacher").iterdir()} == {".safetensors"}


def test_a_line_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    """A quota: the size of a file is limited, and the system takes the part of the line that fits."""
    script = f"""
import resource, signal
from pathlib import Path
from gkd_rl.outputs.json_files import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))
file = JsonLines(Path({str(tmp_path / "a.jsonl")!r}))
try:
    for step in range(10):
        file.append([{{"step": step, "text": "x" * 80}}])
except OSError as error:
    print(error.filename)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'a.jsonl'}\n", done.stderr
    assert [row["step"] for row in lines(tmp_path / "a.jsonl")] == [0, 1]


@pytest.mark.parametrize("error", [ValueError("odd"), FileNotFoundError(2, "no such file"), KeyError("a")])
def test_what_is_no_fault_of_the_machine_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explaining_faults():
        raise error
    assert caught.value is error


def test_an_error_that_has_its_words_keeps_them() -> None:
    refused = DataError("task.data_files.train=x.jsonl: the file could not be read.")
    refused.__cause__ = PermissionError(13, "Permission denied", "x.jsonl")
    assert explained(refused) is None


def test_libraries_tell_a_full_disk_by_their_text() -> None:
    outer = RuntimeError("could not save")
    outer.__cause__ = Exception("I/O error: No space left on device (os error 28)")
    found = explained(outer)
    assert isinstance(found, StorageError) and "the run's files cannot be written, the disk is full" in str(found)
    assert isinstance(explained(BrokenProcessPool("terminated")), WorkerError)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_killed_worker_of_joblib_ends_the_sweep_with_its_runs_named(stub: Path, tmp_path: Path) -> None:
    arguments = ["-m", "seed=0,1,2", "hydra/launcher=parallel", "hydra.sweep.dir=s"]
    done = subprocess.run(
        [sys.executable, "-m", "gkd_rl.run", *arguments],
        cwd=tmp_path,
        env=environment(tmp_path, stub, STEPS="1", DIES="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    message = message_of(done)
    assert "s/1: seed=1: it ended without an error message (killed, or out of memory?)" in message
    assert "To run them again: python -m gkd_rl.run sweep.resume=s" in message


def tracked_online(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Three steps of a tracker that is to upload to a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    script = f"""
from pathlib import Path
from gkd_rl.outputs import tracking
from gkd_rl.errors import GkdRlError
tracking.INIT_SECONDS = 3.0
try:
    with tracking.Tracker(Path({str(folder / "run")!r}), "online", tracking.Listing("p", None, "n"), {{}}) as tracker:
        for step in range(3):
            tracker.log_step(step, {{"a": 1.0}})
except GkdRlError as error:
    print(error)
"""
    kept = {key: value for key, value in environment(folder).items() if not key.startswith(("WANDB_", "NETRC"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=kept | {"HOME": str(folder), "WANDB_BASE_URL": url} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.slow
@pytest.mark.exhaustive
def test_wandb_out_of_reach_does_not_stop_the_run(tmp_path: Path) -> None:
    done = tracked_online(tmp_path, WANDB_API_KEY="a" * 40)
    assert done.returncode == 0 and done.stdout == "", done
    assert "W&B failed (" in done.stderr and "the run continues and writes" in done.stderr
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 3


@pytest.mark.slow
def test_wandb_without_an_account_is_refused_before_the_first_step(tmp_path: Path) -> None:
    done = tracked_online(tmp_path)
    assert "tracking.wandb=online was refused by W&B" in done.stdout and "wandb login" in done.stdout, done
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


SHORT = """
import resource, sys
import torch
from gkd_rl.pipeline import experiment
prepare = experiment.prepare_models

def limited(*arguments):
    models = prepare(*arguments)
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 320 * 2**20,) * 2)
    return models

experiment.prepare_models = limited
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_out_of_memory_names_the_largest_part_and_the_setting(tmp_path: Path) -> None:
    wide = ["trainer.prompts_per_step=256", "rollout.per_prompt=16", "trainer.micro_batch_size=4096"]
    settings = [*SMALL, *wide, "tracking=none", "trainer.head_chunk_tokens=100000"]
    done = run_forked(settings, tmp_path, SHORT, GKD_RL_CACHE=str(tmp_path / "cache"))
    message = message_of(done)
    assert re.search(
        r"out of memory \(.*\)\. The plan's peak is [0-9.]+ GiB of .* most of it is .* \(.*iB\): ", message
    )
    assert "lower trainer.head_chunk_tokens" in message and "gkd_rl.doctor" in message


def test_a_reward_that_hangs_without_a_time_limit_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(prompts: list[str], completions: list[str]) -> list[float]:
        time.sleep(0.3)
        return [1.0]

    monkeypatch.setattr(guard, "SLOW_CALL", 0.05)
    with caplog.at_level(logging.WARNING):
        assert Composite({"r": slow}, {"r": 1.0})(["p"], ["c"]).total == [1.0]
    assert "a reward has not returned after 0.05 seconds" in caplog.text and "reward.timeout=SECONDS" in caplog.text
    caplog.clear()
    monkeypatch.setattr(guard, "SLOW_CALL", 60.0)
    Composite({"r": slow}, {"r": 1.0})(["p"], ["c"])
    assert caplog.text == ""
