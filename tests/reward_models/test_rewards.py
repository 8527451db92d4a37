"""Rewards: GRPO's signature, weighted sums, and refusals that name the component."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gkd_rl.data.embedded.news import NewsChecker, generate
from reward_models.composite import Composite
from reward_models.text.answers import Checked
from reward_models.text.overlap import Rouge

ARTICLE = "mayor evans has opened the bridge . it happened in leeds . it took place on monday ."
TRUE = "evans has opened the bridge in leeds on monday ."
HALF = "evans has opened the bridge in leeds on friday ."
VOID = "evans has opened bridge ."
REWARDS = Path(__file__).resolve().parents[2] / "reward_models"


def constant(*values: Any) -> Callable[..., list[Any]]:
    return lambda prompts, completions, **columns: list(values)


@pytest.mark.parametrize(
    ("measure", "expected"), [("all_supported", [1.0, 0.0, 0.0]), ("supported_share", [1.0, 0.8, 0.0])]
)
def test_faithfulness(measure: Any, expected: list[float]) -> None:
    reward = Checked(NewsChecker(), measure)
    completions = [TRUE, HALF, VOID]
    # as trl's GRPOTrainer calls a reward: keywords only, and columns that it does not use
    scores = reward(
        prompts=["unused"] * 3,
        completions=completions,
        completion_ids=[[1]] * 3,
        document=[ARTICLE] * 3,
        reference=["unused"] * 3,
        trainer_state=None,
    )
    assert scores == pytest.approx(expected)
    assert all(type(score) is float for score in scores)
    assert reward([ARTICLE] * 3, completions) == scores  # without the column the prompt is the document


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge(kind: Any) -> None:
    reward = Rouge(kind)
    texts = ["the cats sat on the mat", "the cat sat", "", "dogs bark"]
    scores = reward(prompts=["unused"] * 4, completions=texts, reference=["the cat sat on the mat"] * 4, document=[""])
    assert scores[0] == 1.0 and scores[2:] == [0.0, 0.0]  # stemmed
    hits = {"rouge1": (3, 3, 6), "rouge2": (2, 2, 5)}.get(kind, (3, 3, 6))
    precision, recall = hits[0] / hits[1], hits[0] / hits[2]
    assert scores[1] == pytest.approx(2 * precision * recall / (precision + recall))
    with pytest.raises(ValueError, match="takes one of rouge1"):
        Rouge("rouge3")  # pyright: ignore[reportArgumentType]


def test_faithfulness_pairs_documents_and_completions() -> None:
    items = generate("test", 40, 0)
    reward = Checked(NewsChecker(), "supported_share")
    articles, summaries = [item.article for item in items], [item.summary for item in items]
    paired = reward(articles, summaries)
    crossed = reward(articles, summaries[1:] + summaries[:1])
    assert sum(paired) / 40 > 0.7 > 0.4 > sum(crossed) / 40
    assert paired == [NewsChecker()(item.article, item.summary).supported_share for item in items]
    with pytest.raises(ValueError, match=r"zip|shorter|longer"):
        reward(articles, summaries[1:])


def test_faithfulness_refuses_another_measure() -> None:
    with pytest.raises(ValueError, match="measure=truth: the verdict of NewsChecker has no such number"):
        Checked(NewsChecker(), "truth")([ARTICLE], ["evans has opened the bridge ."])


def test_the_composite_is_the_weighted_sum() -> None:
    composite = Composite({"a": constant(1, 2), "b": constant(10.0, -4.0)}, {"a": 0.5, "b": -2.0})
    scores = composite(["p", "q"], ["c", "d"])
    assert scores.total == [0.5 - 20.0, 1.0 + 8.0]
    assert scores.components == {"a": [1.0, 2.0], "b": [10.0, -4.0]}


def test_a_component_of_weight_zero_is_logged_only() -> None:
    scores = Composite({"a": constant(1.0), "b": constant(7.0)}, {"a": 1.0, "b": 0.0})(["p"], ["c"])
    assert scores.total == [1.0]
    assert scores.components["b"] == [7.0]


def test_every_component_gets_all_columns() -> None:
    seen: list[dict[str, Any]] = []

    def reward(**arguments: Any) -> list[float]:
        seen.append(arguments)
        return [0.0]

    Composite({"a": reward, "b": reward}, {"a": 1.0, "b": 1.0})(["p"], ["c"], reference=["r"], document=["d"])
    assert seen == [{"prompts": ["p"], "completions": ["c"], "reference": ["r"], "document": ["d"]}] * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0,), ["'bad'", "1 numbers for 2 completions"]),
        ((1.0, 2.0, 3.0), ["'bad'", "3 numbers for 2 completions"]),
        ((1.0, None), ["'bad'", "returned None for the completion 'second'"]),
        ((math.nan, 1.0), ["'bad'", "returned nan for the completion 'first'"]),
        ((1.0, math.inf), ["'bad'", "returned inf for the completion 'second'"]),
    ],
)
def test_an_invalid_reward_is_refused_with_the_name_of_its_component(
    values: tuple[Any, ...], message: list[str]
) -> None:
    for weight in (1.0, 0.0):
        composite = Composite({"good": constant(0.0, 0.0), "bad": constant(*values)}, {"good": 1.0, "bad": weight})
        with pytest.raises(ValueError) as caught:
            composite(["p", "q"], ["first", "second"])
        for part in message:
            assert part in str(caught.value)


def test_components_and_weights_have_the_same_names() -> None:
    for weights in ({}, {"b": 1.0}, {"a": 1.0, "b": 1.0}):
        with pytest.raises(ValueError, match="must have the same names"):
            Composite({"a": constant(1.0)}, weights)


def test_rewards_import_nothing_of_the_package() -> None:
    files = sorted(REWARDS.rglob("*.py"))
    assert len(files) >= 3
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [str(node.module)]
            assert not [name for name in names if name.split(".")[0] in ("gkd_rl", "experiments")], path
