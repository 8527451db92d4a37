"""Promises of SECURITY.md: no foreign code, secrets in the environment only, and model output that is only text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_runs import SMALL, environment
from conftest import configured, essential
from judge_server import running_server

from gkd_rl.cli.command_line import check_command_line
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError
from gkd_rl.outputs.tracking import Listing, Tracker
from gkd_rl.run import find_config_dir
from reward_models.targets import is_defined

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    name: f"{name.lower()}-51b0f3d2c7a94e6d8f10fake"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "JUDGE_KEY", "AWS_SECRET_ACCESS_KEY")
}


def invalid(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(configured(*settings))
    return str(caught.value)


def refused(*arguments: str) -> str:
    """The same by the command line."""
    with pytest.raises(ConfigError) as caught:
        check_command_line(find_config_dir(), list(arguments))
    return str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        *(
            "os.system",
            "subprocess.run",
            "builtins.eval",
            "gkd_rl",
            "gkd_rl.run",
            "reward_models.nothing.Here",
            "",
            "a b",
        ),
        *(
            "gkd_rl.outputs.run_record.subprocess.run",
            "reward_models.code.sandbox.os.system",
            "gkd_rl.outputs.run_record._git",
        ),
        *("gkd_rl.data.tasks.xsum.Xsum.examples", "gkd_rl/tasks/xsum.Xsum", "gkd_rl.tasks...xsum.Xsum"),
    ],
)
def test_settings_call_no_foreign_code(target: str) -> None:
    assert f"task._target_={target}" in invalid(f"task._target_='{target}'")


def test_a_target_below_another_is_checked_too() -> None:
    message = invalid(
        "reward=judge", "reward.components.judge.server.model=m", "reward.components.judge.server._target_=os.system"
    )
    assert "reward.components.judge.server._target_=os.system is outside this project" in message


def test_a_package_is_called_when_the_user_names_it() -> None:
    assert "trusted_packages=[mine] names" in refused("task._target_=mine.tasks.Task")
    (config,) = check_command_line(find_config_dir(), ["task._target_=mine.tasks.Task", "trusted_packages=[mine]"])
    assert config.task["_target_"] == "mine.tasks.Task"
    assert "os.system" in refused("task._target_=os.system", "trusted_packages=[mine]")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+hydra.callbacks.x._target_=os.system", "hydra.callbacks.x._target_=os.system"),
        ("hydra.launcher._target_=subprocess.Popen", "hydra.launcher._target_=subprocess.Popen"),
        ("hydra.job_logging.handlers.file.class=logging.os.system", "handlers.file.class=logging.os.system"),
        ("+hydra.job_logging.formatters.x.'()'=os.system", "os.system"),
        ("hydra.job_logging.handlers.console.stream=ext://os.environ", "ext://os.environ is refused"),
    ],
)
def test_settings_of_hydra_call_no_foreign_code(override: str, says: str) -> None:
    assert says in refused(override)


@pytest.mark.parametrize(
    "arguments",
    essential(
        [["seed=1"], ["hydra/job_logging=disabled"], ["sweep=search"], ["-m", "seed=0,1"], ["hydra.verbose=true"]],
        *(["seed=1"], ["sweep=search"]),
    ),
)
def test_hydras_own_classes_are_taken(arguments: list[str]) -> None:
    try:
        check_command_line(find_config_dir(), arguments)
    except ConfigError as error:  # a plugin that is not installed here
        assert "pip install" in str(error) and "not a trusted target" not in str(error)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    assert "--experimental-rerun is refused" in refused("--experimental-rerun", str(tmp_path / "config.pickle"))


def test_every_target_of_the_configuration_is_defined_where_it_is_named() -> None:
    named = re.findall(r"_target_: *((?:gkd_rl|reward_models)\S+)", "\n".join(_yaml_texts()))
    assert len(named) > 40 and all(is_defined(one) for one in named)


def _yaml_texts() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(find_config_dir().rglob("*.yaml"))]


def test_the_source_reads_no_pickle_and_starts_no_shell() -> None:
    """But where the sandbox runs code, which is its purpose."""
    wrong = re.compile(
        r"pickle\.load|torch\.load\(|shell=True|os\.system\(|yaml\.load\(|\beval\(\s*[\"'a-z]|unpack_archive|extractall"
    )
    for package in ("gkd_rl", "reward_models", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            assert not wrong.search(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_no_file_and_no_message(tmp_path: Path) -> None:
    judge = "reward.components.judge.server"
    with running_server() as server:
        own = ["reward=judge", f"{judge}.url={server.url}", f"{judge}.model=m", f"{judge}.api_key_variable=JUDGE_KEY"]
        done = subprocess.run(
            [sys.executable, "-m", "gkd_rl.run", *SMALL, *own, "hydra.run.dir=run", "evaluation.self_bleu_prompts=0"],
            cwd=tmp_path,
            env=environment(tmp_path, OMP_NUM_THREADS="1", **SECRETS),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Bearer {SECRETS['JUDGE_KEY']}" in server.keys
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and any(path.suffix == ".wandb" for path in files)
    written = b"\n".join(path.read_bytes() for path in files) + (done.stdout + done.stderr).encode()
    assert [name for name, secret in SECRETS.items() if secret.encode() in written] == []


NASTY = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'",
    "ansi": "\x1b[2J\x1b]0;title\x07\x9b31mred\x1b[0m\r\x08\x7f",
    "null": "a\x00b\x00",
    "emoji": "👩‍👩‍👧 \ud83d lone \u202e turned \ufeff",
    "long": "x<" * 500_000,
    "lines": "a\nb\r\nc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i",
}
INERT = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")  # but the ends of lines


@pytest.mark.parametrize("name", NASTY)
def test_model_output_comes_back_unharmed_and_is_inert(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path / "run", "offline", Listing("p", None, "n"), {"text": NASTY[name]}) as tracker:
        tracker.log_samples(1, [{"completion": NASTY[name], "rewards": {NASTY[name][:40]: 1.0}}])
    raw = (tmp_path / "run" / "samples.jsonl").read_bytes()
    assert raw.count(b"\n") == 1 and not INERT.search(raw)
    row: dict[str, Any] = json.loads(raw)
    assert row["completion"] == NASTY[name] and list(row["rewards"]) == [NASTY[name][:40]]
    tables = list((tmp_path / "run" / "wandb").rglob("*.table.json"))
    assert tables and not any(INERT.search(path.read_bytes()) for path in tables)
    shown = json.loads(tables[0].read_text(encoding="utf-8"))["data"][0]
    kept = re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\ufffd", NASTY[name])
    assert kept in shown
    assert capfd.readouterr() == ("", "")
