"""The public API: the names of docs/api.md are those that packages offer, importable and documented."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import essential

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
VALUES = ("gkd_rl.types", "gkd_rl.errors")
OPEN = (
    "gkd_rl.data.tasks",
    "reward_models.text",
    "reward_models.models",
    "reward_models.code",
)  # files are added there
COMMANDS = ("run.py", "doctor.py", "evaluate.py", "merge.py")
HEAVY = {"torch", "transformers", "trl", "vllm", "lm_eval", "bitsandbytes", "peft", "wandb", "evaluate", "datasets"}


def listed() -> dict[str, list[str]]:
    """Package -> names of the page, from the first column of its table."""
    parts = re.split(r"^## `([\w.]+)`$", PAGE, flags=re.MULTILINE)[1:]
    tables = dict(zip(parts[::2], parts[1::2], strict=True))
    cells = {package: re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE) for package, text in tables.items()}
    return {package: re.findall(r"`(\w+)`", " ".join(rows)) for package, rows in cells.items()}


def packages() -> list[str]:
    """All packages of gkd_rl and reward_models, and the modules of values that everything uses."""
    found = [path.parent for folder in ("gkd_rl", "reward_models") for path in (ROOT / folder).rglob("__init__.py")]
    return sorted([*(path.relative_to(ROOT).as_posix().replace("/", ".") for path in found), *VALUES])


LISTED = listed()


def loaded_by(statement: str) -> set[str]:
    """Slow libraries that are loaded after a statement in a new process."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()} & HEAVY


@pytest.mark.parametrize("package", packages())
def test_the_page_lists_what_a_package_offers(package: str) -> None:
    names = LISTED.get(package, [])
    assert sorted(names) == sorted(import_module(package).__all__)
    assert len(set(names)) == len(names)


def test_every_package_of_the_page_is_there() -> None:
    assert LISTED.keys() <= set(packages())


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in LISTED.items() for name in names])
def test_a_public_name_is_importable_and_documented(package: str, name: str) -> None:
    found = getattr(import_module(package), name)
    assert inspect.getdoc(found), f"{package}.{name} has no docstring"


@pytest.mark.parametrize("package", [one for one in packages() if one not in VALUES and one not in OPEN])
def test_a_package_tells_in_which_order_its_files_are_read(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py", *COMMANDS}
    assert {name for name in files if f"`{name}`" not in doc} == set()


def test_a_package_names_only_what_it_has() -> None:
    for package in packages():
        module = import_module(package)
        with pytest.raises(AttributeError, match="nothing_of_that_name"):
            _ = module.nothing_of_that_name


@pytest.mark.parametrize("package", ["gkd_rl", "gkd_rl.config", "gkd_rl.cli", "gkd_rl.run", "gkd_rl.errors"])
def test_the_command_line_loads_no_torch(package: str) -> None:
    assert loaded_by(f"import {package}") == set()


@pytest.mark.parametrize("package", essential(["losses", "training", "generation", "models"], "training"))
def test_libraries_of_single_features_are_not_loaded_with_a_package(package: str) -> None:
    assert loaded_by(f"import gkd_rl.{package}") <= {"torch", "transformers"}


def test_rewards_of_text_load_no_model_library() -> None:
    assert loaded_by("from reward_models.text import ExactMatch; from reward_models import Composite") == set()


@pytest.mark.parametrize("package", ["gkd_rl", "reward_models"])
def test_types_are_offered_to_type_checkers(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
