"""`resume=FOLDER`, `resume=auto`, signals: which run is resumed, what is refused, what a stopped command prints."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from command_runs import SMALL
from forked import Started, start_forked
from hydra import compose, initialize_config_dir
from old_targets import with_old_targets
from omegaconf import OmegaConf
from run_cases import record_of

from gkd_rl.cli.resume import refuse_other_settings, refuse_to_overwrite, with_resumed_run, write_command
from gkd_rl.config.launch import Stopped, handling_signals
from gkd_rl.errors import ConfigError
from gkd_rl.run import find_config_dir

CONF = find_config_dir()
OVERRIDES = ["experiment=xsum_rl", "alpha=0.3"]


def stopped_run(folder: Path, overrides: list[str] = OVERRIDES, began: float = 0.0) -> Path:
    """A run that was killed: a dead process, settings, a checkpoint."""
    (folder / "checkpoints" / "step-00000000").mkdir(parents=True)
    write_command(folder, overrides, ["hydra.run.dir=elsewhere", "hydra.verbose=true", "hydra/launcher=parallel"])
    (folder / "run.json").write_text(json.dumps(record_of(os.getpid(), began)), encoding="utf-8")
    (folder / "config.yaml").write_text(settings_of(*overrides), encoding="utf-8")
    return folder


@functools.cache
def settings_of(*overrides: str) -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_yaml(compose("config", list(overrides)), resolve=True)


def resumed(*arguments: str) -> list[str]:
    return with_resumed_run(CONF, list(arguments))


def test_a_folder_is_all_that_is_typed(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "a b=c")
    asked = f"resume='{run}'"
    wanted = [*OVERRIDES, "hydra.verbose=true", asked, f"hydra.run.dir='{run}'"]
    assert resumed(asked) == wanted
    assert resumed(asked, "alpha=0.3") == wanted
    for other in ([], ["alpha=0.3"], ["resume=null"], ["resume="]):
        assert resumed(*other) == other


def test_results_of_an_earlier_run_in_the_folder_do_not_count(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    (run / "eval.json").write_text("{}")
    os.utime(run / "eval.json", (1, 1))
    (run / "run.json").write_text(json.dumps(record_of(os.getpid(), 0.0) | {"started": 2.0}), encoding="utf-8")
    assert resumed(f"resume={run}")[:2] == OVERRIDES


def test_a_run_of_a_sweep_is_resumed_alone(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "3", ["sweep=alpha", "alpha=0.25", "sweep.resume=s"])
    assert resumed(f"resume={run}")[:2] == ["alpha=0.25", "hydra.verbose=true"]


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"alpha=0.5 beside resume=.*experiment=xsum_rl alpha=0.3"):
        resumed(f"resume={run}", "alpha=0.5")
    with pytest.raises(ConfigError, match=r"with -m: sweep.resume=FOLDER"):
        resumed("-m", f"resume={run}")
    with pytest.raises(ConfigError, match=r"no command.json in it: resume takes a run's folder"):
        resumed(f"resume={tmp_path}")
    (run / "run.json").write_text(json.dumps(record_of(os.getpid(), psutil.Process().create_time())))
    with pytest.raises(ConfigError, match="still running"):
        resumed(f"resume={run}")
    (run / "eval.json").write_text("{}")
    with pytest.raises(ConfigError, match="that run is finished"):
        resumed(f"resume={run}")


def test_other_settings_are_refused_also_where_a_file_changed(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        same, other = compose("config", OVERRIDES), compose("config", [*OVERRIDES, "seed=4", "cache_dir=elsewhere"])
    refuse_other_settings(same, run)
    with pytest.raises(ConfigError, match=r"have changed since \(seed is 0 there and 4 here, "):
        refuse_other_settings(other, run)
    refuse_other_settings(other, tmp_path)  # stopped before it wrote any


def test_a_run_made_before_targets_moved_is_resumed(tmp_path: Path) -> None:
    overrides = [*OVERRIDES, "task._target_=gkd_rl.tasks.xsum.Xsum"]
    run = stopped_run(tmp_path / "run", OVERRIDES)
    write_command(run, overrides, [])
    stored = settings_of(*OVERRIDES)
    before = with_old_targets(stored)
    assert "gkd_rl.tasks.xsum.Xsum" in before and "gkd_rl.embedded.claims.claim_rows" in before and before != stored
    (run / "config.yaml").write_text(before, encoding="utf-8")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        same = compose("config", OVERRIDES)
        other = compose("config", [*OVERRIDES, "task._target_=gkd_rl.data.tasks.wmt.Wmt"])
    refuse_other_settings(same, run)
    with pytest.raises(
        ConfigError, match=r"task._target_ is gkd_rl.data.tasks.xsum.Xsum there and gkd_rl.data.tasks.wmt"
    ):
        refuse_other_settings(other, run)
    wanted = [*OVERRIDES, "task._target_=gkd_rl.data.tasks.xsum.Xsum", f"resume={run}", f"hydra.run.dir='{run}'"]
    assert resumed(f"resume={run}") == resumed(f"resume={run}", overrides[-1]) == wanted
    assert resumed("resume=auto", *OVERRIDES, f"hydra.run.dir={run}")[-1] == f"hydra.run.dir='{run}'"


def test_a_new_run_does_not_overwrite_checkpoints(tmp_path: Path) -> None:
    refuse_to_overwrite(tmp_path)
    run = stopped_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"python -m gkd_rl.run resume=.*run resumes it"):
        refuse_to_overwrite(run)


def test_auto_takes_the_last_unfinished_run_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = ["resume=auto", *OVERRIDES]
    assert resumed(*first) == OVERRIDES  # none: a new run
    place = Path("outputs/xsum_rl")
    stopped_run(place / "1")
    wanted = stopped_run(place / "2")
    (stopped_run(place / "3") / "eval.json").write_text("{}")
    stopped_run(place / "4", ["experiment=xsum_rl", "alpha=0.4"])
    alive = stopped_run(place / "5", began=psutil.Process().create_time())
    assert resumed(*first) == [*OVERRIDES, f"resume='{wanted}'", f"hydra.run.dir='{wanted}'"]
    there = resumed(*first, f"hydra.run.dir={place / '1'}")
    assert there[-2:] == [f"resume='{place / '1'}'", f"hydra.run.dir='{place / '1'}'"]
    assert resumed(*first, f"hydra.run.dir={alive}") == [*OVERRIDES, f"hydra.run.dir={alive}"]
    assert resumed("resume=auto", "alpha=nonsense") == ["alpha=nonsense"]  # reported by the check that follows


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_step_and_a_second_does_not(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with handling_signals() as stop:
        with stop.after_the_step():
            os.kill(os.getpid(), number)
            assert stop.number == number and "a second signal ends it now" in capsys.readouterr().err
            with pytest.raises(Stopped, match=f"stopped by {number.name}"):
                os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_of_steps_a_signal_ends_at_once_and_other_threads_handle_none() -> None:
    with handling_signals() as stop, pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number is None
    handlers: list[object] = []

    def other_thread() -> None:
        with handling_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.slow
def test_a_stopped_command_says_how_it_goes_on_and_that_is_all_it_takes(tmp_path: Path) -> None:
    overrides = [*SMALL, "tracking=none", "trainer.steps=16", "trainer.warmup_steps=0", "trainer.checkpoint_every=12"]

    def start(*arguments: str) -> Started:
        return start_forked(list(arguments), tmp_path, GKD_RL_CACHE=str(tmp_path / "cache"))

    undisturbed = start(*overrides, "hydra.run.dir=whole").finish()
    assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
    started, metrics = start(*overrides, "hydra.run.dir=cut"), tmp_path / "cut" / "metrics.jsonl"
    end = time.monotonic() + 200
    while (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3) and time.monotonic() < end:
        time.sleep(0.01)
    started.process.terminate()
    ended = started.finish(60)
    printed = ended.stderr
    assert ended.returncode == 128 + signal.SIGTERM and "Traceback" not in printed
    found = re.search(r"stopped by SIGTERM: step (\d+) is kept. To resume: python -m gkd_rl.run (resume=.*)", printed)
    assert found is not None, printed[-2000:]
    taken = metrics.read_bytes().count(b"\n")
    assert taken == int(found[1]) < 16
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["error"].startswith("Stopped: stopped by SIGTERM")
    resumed_one = start(found[2]).finish()
    assert resumed_one.returncode == 0, resumed_one.stderr[-2000:]

    def lines(name: str) -> list[dict]:
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]

    assert lines("cut") == lines("whole") and len(lines("cut")) == 16
    left, right = (tmp_path / name / "model" / "model.safetensors" for name in ("cut", "whole"))
    assert left.read_bytes() == right.read_bytes()
    assert not (tmp_path / "cut" / "checkpoints").exists()
