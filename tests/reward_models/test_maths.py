"""Answers that are equal in mathematics, answers that are not, and comparisons that never end."""

from __future__ import annotations

import threading
import time

import pytest

from reward_models.text.answers import Maths

EQUAL = [
    ("1/2", "so it is \\boxed{0.5}"),
    ("\\frac{1}{2}", "The answer is $\\frac{2}{4}$."),
    ("72", "Natalia sold 72 clips."),
    ("1,000", "That makes \\boxed{1000}"),
    ("x^2+2x+1", "$(x+1)^2$"),
    ("\\boxed{\\sqrt{8}}", "we get \\boxed{2\\sqrt{2}}"),
    ("(1,2)", "\\boxed{(1, 2)}"),
    ("\\{1,2,3\\}", "$\\{3, 2, 1\\}$"),
]
DIFFERENT = [
    ("1/2", "\\boxed{0.51}"),
    ("72", "71"),
    ("72", "no idea"),
    ("72", ""),
    ("x+1", "$x-1$"),
    ("(1,2)", "$(2,1)$"),
]


@pytest.fixture(scope="module")
def maths() -> Maths:
    return Maths(seconds=10)


def test_what_is_equal_and_what_is_not(maths: Maths) -> None:
    for pairs, expected in ((EQUAL, 1.0), (DIFFERENT, 0.0)):
        truths, texts = zip(*pairs, strict=True)
        scores = maths([""] * len(texts), texts, final_answer=truths)
        assert scores == [expected] * len(texts), list(zip(pairs, scores, strict=True))


def test_the_reference_serves_where_there_is_no_final_answer(maths: Maths) -> None:
    assert maths(["q"], ["\\boxed{8}"], reference=["2 + 6 = 8, so \\boxed{8}"]) == [1.0]
    with pytest.raises(ValueError, match="has neither"):
        maths(["q"], ["8"])
    with pytest.raises(ValueError, match="row 1: math-verify finds no answer in the reference '  '"):
        maths(["q"] * 2, ["8"] * 2, final_answer=["8", "  "])


def test_it_works_outside_the_main_thread(maths: Maths) -> None:
    found: list[list[float]] = []
    thread = threading.Thread(target=lambda: found.append(maths([""], ["$\\frac{1}{2}$"], final_answer=["0.5"])))
    thread.start()
    thread.join()
    assert found == [[1.0]]


def test_a_comparison_that_never_ends_counts_as_wrong_and_the_next_one_works() -> None:
    maths = Maths(seconds=2)
    assert maths([""], ["7"], final_answer=["7"]) == [1.0]
    start = time.monotonic()
    assert maths([""], ["$\\boxed{9^{9^{9^{9}}} + 1}$"], final_answer=["9^{9^{9^{9}}}"]) == [0.0]
    assert time.monotonic() - start < 30
    assert maths([""], ["7"], final_answer=["7"]) == [1.0]
    with pytest.raises(ValueError, match="seconds=0: takes a number > 0"):
        Maths(0)
