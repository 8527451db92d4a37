"""`evaluate.load("code_eval")` without the Hub, and in a sandbox: what the harness's code tasks are scored by.

The harness's humaneval, mbpp and their variants load that metric when they are loaded. The Hub's runs code in a bare
subprocess; this one has its interface, and runs each candidate with its tests in `reward_models.sandbox`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import comb
from typing import Any
from unittest import mock

import evaluate

from reward_models.sandbox import Limits, run_python

LOADERS = ("lm_eval.tasks.humaneval", "lm_eval.tasks.mbpp")
SECONDS = 3.0  # for a candidate, as the Hub's metric has it


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k programs drawn from n, of which c are right, is right.

    pass@k = 1 - C(n - c, k) / C(n, k), unbiased (Chen et al., arXiv 2107.03374, Eq. 1).

    Raises:
        ValueError: k is not in 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@k: k={k} of n={n} programs; k takes a whole number from 1 to n.")
    return 1.0 - comb(n - c, k) / comb(n, k)


class CodeEval:
    """The metric, in the words of `evaluate`."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], list[list[bool]]]:
        """Run every candidate.

        Args:
            references: the tests of each problem.
            predictions: candidates of each problem.
            k: as in pass@k; those that some problem has too few candidates for are left out.

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
    """While tasks are loaded, `evaluate.load("code_eval")` gives the metric above; any other name goes on as ever."""
    load = evaluate.load
    for name in [one for one in sys.modules if one.startswith(LOADERS)]:  # one that was loaded before holds the Hub's
        del sys.modules[name]

    def load_here(path: str, *arguments: Any, **named: Any) -> Any:
        return CodeEval() if path == "code_eval" else load(path, *arguments, **named)

    with mock.patch.object(evaluate, "load", load_here):
        yield


def _passes(program: str) -> bool:
    return run_python(program, Limits(seconds=SECONDS)).passed
