"""Names of suites -> the harness's tasks, with local files in place of the Hub's where there are any.

Prompts, examples, filters and metrics stay the harness's. A task with local data is a YAML that includes the harness's
own and changes where rows come from, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
import nltk
import yaml
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from gkd_rl.benchmarks.code_eval import code_eval_in_sandbox
from gkd_rl.benchmarks.local_data import local_source
from gkd_rl.errors import BenchmarkError
from gkd_rl.validation import closest
from reward_models.sandbox import SandboxError

HARNESS = Path(lm_eval.tasks.__file__).parent
OURS = Path(__file__).parent / "tasks"
# name -> (the harness's task or group, the folder that defines it): reading all 14,000 definitions takes 12 seconds
SUITES = {
    "gsm8k": ("gsm8k", HARNESS / "gsm8k"),
    "math500": ("hendrycks_math500", HARNESS / "hendrycks_math"),
    "math": ("hendrycks_math", HARNESS / "hendrycks_math"),
    "mmlu": ("mmlu", HARNESS / "mmlu" / "default"),
    "bbh": ("bbh", HARNESS / "bbh" / "cot_fewshot"),
    "ifeval": ("ifeval", HARNESS / "ifeval"),
    "scienceqa": ("scienceqa", OURS),
    "humaneval": ("humaneval", HARNESS / "humaneval"),
}
SANDBOXED = ("humaneval", "mbpp")  # what their tasks' names begin with; others run code in their own ways


@dataclass(frozen=True)
class Suites:
    """Loaded tasks.

    Attributes:
        tasks: what goes to the harness, groups whole.
        names: suite -> the names of its results, e.g. mmlu, or each task of a tag.
        runs_code: whether a task runs what the model wrote.
        manager: the definitions; without it the harness would read all 14,000.
    """

    tasks: list[Task | Group]
    names: dict[str, list[str]]
    runs_code: bool
    manager: TaskManager | None = None


def load_suites(
    names: list[str], data: str | dict[str, Any] | None, num_fewshot: int | None, allow_code: bool, scratch: Path
) -> Suites:
    """Load every suite's tasks and rows.

    Args:
        names: suites, without mt_bench.
        data: as the setting.
        num_fewshot: as the setting.
        allow_code: whether a task may run what the model wrote.
        scratch: a folder for definitions of tasks with local data.

    Raises:
        BenchmarkError: a suite is unknown, its rows or packages are missing, or it runs code and may not.
        DataError: local files are not what a suite takes.
    """
    if not names:
        return Suites([], {}, False)
    manager = _manager(names)
    runs_code = False
    for name in names:
        for leaf in _leaves(_task_name(name), manager):
            runs_code = _check_code(name, leaf, manager, allow_code) or runs_code
            if data is not None:
                source = local_source(name, data, manager.task_index[leaf].cfg or {}, num_fewshot)
                _take_local(leaf, manager, source, scratch)
    tasks: list[Task | Group] = []
    results: dict[str, list[str]] = {}
    with code_eval_in_sandbox() if runs_code else nullcontext():
        for name in names:
            found = _load(name, manager, data is not None)
            tasks += found.values()
            results[name] = list(found)
    return Suites(tasks, results, runs_code, manager)


def _task_name(suite: str) -> str:
    return SUITES[suite][0] if suite in SUITES else suite


def _manager(names: list[str]) -> TaskManager:
    """The definitions that are needed.

    Raises:
        BenchmarkError: there is no such task.
    """
    if all(name in SUITES for name in names):
        folders = list(dict.fromkeys(SUITES[name][1] for name in names))
        return TaskManager(include_defaults=False, include_path=[str(folder) for folder in folders])
    manager = TaskManager(include_path=str(OURS))
    for name in names:
        if _task_name(name) not in manager.task_index:
            known = [*SUITES, "mt_bench", *manager.task_index]
            raise BenchmarkError(
                f"suite={name} is not a suite.{closest(name, known)} suite takes {', '.join(SUITES)}, mt_bench or any "
                "task that `lm_eval ls tasks` lists."
            )
    return manager


def _leaves(name: str, manager: TaskManager) -> Iterator[str]:
    """The tasks of a task, group or tag."""
    entry = manager.task_index[name]
    members = (entry.cfg or {}).get("task")
    if entry.tags and entry.cfg is None:
        yield from sorted(entry.tags)
    elif isinstance(members, list):
        for member in members:
            inner = member if isinstance(member, str) else member.get("task", member.get("group"))
            if inner in manager.task_index:
                yield from _leaves(inner, manager)
    else:
        yield name


def _check_code(suite: str, leaf: str, manager: TaskManager, allow: bool) -> bool:
    """Whether a task runs what the model wrote.

    Raises:
        BenchmarkError: it does, and may not.
    """
    if not (manager.task_index[leaf].cfg or {}).get("unsafe_code"):
        return False
    if not leaf.startswith(SANDBOXED):
        raise BenchmarkError(f"suite={suite} runs what the model wrote outside this project's sandbox: leave it out.")
    if not allow:
        raise BenchmarkError(
            f"suite={suite} runs what the model wrote: set allow_code_execution=true to have it run in a sandbox, or "
            f"leave {suite} out."
        )
    return True


def _take_local(leaf: str, manager: TaskManager, source: Mapping[str, Any] | None, scratch: Path) -> None:
    """Point a task's definition to one that includes it and takes its rows from local files."""
    if source is None:
        return
    entry = manager.task_index[leaf]
    file = scratch / f"{leaf}.yaml"
    file.write_text(yaml.safe_dump({"include": str(entry.yaml_path), "task": leaf, **source}), encoding="utf-8")
    entry.yaml_path = file


def _load(suite: str, manager: TaskManager, local: bool) -> dict[str, Task | Group]:
    """Name of a result -> what the harness evaluates for it."""
    name = _task_name(suite)
    try:
        found = manager.load([name])
    except (ImportError, AssertionError) as error:  # what a task's own file says of its packages
        raise BenchmarkError(
            f'suite={suite} needs what is not installed ({_first(error)}): type `pip install "gkd_rl[eval]"`. Tasks of '
            "minerva_math need antlr4-python3-runtime 4.11, which Hydra rules out: take math500 or math."
        ) from error
    except SandboxError as error:
        raise BenchmarkError(f"suite={suite}: {error}") from error
    except Exception as error:  # `datasets` and the Hub's client raise unrelated classes
        instead = "Look at the columns of its files." if local else f"Without a Hub set data.{suite} to local files."
        raise BenchmarkError(f"suite={suite} could not be loaded ({_first(error)}). {instead}") from error
    if suite == "ifeval":
        _check_sentences(suite)
    groups, tasks = found.get("groups", {}), found["tasks"]
    return {name: groups[name]} if name in groups else dict(tasks)


def _check_sentences(suite: str) -> None:
    """The harness downloads what splits sentences while it loads the task, and goes on where that fails."""
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise BenchmarkError(
            f"suite={suite} needs nltk's punkt_tab: type `python -m nltk.downloader punkt_tab` with a network."
        ) from error


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
