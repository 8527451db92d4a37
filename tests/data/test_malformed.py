"""Malformed commands and data files: one clear error in seconds, or a run that can start, and no file left behind.

GKD_RL_MALFORMED=60 makes 200 of them, in a few minutes; the suite takes fewer commands, which cost most.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import configured
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gkd_rl.cli.command_line import check_command_line
from gkd_rl.cli.single_run import check_files, find_config_dir, message
from gkd_rl.errors import GkdRlError
from gkd_rl.pipeline import build
from gkd_rl.pipeline.preflight import check_data

SECONDS = 10  # of CPU time
COMMANDS, FILES = int(os.environ.get("GKD_RL_MALFORMED", "10")), 140
KEYS = [
    "alpha",
    "lmbda",
    "seed",
    "name",
    "cache_dir",
    "scale.size",
    "scale.memory_gib",
    "task.train_size",
    "task.data",
    "task.data_files",
    "task._target_",
    "task.max_prompt_tokens",
    "student.path",
    "student.keep_layers",
    "student.architecture",
    "student.sft",
    "teacher.path",
    "teacher.device",
    "teacher.quantization",
    "divergence.beta",
    "divergence.name",
    "trainer.steps",
    "trainer.learning_rate",
    "trainer.micro_batch_size",
    "reward.components",
    "reward.weights",
    "reward.on_failure",
    "evaluation.split",
    "evaluation.metrics",
    "rollout.per_prompt",
    "tracking.tags",
    "sweep.objectives",
    "experiment",
    "teacher",
    "reward",
    "policy_gradient",
    "adapter",
    "alhpa",
    "trainer.stpes",
    "+new.key",
    "~alpha",
    "hydra.run.dir",
    "hydra.job_logging",
    "hydra/launcher",
    "trusted_packages",
    "alpha_schedule",
]
VALUES = [
    "null",
    "nan",
    "-inf",
    "1e400",
    "-1",
    "0",
    "1.5",
    "true",
    "[]",
    "{}",
    "[0,0]",
    "{a:{b:1}}",
    "'",
    '"',
    "[1,",
    "{a",
    "${nothing}",
    "${oc.env:NO_SUCH_VARIABLE}",
    "${alpha}",
    "???",
    "a,b",
    "os.system",
    "../../x",
    "/no/such/folder",
    "=",
    "@x",
    "gkd_rl",
    "🙂",
    "<b>",
    "1_000",
    "0x10",
    "~",
    "rouge",
    "none",
    "lora",
    "xsum_rl",
]
VALUE = st.sampled_from(["", "a b", "\x00", "\x1b[31m", "9" * 40, *VALUES]) | st.text(max_size=8) | st.floats().map(str)
OVERRIDE = st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), VALUE)
COMMAND = st.lists(OVERRIDE | st.text(max_size=6), max_size=2)
ROW = st.dictionaries(
    st.sampled_from(["document", "summary", "id", ""]),
    st.none() | st.integers() | st.floats() | st.text(max_size=12) | st.lists(st.text(max_size=3), max_size=2),
    max_size=3,
)
GOOD = {"document": "the mayor has opened the bridge .", "summary": "bridge opened ."}


def one_error(check: Callable[[], object]) -> str | None:
    """The message of the one error, in seconds; None where nothing is wrong."""
    begun = time.process_time()
    try:
        check()
    except GkdRlError as error:
        shown = message(error)
        assert shown.strip() and "Traceback" not in shown and len(shown) < 6000, shown
        return shown
    finally:
        assert time.process_time() - begun < SECONDS
    return None


def tried(check: Callable[[Any], None], cases: st.SearchStrategy[Any], count: int) -> None:
    """`check` of `count` cases, the same at every run."""
    profile = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # a smaller case than the one that failed takes minutes to find
        suppress_health_check=[HealthCheck.too_slow],
    )
    profile(given(cases)(check))()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("commands_composed_once")
def test_malformed_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = []

    def check(arguments: list[str]) -> None:
        typed = ["experiment=xsum_rl", *[one for one in arguments if not one.startswith("-")]]

        def start() -> None:
            configs = check_command_line(find_config_dir(), typed)
            check_files(configs)
            for config in configs:
                build.build_task(config)
                build.build_reward(config)

        outcomes.append(one_error(start))
        assert list(tmp_path.iterdir()) == []

    tried(check, COMMAND, COMMANDS)
    assert sum(shown is not None for shown in outcomes) > len(outcomes) / 3


def rows_as(kind: str, rows: list[dict[str, Any]]) -> bytes:
    """A file of rows that may be anything; parquet cannot hold those, and gets good ones."""
    if kind == ".parquet":
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.table({name: [text] * 3 for name, text in GOOD.items()}), sink)
        return sink.getvalue().to_pybytes()
    if kind == ".csv":
        lines = ["document,summary", *(",".join(map(str, row.values())) for row in rows)]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return (json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows))).encode()


def damaged(data: bytes, place: int, instead: bytes, cut: bool) -> bytes:
    """Bytes in the middle overwritten, and what follows lost."""
    at = place % (len(data) + 1)
    return data[:at] + instead + (b"" if cut else data[at + len(instead) :])


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_malformed_data_files(kind: str, tmp_path: Path) -> None:
    config, file = configured("experiment=xsum_rl", "reward=rouge", "student.tokenizer=x"), tmp_path / f"rows{kind}"
    config.task["data_files"] = dict.fromkeys(("train", "validation", "test"), str(file))
    whole = st.lists(ROW | st.just(GOOD), max_size=4).map(lambda rows: rows_as(kind, rows))
    broken = st.builds(damaged, whole, st.integers(0, 10**6), st.binary(max_size=4), st.booleans())
    outcomes = []

    def check(data: bytes) -> None:
        file.write_bytes(data)
        outcomes.append(one_error(lambda: check_data([config])))
        assert [path.name for path in tmp_path.iterdir()] == [file.name]

    tried(check, st.binary(max_size=40) | whole | broken, FILES // 4)
    assert any(shown is not None for shown in outcomes)
