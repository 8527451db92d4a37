"""The rules of the house, checked on the source: the order of packages, import sites, sizes and names."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gkd_rl", "reward_models", "experiments")

# A package imports only from those before it, and a flat file likewise; the commands come last.
ORDER = (
    *("types", "errors"),
    "config",
    "outputs",
    "losses",
    "models",
    "generation",
    "data",
    "training",
    "evaluation",
    "planning",
    "pipeline",
    "cli",
    *("run", "doctor", "evaluate", "merge"),
)
# trl: RewardTrainer, and its client of vLLM; evaluate: our metrics, and the harness's code_eval in the sandbox
SITES = {"trl": 2, "wandb": 1, "evaluate": 2}
TOP_LEVEL = {"conf", "gkd_rl", "reward_models", "experiments", "tests", "docs", ".ci"}
MOST_FILES = {"gkd_rl": 8}  # Python files of a folder; 16 of any other


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(name: str) -> str:
    return name.partition(".")[0]


def place(path: Path) -> str:
    """The package or flat file of gkd_rl that a file belongs to; empty for gkd_rl/__init__.py."""
    first = path.relative_to(ROOT / "gkd_rl").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def test_every_package_has_its_place_in_the_order() -> None:
    assert {place(path) for path in python_files("gkd_rl")} - {""} == set(ORDER)


@pytest.mark.parametrize("own", ORDER)
def test_a_package_imports_from_those_before_it(own: str) -> None:
    """Which leaves no cycle between packages."""
    later = set(ORDER[ORDER.index(own) + 1 :])
    for path in python_files("gkd_rl"):
        if place(path) == own:
            used = {name.split(".")[1] for name in imports(path) if name.startswith("gkd_rl.")}
            assert not used & later, f"{relative(path)} is in {own} and imports from {sorted(used & later)}"


def test_the_configuration_is_known_to_few() -> None:
    """All others take values; the command line composes it and hands it on."""
    for path in python_files("gkd_rl"):
        known = {name.rpartition(".")[2] for name in imports(path) if name.startswith("gkd_rl.config.")}
        assert "Config" not in known or place(path) in ("config", "pipeline", "cli", "run", "doctor"), relative(path)


def test_rewards_stand_alone_and_experiments_are_imported_by_nobody() -> None:
    for path in python_files("reward_models"):
        assert {top(name) for name in imports(path)}.isdisjoint({"gkd_rl", "experiments"}), relative(path)
    for path in python_files("gkd_rl"):
        assert "experiments" not in {top(name) for name in imports(path)}, relative(path)


@pytest.mark.parametrize("library", SITES)
def test_few_import_sites(library: str) -> None:
    sites = [relative(path) for path in python_files("gkd_rl", "reward_models") if library in map(top, imports(path))]
    assert len(sites) <= SITES[library], f"{library} is imported by {sites}: keep it to {SITES[library]}"


def test_experiments_read_wandb_in_one_place() -> None:
    """Runs write to it in gkd_rl/outputs/tracking.py; a comparison reads what was uploaded."""
    sites = [relative(path) for path in python_files("experiments") if "wandb" in map(top, imports(path))]
    assert sites == ["experiments/sync.py"]


def test_the_command_line_imports_nothing_slow() -> None:
    """At the top of its files; tests/cli/test_cli.py starts commands and asks what they have imported."""
    slow = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", *SITES}
    files = [path for path in python_files("gkd_rl") if place(path) in ("", "errors", "config", "cli", "run", "doctor")]
    for path in files:
        found = {top(one) for one in imports(path)} & slow
        assert not found, f"{relative(path)} imports {found}: a wrong setting would be refused late"


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=relative)
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, f"{relative(path)} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{relative(path)}: {node.name} has {lines} lines, at most 60"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [one.arg for one in arguments if one.arg not in ("self", "cls")]
            assert len(named) <= 7, f"{relative(path)}: {node.name} takes {len(named)} parameters, at most 7"


def test_folders_are_small_and_files_are_concepts() -> None:
    files = python_files(*PACKAGES)
    for folder in {path.parent for path in files}:
        count = len(list(folder.glob("*.py")))
        assert count <= MOST_FILES.get(relative(folder), 16), f"{relative(folder)} has {count} Python files"
    median = statistics.median(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert 120 <= median <= 250, f"the median file has {median} lines: do not split or join for a number"


def test_names_say_what_is_in_them() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    bad = [
        relative(path) for path in python_files(*PACKAGES, "tests") if path.stem in vague or path.parent.name in vague
    ]
    assert not bad


def test_every_module_has_a_docstring() -> None:
    bare = [
        relative(path)
        for path in python_files(*PACKAGES, "tests")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not bare


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=relative)
def test_files_that_are_named_exist(path: Path) -> None:
    """In docstrings and comments: by their path in the repository, in the package, or beside the file."""
    text = path.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?<![\w/.{}*])((?:\w+/)*\w+\.(?:py|md))\b", text)):
        parents = (ROOT, ROOT / "gkd_rl", path.parent, path.parent.parent)
        known = any((folder / name).is_file() for folder in parents) or name in WRITTEN_BY_RUNS
        assert known, f"{relative(path)} names {name}, which is not there"


WRITTEN_BY_RUNS = {"README.md", "compare.md", "study.md", "paper.md", "NAME.py"}  # or stand for any name


def test_the_top_level_is_fixed() -> None:
    """Of the folders that hold source; what runs, builds and tools leave behind is ignored by .gitignore."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    found = {path.name for path in ROOT.iterdir() if path.is_dir()} - ignored - {".git", ".github"}
    extra = {name for name in found - TOP_LEVEL if not name.endswith(".egg-info")}
    assert not extra, f"{sorted(extra)}: the top level is fixed, see CONTRIBUTING.md"
