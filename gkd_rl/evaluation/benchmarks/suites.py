"""Suites of benchmarks: their tasks in lm-evaluation-harness, with local files instead of the Hub, code in a sandbox.

Prompts, few-shot examples, filters and metrics stay the harness's. A task with local data is a YAML file that includes
the harness's own and changes only where rows come from.

The harness's code tasks (humaneval, mbpp and variants) load the metric `code_eval` by `evaluate.load`. The one on the
Hub runs code in a plain subprocess. `CodeEval` has its interface, and runs each candidate with its tests in
`reward_models.code.sandbox`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any
from unittest import mock

import evaluate
import lm_eval.tasks
import nltk
import yaml
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from gkd_rl.config.validation import closest
from gkd_rl.errors import BenchmarkError
from gkd_rl.evaluation.benchmarks.settings import local_source
from reward_models.code.sandbox import Limits, SandboxError, run_python

HARNESS = Path(lm_eval.tasks.__file__).parent
OURS = Path(__file__).parent / "tasks"
# Suite -> (task or group of the harness, folder of its definition); reading all 14,000 definitions takes 12 seconds.
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
SANDBOXED = ("humaneval", "mbpp")  # prefixes of the tasks that use `code_eval`; others run code in other ways
CODE_TASK_MODULES = ("lm_eval.tasks.humaneval", "lm_eval.tasks.mbpp")  # which load `code_eval` at import
CANDIDATE_SECONDS = 3.0  # for one candidate, as in the metric on the Hub


@dataclass(frozen=True)
class Suites:
    """The loaded tasks of the selected suites.

    Attributes:
        tasks: tasks and groups, for the harness.
        names: suite -> names of its results, e.g. mmlu, or every task of a tag.
        runs_code: whether a task runs generated code.
        manager: the task definitions; without it the harness would read all 14,000.
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
        data: the setting.
        num_fewshot: the setting.
        allow_code: whether a task may run generated code.
        scratch: folder for definitions of tasks with local data.

    Raises:
        BenchmarkError: a suite is unknown, its rows or packages are missing, or it runs code without permission.
        DataError: local files do not fit a suite.
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
                _use_local_files(leaf, manager, source, scratch)
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
    """The definitions of these suites.

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
    """Names of the tasks of a task, group or tag."""
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
    """Whether a task runs generated code.

    Raises:
        BenchmarkError: it does without permission, or outside the sandbox.
    """
    if not (manager.task_index[leaf].cfg or {}).get("unsafe_code"):
        return False
    if not leaf.startswith(SANDBOXED):
        raise BenchmarkError(f"suite={suite} runs generated code outside this project's sandbox: remove it.")
    if not allow:
        raise BenchmarkError(
            f"suite={suite} runs generated code: set allow_code_execution=true to run it in a sandbox, or remove "
            f"{suite}."
        )
    return True


def _use_local_files(leaf: str, manager: TaskManager, source: Mapping[str, Any] | None, scratch: Path) -> None:
    """Replace a task's definition by one that includes it and reads local files."""
    if source is None:
        return
    entry = manager.task_index[leaf]
    file = scratch / f"{leaf}.yaml"
    file.write_text(yaml.safe_dump({"include": str(entry.yaml_path), "task": leaf, **source}), encoding="utf-8")
    entry.yaml_path = file


def _load(suite: str, manager: TaskManager, local: bool) -> dict[str, Task | Group]:
    """Name of a result -> task or group of the harness."""
    name = _task_name(suite)
    try:
        found = manager.load([name])
    except (ImportError, AssertionError) as error:  # raised by a task's module for missing packages
        raise BenchmarkError(
            f"suite={suite} needs a package that is not installed ({_first(error)}): type "
            '`pip install "gkd_rl[eval]"`. '
            "Tasks of minerva_math need antlr4-python3-runtime 4.11, which conflicts with Hydra: take math500 or math."
        ) from error
    except SandboxError as error:
        raise BenchmarkError(f"suite={suite}: {error}") from error
    except Exception as error:  # `datasets` and the Hub's client raise unrelated classes
        instead = "Check the columns of its files." if local else f"Without the Hub set data.{suite} to local files."
        raise BenchmarkError(f"suite={suite} could not be loaded ({_first(error)}). {instead}") from error
    if suite == "ifeval":
        _check_sentence_splitter(suite)
    groups, tasks = found.get("groups", {}), found["tasks"]
    return {name: groups[name]} if name in groups else dict(tasks)


def _check_sentence_splitter(suite: str) -> None:
    """Check for nltk's data: the harness downloads them when it loads the task, and ignores a failure."""
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise BenchmarkError(
            f"suite={suite} needs nltk's punkt_tab: type `python -m nltk.downloader punkt_tab` while online."
        ) from error


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k generated programs is right.

    pass@k = 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, Eq. 1).

    Args:
        n: generated programs.
        c: right ones among them.
        k: in 1..n.

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@k: k={k} of n={n} programs; k takes a whole number from 1 to n.")
    return 1.0 - comb(n - c, k) / comb(n, k)


class CodeEval:
    """The metric `code_eval` with the interface of `evaluate`."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], list[list[bool]]]:
        """Run every candidate with the tests of its problem.

        Args:
            references: the tests of each problem.
            predictions: candidates of each problem.
            k: as in pass@k; values above the number of candidates of any problem are omitted.

        Returns:
            pass@k for each k, the mean over problems; whether each candidate passed.
        """
        programs = [
            [f"{candidate}\n{tests}" for candidate in candidates]
            for tests, candidates in zip(references, predictions, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            passed = [list(pool.map(_passes, row)) for row in programs]
        fitting = [one for one in k if all(len(row) >= one for row in passed)]
        means = {
            f"pass@{one}": sum(pass_at_k(len(row), sum(row), one) for row in passed) / len(passed) for one in fitting
        }
        return means, passed


@contextmanager
def code_eval_in_sandbox() -> Iterator[None]:
    """Within the block `evaluate.load("code_eval")` returns `CodeEval`; other names are loaded as usual."""
    load = evaluate.load
    for name in [one for one in sys.modules if one.startswith(CODE_TASK_MODULES)]:
        del sys.modules[name]  # it was imported with the Hub's metric

    def load_here(path: str, *arguments: Any, **named: Any) -> Any:
        return CodeEval() if path == "code_eval" else load(path, *arguments, **named)

    with mock.patch.object(evaluate, "load", load_here):
        yield


def _passes(program: str) -> bool:
    return run_python(program, Limits(seconds=CANDIDATE_SECONDS)).passed
