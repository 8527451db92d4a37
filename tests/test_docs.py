"""The documentation: numbers come from result files, every setting is described, the site builds without warnings."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from gkd_rl import __version__
from gkd_rl.config import Config
from gkd_rl.pipeline.results import GREEDY_METRICS, SAMPLED_METRICS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

tables, values = import_module("tables"), import_module("blocks.values")  # docs/ is no package
schema, settings = import_module("blocks.schema"), import_module("blocks.settings")
files, targets = import_module("blocks.comments").files, import_module("blocks.targets")
block, built, filled, INLINE, MARKED = tables.block, tables.built, tables.filled, tables.INLINE, tables.MARKED

PAGES = sorted(path for path in DOCS.rglob("*.md") if "examples" not in path.parts)
LINES, BYTES = 220, 15 * 1024  # of README.md
# What in README.md has a digit and was not measured: a paper, an equation, versions, dates, names, and alpha's ends.
TYPED = re.compile(
    r"arXiv 2306\.13649|Eq\. 5|α = [01]\b|\(1 − α\)|T5\b|8-bit|December 2026|trl 1\.16 to 1\.19|Apache-2\.0"
)
CODE = re.compile(r"```.*?```|^ {4}.*?$|`[^`\n]*`|\]\([^)\n]*\)", re.DOTALL | re.MULTILINE)


def leaves(owner: type, prefix: str = "") -> list[str]:
    """Dotted keys of every leaf of a schema; written apart from docs/blocks/schema.py on purpose."""
    found, hints = [], typing.get_type_hints(owner)
    for one in dataclasses.fields(owner):
        inner = typing.get_args(hints[one.name]) if isinstance(hints[one.name], types.UnionType) else (hints[one.name],)
        below = [kind for kind in inner if dataclasses.is_dataclass(kind)]
        found += leaves(below[0], f"{prefix}{one.name}.") if below else [prefix + one.name]  # pyright: ignore[reportArgumentType]
    return found


def test_readme_is_what_the_result_files_give() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(readme) == readme, "run python docs/tables.py"
    assert len(MARKED.findall(readme)) >= 6


def test_readme_is_short_and_has_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= LINES and len(readme.encode()) <= BYTES
    assert "    pip install -e . && python -m gkd_rl.run experiment=xsum_rl alpha=0.5\n" in readme
    assert '    pip install -e ".[test]" && pytest\n' in readme


def test_no_number_in_readme_is_typed() -> None:
    prose = CODE.sub("", MARKED.sub("", (ROOT / "README.md").read_text(encoding="utf-8")))
    typed = [line for line in TYPED.sub("", prose).splitlines() if re.search(r"\d", line)]
    assert not typed, "a measured number comes from a result file: put it into a block of docs/tables.py"


def test_check_shows_what_differs_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    number = re.search(r"\d+\.\d+ \[", readme)
    assert number is not None
    (tmp_path / "README.md").write_text(readme.replace(number[0], "99.9 [", 1), encoding="utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"run python docs/tables\.py"):
        tables.main()
    assert "99.9 [" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme


def test_the_first_run_is_taken_from_its_folder_without_names_of_the_machine(tmp_path: Path) -> None:
    entry = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    models = {name: {"reward": entry} for name in ("teacher", "student before", "student after", "after - before")}
    found = {
        "eval": models | {"cost": {"time/total": 20.0}, "settings": {"alpha": "0.5"}},
        "run": {"started": 10.0, "ended": 100.0, "machine": "hashed"},
        "environment": dict.fromkeys(tables.MACHINE, 1) | {"platform": "of this machine", "folder": str(tmp_path)},
    }
    for name, value in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    taken = tables.first_run(tmp_path)
    assert taken["seconds"] == {"all": 90.0, "steps": 20.0} and taken["eval"] == models
    assert str(tmp_path) not in json.dumps(taken) and set(taken["environment"]) == set(tables.MACHINE)


def test_the_first_table_has_the_rows_that_the_command_prints() -> None:
    results = import_module("blocks.results")
    components = {key for key in results.printed() if key.startswith("reward/")}
    assert set(results.printed()) - components <= GREEDY_METRICS.keys() | SAMPLED_METRICS.keys()
    assert set(results.SAMPLED) == set(SAMPLED_METRICS) and len(results.printed()) == len(set(results.printed()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_every_block_and_number_of_a_page_is_there(path: Path) -> None:
    """But for the settings, which `test_every_setting_is_described` composes."""
    text = path.read_text(encoding="utf-8")
    for match in MARKED.finditer(text):
        assert match["what"].split()[0] in tables.BLOCKS and not match["old"], "the site fills a block when it is built"
        if not match["what"].endswith(("settings", "choices")):
            assert block(match["what"]).strip()
    for match in INLINE.finditer(text):
        assert values.value(match["what"])


@pytest.mark.parametrize("path", [one for one in PAGES if one.name.startswith("results")], ids=lambda path: path.stem)
def test_no_interval_on_a_results_page_is_typed(path: Path) -> None:
    prose = CODE.sub("", INLINE.sub("", MARKED.sub("", path.read_text(encoding="utf-8"))))
    assert not re.findall(r"-?\d+\.\d+ \[", prose)


def test_every_setting_of_the_schema_is_described() -> None:
    expected = leaves(Config)
    keys = schema.keys()
    names = [key.name for key in keys]
    assert names == expected and len(set(names)) == len(names)
    described = schema.descriptions()
    missing = [name for name in names if not described[name]]
    assert not missing, "write a comment behind the value in conf/"
    assert all(key.takes for key in keys)


def test_the_configuration_page_has_every_setting_once() -> None:
    page = settings.schema()
    listed = re.findall(r'^\| <span id="([^"]+)"></span>', page, re.MULTILINE)
    assert sorted(listed) == sorted(leaves(Config)) and len(set(listed)) == len(listed)
    assert "required" not in page.split("## student")[0]
    for text in ("| `0.5` |", "embedded: `400`<br>single_gpu: `1000`<br>paper: `40000`", "policy_gradient=ppo: `64`"):
        assert text in page, text


@pytest.mark.parametrize("group", ["task", "reward"])
def test_every_setting_of_tasks_and_rewards_is_described(group: str) -> None:
    for file in files(group):
        tree = yaml.safe_load(file.path.read_text(encoding="utf-8"))
        found = settings.free_keys(file)
        names = [key for key in _leaf_keys(tree) if key.rpartition(".")[2] not in ("_target_", "_partial_")]
        expected = {f"{group}.{key}" for key in names}
        expected -= {key for key in expected if key.startswith("reward.weights.") or key in schema.descriptions()}
        assert set(found) == expected, file.path.name
        assert not [key for key, (takes, does) in found.items() if not (takes and does)], file.path.name


def _leaf_keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a YAML file; an empty mapping is a leaf."""
    found = []
    for name, value in node.items():
        found += _leaf_keys(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
    return [key for key in found if key not in ("components", "weights")]


def test_types_of_arguments_are_read_from_the_source() -> None:
    found = targets.target("gkd_rl.data.tasks.xsum.Xsum")
    assert found.takes["data"] == "one of embedded, files, hub"  # of its base
    assert found.takes["id_column"] == "text, or null" and found.takes["max_prompt_tokens"] == "a whole number"
    assert found.does["document_column"] == "column of the article."
    assert targets.in_words(None) == "any value"


def test_the_version_has_one_place() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject and "\nversion =" not in pyproject
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    changes = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == __version__


def test_commands_of_the_pages_name_modules_that_exist() -> None:
    trees = [ROOT / tree for tree in ("gkd_rl", "reward_models", "experiments")]
    paths = [path.relative_to(ROOT).with_suffix("") for tree in trees for path in tree.rglob("*.py")]
    known = {".".join(path.parts) for path in paths}
    for path in (*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"python -m ((?:gkd_rl|reward_models|experiments)[\w.]*)", text):
            assert name in known or f"{name}.__main__" in known, f"{path.name}: python -m {name}"


def test_paths_of_the_pages_exist() -> None:
    for path in (*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:gkd_rl|reward_models|experiments|conf|tests|docs)/[\w./-]+\.\w+)`", text):
            assert (ROOT / name).exists() or re.search(r"[A-Z]{3}|headlines|brevity", name), f"{path.name}: {name}"


def test_tests_that_the_page_about_faults_names_exist() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    for name in re.findall(r"\btest_\w+", page):
        assert name in sources or any(f"def {name}(" in text for text in sources.values()), name


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_site_builds_without_warnings_and_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason='pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//', text), page
        assert not re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|preload)"[^>]+href="(?:https?:)?//', text), page
        left = re.sub(r"<code.*?</code>", "", text, flags=re.DOTALL)
        assert "{{ " not in left and not MARKED.search(left), page


def test_a_page_is_built_from_its_blocks_and_numbers() -> None:
    page = "<!-- table:statements -->\n<!-- /table -->\n\nruns: {{ number paper/paper facts runs }}\n"
    assert f"runs: {values.at('paper/paper', 'facts', 'runs')}" in built(page) and "| 1 |" in built(page)
    with pytest.raises(KeyError, match="is not one of"):
        built("{{ nothing a b }}")
    with pytest.raises(KeyError, match="is not one of"):
        block("nothing")
