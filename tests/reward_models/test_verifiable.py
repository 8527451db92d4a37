"""Every kind of instruction, followed and not, and rows that cannot be judged."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models.text.form import CHECKS, Verifiable

CASES: list[tuple[str, Any, str, str]] = [
    ("max_words", 3, "One, two; three!", "one two three four"),
    ("min_words", 2, "don't stop", "don't"),
    ("words", 2, "well-known fact.", "a well known fact"),
    ("max_sentences", 1, "It costs 3.50 today.", "It rains. It pours."),
    ("sentences", 2, "Yes! It is so.", "Yes, it is so."),
    ("bullets", 2, "- one\n* two", "- one\n-two"),
    ("lower_case", None, "all small, 3 of them", "One capital"),
    ("upper_case", None, "LOUD 3", "Loud"),
    ("include", ["Cat", "mat"], "The cat sat on a mat.", "The cats sat on a mat."),
    ("exclude", ["dog"], "The dogged cat.", "A Dog!"),
    ("count", {"the": 2, "cat": 1}, "The cat and the hat", "the cat"),
    ("starts_with", "Dear", " dear all,", "All, dear"),
    ("ends_with", "bye.", "So long, bye. ", "bye"),
    ("no_commas", None, "one and two", "one, two"),
    ("json", None, '{"a": [1]}', "{a: 1}"),
]


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize(("kind", "value", "good", "bad"), CASES)
def test_kinds(kind: str, value: Any, good: str, bad: str) -> None:
    rows = [[{"kind": kind, "value": value}]] * 2
    assert Verifiable("all")(["x"] * 2, [good, bad], instructions=rows) == [1.0, 0.0]


@pytest.mark.parametrize("kind", sorted(CHECKS.keys() - {"max_words", "max_sentences", "starts_with", "ends_with"}))
def test_an_empty_text_follows_no_instruction_by_saying_nothing(kind: str) -> None:
    value = next(value for name, value, *_ in CASES if name == kind)
    assert Verifiable("all")(["x"], [""], instructions=[[{"kind": kind, "value": value}]]) == [0.0]


def test_all_and_share() -> None:
    checks = [[{"kind": "lower_case"}, {"kind": "max_words", "value": 2}, {"kind": "include", "value": ["so"]}]]
    assert Verifiable("all")(["x"], ["it is so"], instructions=checks) == [0.0]
    assert Verifiable("share")(["x"], ["it is so"], instructions=checks) == [pytest.approx(2 / 3)]


def test_rows_that_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="row 1 has no instructions"):
        Verifiable("all")(["x"] * 2, ["a", "b"], instructions=[[{"kind": "lower_case"}], []])
    with pytest.raises(ValueError, match="instruction 'rhyme' is not known; kinds are max_words"):
        Verifiable("all")(["x"], ["a"], instructions=[[{"kind": "rhyme"}]])
    with pytest.raises(ValueError, match="takes all or share"):
        Verifiable("some")  # pyright: ignore[reportArgumentType]
