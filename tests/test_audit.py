"""The audit of the dependencies fails on a weakness, and says when it could not be made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[1] / ".ci" / "audit"
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
