"""Two processes take the step of one: the same gradient and the same numbers, one output folder, clear refusals."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate.utils import DistributedType
from conftest import assert_close
from rank_gradients import CASES, KINDS, gradients
from test_run import SMALL, lines

from gkd_rl.errors import ConfigError
from gkd_rl.ranks import check_ranks
from gkd_rl.run import find_config_dir

ROOT = Path(__file__).resolve().parents[1]
Found = dict[str, tuple[torch.Tensor, dict[str, float]]]


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of two processes with the configuration that is shipped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = find_config_dir() / "accelerate" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", "--num_processes=2"]
    command += [f"--main_process_port={port}", *arguments]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GKD_RL_CACHE": str(cwd / "cache")}
    return subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone() -> Found:
    return gradients()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("ranks")
    done = launch(str(ROOT / "tests" / "rank_gradients.py"), str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradient_of_one(kind: str, name: str, alone: Found, ranks: list[Found]) -> None:
    case = f"{kind}: {name}"
    expected, metrics = alone[case]
    for rank in ranks:
        found, others = rank[case]
        assert_close(found, expected)
        assert others.keys() == metrics.keys()
        for key, value in metrics.items():
            if not key.startswith("time/"):
                assert others[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_a_run_of_two_processes_leaves_one_folder(tmp_path: Path) -> None:
    done = launch("-m", "gkd_rl.run", *SMALL, "tracking=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs" / "xsum_rl").iterdir()
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((folder / "eval.json").read_text(encoding="utf-8"))["student after"]["rouge2"]["n"] == 20
    assert (folder / "model" / "model.safetensors").is_file() and (folder / ".hydra" / "config.yaml").is_file()
    assert done.stdout.count("Run folder:") == 1


@pytest.mark.parametrize(
    ("kind", "rows", "shuffled", "says"),
    [
        (DistributedType.MULTI_CPU, 5, False, ["trainer.prompts_per_step=5", "a multiple of 2"]),
        (DistributedType.MULTI_GPU, 2, True, ["teacher.prompts=shuffled", "4 or more"]),
        (DistributedType.FSDP, 4, False, ["distributed_type=FSDP", "MULTI_GPU"]),
    ],
)
def test_what_ranks_cannot_share_is_refused(kind: DistributedType, rows: int, shuffled: bool, says: list[str]) -> None:
    accelerator = cast(Any, SimpleNamespace(num_processes=2, distributed_type=kind))
    check_ranks(
        cast(Any, SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO)),
        {"trainer.prompts_per_step": 5},
        shuffled=False,
    )
    with pytest.raises(ConfigError) as caught:
        check_ranks(accelerator, {"trainer.prompts_per_step": rows}, shuffled=shuffled)
    for words in says:
        assert words in str(caught.value)
