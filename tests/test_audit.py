"""CI runs every test that needs neither GPU nor network, on every Python version, and audits the dependencies."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
AUDIT = ROOT / ".ci" / "audit"
ADVISORY = "jinja2 3.1.0 PYSEC-2024-1 3.1.4"
NO_PAGE = "jinja2 Dependency not found on PyPI and could not be audited"


@pytest.mark.parametrize(
    ("of_the_weak_one", "status_of_it", "status_of_all", "ends_with"),
    [
        (ADVISORY, 1, 0, 0),
        (ADVISORY, 1, 1, 1),
        (NO_PAGE, 0, 0, 0),
        ("ERROR: no connection", 1, 1, 0),
    ],
)
def test_the_audit(of_the_weak_one: str, status_of_it: int, status_of_all: int, ends_with: int, tmp_path: Path) -> None:
    stub = tmp_path / "pip-audit"
    stub.write_text(
        f'#!/bin/sh\ncase "$*" in *-r*) echo "{of_the_weak_one}"; exit {status_of_it};; esac\n'
        f"echo all; exit {status_of_all}\n"
    )
    stub.chmod(0o755)
    variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", AUDIT], env=variables, capture_output=True, text=True)
    assert done.returncode == ends_with
    made = of_the_weak_one == ADVISORY
    assert ("all" in done.stdout) == made and ("NOT MADE" in done.stdout) != made


def test_ci_runs_the_default_tests_and_what_they_leave_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    options = shlex.split(project["tool"]["pytest"]["ini_options"]["addopts"])
    expression = options[options.index("-m") + 1]
    assert set(expression.split(" and ")) == {"not gpu", "not network", "not exhaustive"}
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [one for one in commands if one.startswith("pytest")] == ["pytest", "pytest -m exhaustive"]


def test_ci_runs_on_every_python_version() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert any(step.get("run") == ".ci/run" for step in job["steps"])
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    lowest = re.fullmatch(r">=(3\.\d+)", required)
    assert lowest is not None and job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert job["strategy"]["matrix"]["python"][0] == lowest[1]
