"""Rows and source of a step: functions of (seed, step), the same on every rank and in every process."""

from __future__ import annotations

import pytest

from gkd_rl.data.prompt_order import PromptStream, choose_source
from gkd_rl.types import Example, Source

ROWS = [Example(str(i), "", {}) for i in range(10)]


@pytest.mark.parametrize("lmbda", [0.0, 0.25, 1.0])
def test_lambda_is_the_share_of_student_steps(lmbda: float) -> None:
    share = sum(choose_source(lmbda, 3, step) is Source.student for step in range(10_000)) / 10_000
    assert share == pytest.approx(lmbda, abs=0.015 if 0 < lmbda < 1 else 0)
    assert [choose_source(lmbda, 3, step) for step in range(50)] == [
        choose_source(lmbda, 3, step) for step in range(50)
    ]


def test_another_seed_is_another_sequence() -> None:
    assert [choose_source(0.5, 0, step) for step in range(64)] != [choose_source(0.5, 1, step) for step in range(64)]


def test_an_epoch_has_every_row_once_and_epochs_differ() -> None:
    stream = PromptStream(ROWS, per_step=4, seed=0)
    order = [row for step in range(5) for row in stream.rows(step)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert PromptStream(ROWS, 4, 1).rows(0) != stream.rows(0)


def test_ranks_share_a_step() -> None:
    stream = PromptStream(ROWS, per_step=4, seed=0)
    assert stream.rows(3, 0, 2) + stream.rows(3, 1, 2) == stream.rows(3)
