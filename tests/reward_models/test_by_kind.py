"""Rows of a mixture are scored by the reward of their kind, in their order."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models.composite import ByKind
from reward_models.text.answers import ExactMatch
from reward_models.text.form import Verifiable


def shout(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    assert "final_answer" not in columns and prompts == ["p2"]
    return [float(text.isupper()) for text in completions]


def test_each_row_by_its_own_reward_in_order() -> None:
    reward = ByKind("kind", {"sum": ExactMatch("last_number"), "loud": shout, "rule": Verifiable("all")})
    scores = reward(
        ["p0", "p1", "p2", "p3"],
        ["it is 7", "one two", "LOUD", "it is 8"],
        kind=["sum", "rule", "loud", "sum"],
        final_answer=["7", None, None, "7"],
        instructions=[None, [{"kind": "words", "value": 2}], None, None],
    )
    assert scores == [1.0, 1.0, 1.0, 0.0]


def test_kinds_without_a_reward() -> None:
    reward = ByKind("kind", {"loud": shout})
    with pytest.raises(ValueError, match="kind='sum' has no reward: kinds are loud"):
        reward(["p"], ["c"], kind=["sum"])
    with pytest.raises(ValueError, match="no column 'kind'"):
        reward(["p"], ["c"])
    with pytest.raises(ValueError, match="at least one kind"):
        ByKind("kind", {})


def test_a_reward_that_gives_too_few_numbers() -> None:
    with pytest.raises(ValueError, match="zip"):
        ByKind("kind", {"a": lambda prompts, completions, **columns: [1.0]})(["p"] * 2, ["c"] * 2, kind=["a", "a"])
