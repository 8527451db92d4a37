"""Guarded components: batches, the cache, time limits, and failures that are reported and never silently zero."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import pytest

from reward_models.composite import Composite
from reward_models.guard import Guard


class Recorder:
    """Scores by length, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        self.calls.append(list(completions))
        if "boom" in completions:
            raise RuntimeError("cannot read boom")
        special: dict[str, float | None] = {"nan": math.nan, "none": None, "inf": math.inf}
        return [special.get(text, float(len(text))) for text in completions]


def guarded(reward: Any, **settings: Any) -> Composite:
    return Composite({"r": reward}, {"r": 2.0}, Guard(**settings))


def test_batches() -> None:
    reward = Recorder()
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    assert guarded(reward, batch_size=2)(["p"] * 5, texts).total == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert reward.calls == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]


def test_texts_are_scored_once_while_they_are_cached() -> None:
    reward = Recorder()
    composite = guarded(reward, cache_size=3)
    assert composite(["p"] * 4, ["a", "bb", "a", "bb"], document=["d"] * 4).total == [2.0, 4.0, 2.0, 4.0]
    assert reward.calls == [["a", "bb"]]
    composite(["p"], ["a"], document=["d"])
    assert len(reward.calls) == 1
    composite(["p"], ["a"], document=["another"])
    composite(["q"], ["a"], document=["d"])
    assert reward.calls[1:] == [["a"], ["a"]], "another column or prompt is another row"
    composite(["p"], ["bb"], document=["d"])
    assert reward.calls[-1] == ["bb"], "the oldest was dropped"
    plain = Recorder()
    guarded(plain)(["p"] * 2, ["a", "a"])
    assert plain.calls == [["a", "a"]]


@pytest.mark.parametrize("bad", ["nan", "none", "inf", "boom"])
def test_a_failure_stops_by_default_and_names_the_component(bad: str) -> None:
    with pytest.raises(
        ValueError, match=rf"reward 'r' (failed: RuntimeError: cannot read boom|returned \w+ for .*{bad})"
    ):
        guarded(Recorder())(["p"] * 2, ["fine", bad])


@pytest.mark.parametrize("bad", ["nan", "none", "inf", "boom"])
@pytest.mark.parametrize("cache_size", [0, 10])
def test_a_failure_is_replaced_if_the_settings_allow_it(
    bad: str, cache_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    composite = guarded(Recorder(), on_failure="replace", failure_value=-0.5, cache_size=cache_size)
    with caplog.at_level(logging.WARNING):
        scores = composite(["p"] * 3, ["aaa", bad, "b"])
    assert scores.total == [6.0, -1.0, 2.0] and scores.failed == [False, True, False]
    assert scores.components == {"r": [3.0, -0.5, 1.0]}
    assert "reward 'r' failed for 1 completion(s), which get -0.5" in caplog.text and bad in caplog.text
    again = composite(["p"], [bad])
    assert again.failed == [True], "a failure is not cached"


def test_nothing_is_counted_where_failures_stop() -> None:
    assert guarded(Recorder())(["p"], ["a"]).failed is None


def test_too_few_numbers_are_a_failure_of_the_batch() -> None:
    def short(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * min(1, len(completions))

    with pytest.raises(ValueError, match="it returned 1 numbers for 2 completions"):
        guarded(short)(["p"] * 2, ["a", "b"])
    assert guarded(short, on_failure="replace")(["p"] * 2, ["a", "b"]).failed == [False, False], (
        "single rows have one each"
    )


def test_time_limits(caplog: pytest.LogCaptureFixture) -> None:
    def slow(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        time.sleep(3.0 if "slow" in completions else 0.0)
        return [1.0] * len(completions)

    start = time.monotonic()
    with pytest.raises(ValueError, match=r"did not return within 0\.2 seconds"):
        guarded(slow, timeout=0.2)(["p"], ["slow"])
    scores = guarded(slow, timeout=0.2, on_failure="replace", failure_value=0.25, batch_size=1)(
        ["p"] * 2, ["slow", "x"]
    )
    assert time.monotonic() - start < 2
    assert scores.total == [0.5, 2.0] and scores.failed == [True, False]
    assert guarded(Recorder(), timeout=5)(["p"], ["abc"]).total == [6.0]
    with pytest.raises(ValueError, match="cannot read boom"):
        guarded(Recorder(), timeout=5)(["p"], ["boom"])


def test_settings_and_names_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="on_failure=ignore: takes stop or replace"):
        Guard(on_failure="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="cannot be called mean, std, failed"):
        Composite({"failed": Recorder()}, {"failed": 1.0})
