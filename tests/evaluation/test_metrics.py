"""Metrics against hand-computed values and `rouge_score`; intervals against their coverage; tables and cards."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rouge_score.rouge_scorer import RougeScorer

from gkd_rl.evaluation import metrics
from gkd_rl.evaluation.metrics import Rouge, by_position, rouge_scores, self_bleu
from gkd_rl.evaluation.uncertainty import bootstrap_interval, estimate, paired_difference
from gkd_rl.generation.text_statistics import repetition_rate
from gkd_rl.outputs.tables import Estimate, markdown_table, model_card, results_table

WORDS = ["the", "a", "council", "running", "runs", "ran", "School's", "£3.5m", "Zürich", "flood-hit", "\n", "won't"]


def _texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, 15))) for _ in range(count)]


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_equals_rouge_score(use_stemmer: bool) -> None:
    predictions, references = _texts(50, seed=1), _texts(50, seed=2)
    ours = rouge_scores(predictions, references, use_stemmer=use_stemmer)
    scorer = RougeScorer(list(ours), use_stemmer=use_stemmer)
    for name, values in ours.items():
        expected = [
            100 * scorer.score(reference, text)[name].fmeasure
            for text, reference in zip(predictions, references, strict=True)
        ]
        assert values.tolist() == expected
    assert set(ours) == {"rouge1", "rouge2", "rougeL"}


def test_rouge_by_hand() -> None:
    scores = rouge_scores(["the cat sat", "dog", ""], ["the cat ran", "dog", "dog"])
    np.testing.assert_allclose(scores["rouge1"], [200 / 3, 100, 0])
    np.testing.assert_allclose(scores["rouge2"], [50, 0, 0])


def test_rouge_takes_what_a_model_may_write() -> None:
    scores = rouge_scores(["a\x00b \ud800c 😀", "x"], ["a b c", "x"])
    assert scores["rouge1"].tolist() == [100, 100]


def test_rouge_metric_means_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)
    columns = {"predictions": ["a b", "c"], "references": ["a b", "d"]}
    assert Rouge().compute(**columns) == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}
    assert Rouge().compute(**columns, use_aggregator=False) == {
        "rouge1": [1.0, 0.0],
        "rouge2": [1.0, 0.0],
        "rougeL": [1.0, 0.0],
    }
    with pytest.raises(ValueError, match="use_stemming"):
        Rouge().compute(**columns, use_stemming=True)
    assert list(tmp_path.iterdir()) == []


def test_rouge_leaves_the_random_numbers_alone() -> None:
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    rouge_scores(["a"], ["b"])
    assert np.random.rand() == expected


@pytest.mark.parametrize(
    ("predictions", "references"), [([], []), (["a"], ["a", "b"]), ([None], ["a"]), (["a"], [float("nan")])]
)
def test_rouge_refuses(predictions: list, references: list) -> None:
    with pytest.raises(ValueError, match="rouge"):
        rouge_scores(predictions, references)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("", 3, 0.0),
        ("a b", 3, 0.0),
        ("a b c", 3, 0.0),
        ("a b c a b c", 3, 0.25),
        ("a a a a a", 3, 2 / 3),
        ("a a b", 1, 1 / 3),
    ],
)
def test_repetition_rate(text: str, n: int, expected: float) -> None:
    assert repetition_rate(text, n) == pytest.approx(expected)


def test_repetition_rate_refuses() -> None:
    with pytest.raises(ValueError, match="n=0: the n of an n-gram is an integer >= 1"):
        repetition_rate("a", 0)


@pytest.mark.parametrize("text", ["one two three four five", "one two", "one", ""])
def test_self_bleu_of_identical_samples_is_100(text: str) -> None:
    assert self_bleu([[text] * 4]) == pytest.approx(100.0)


def test_self_bleu_of_disjoint_samples_is_0() -> None:
    assert self_bleu([["a b c d", "e f g h", "i j k l"], ["", "a b c d"]]) == 0.0


def test_self_bleu_by_hand() -> None:
    # Precisions 4/5, 3/4, 2/3, 1/2, equal lengths, in both directions.
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu([["a b c d x", "a b c d y"]]) == pytest.approx(expected)
    # Smoothing: 2/4, 1/3, then 0.1/2 and 0.1/1 for the orders without a match.
    smoothed = 100 * (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25
    assert self_bleu([["a b c d", "a b x y"]]) == pytest.approx(smoothed)
    assert self_bleu([["a b c d x", "a b c d y"], ["a b c d", "a b x y"]]) == pytest.approx((expected + smoothed) / 2)


def test_self_bleu_scores_against_the_best_reference_of_each_ngram() -> None:
    # The third sample's halves each stand in one of the others: every 1-gram matches.
    three = self_bleu([["a b c d", "e f g h", "a b g h"]])
    assert self_bleu([["a b c d", "e f g h"]]) == 0 < three < 100


@pytest.mark.parametrize("groups", [[], [["a"]], ["ab"], [["a", "b"], []], [["a", None]]])
def test_self_bleu_refuses(groups: list) -> None:
    with pytest.raises(ValueError, match="self_bleu"):
        self_bleu(groups)


def test_self_bleu_is_fast() -> None:
    generator = random.Random(0)
    groups = [[" ".join(generator.choices("abcdefghijklmnop", k=32)) for _ in range(4)] for _ in range(100)]
    start = time.process_time()
    assert 0 < self_bleu(groups) < 100
    assert time.process_time() - start < 2


def test_bootstrap_covers_the_mean() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.normal(5, 2, size=60), samples=400, seed=trial)
        hits += low <= 5 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_bootstrap_matches_the_normal_interval_and_its_level() -> None:
    values = np.random.default_rng(1).normal(0, 1, size=5000)
    low, high = bootstrap_interval(values, samples=1000, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 5000**0.5, rel=0.1)
    assert (low, high) == bootstrap_interval(values, samples=1000, seed=0)
    narrow = bootstrap_interval(values, samples=1000, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_refuses_and_degenerates_honestly() -> None:
    assert np.isnan(bootstrap_interval([3.0], samples=10, seed=0)).all()
    assert bootstrap_interval([3.0, 3.0], samples=10, seed=0) == (3.0, 3.0)
    for values in ([], [1.0, float("nan")], [1.0, float("inf")], [[1.0]]):
        with pytest.raises(ValueError, match="bootstrap_interval"):
            bootstrap_interval(values, samples=10, seed=0)  # pyright: ignore[reportArgumentType]
    for wrong in ({"samples": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="bootstrap_interval"):
            bootstrap_interval([1.0, 2.0], **{"samples": 10, "seed": 0, **wrong})  # pyright: ignore[reportArgumentType]


def test_paired_difference_sees_what_overlapping_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.normal(50, 20, size=300)
    better, worse = hardness + 1 + generator.normal(0, 1, 300), hardness
    difference = paired_difference(better, worse, samples=500, seed=0)
    assert 0.8 < difference.low < difference.mean < difference.high < 1.2
    assert difference.n == 300
    assert estimate(worse, 500, 0).high > estimate(better, 500, 0).low
    with pytest.raises(ValueError, match="paired_difference"):
        paired_difference(better, worse[1:], samples=10, seed=0)


def test_estimate() -> None:
    result = estimate([1.0, 2.0, 3.0], samples=100, seed=0)
    assert result.mean == 2.0 and result.n == 3 and result.low < 2 < result.high
    assert result.as_dict() == {"mean": 2.0, "low": result.low, "high": result.high, "n": 3}
    assert metrics.Estimate is Estimate


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Estimate(45.84, 45.0, 46.58, 500), "45.8 [45.0, 46.6]"),
        (Estimate(-0.3512, -0.37, -0.334, 9), "-0.35 [-0.37, -0.33]"),
        (Estimate(0.0123, 0.01, 0.0149, 9), "0.012 [0.010, 0.015]"),
        (Estimate(0.0, 0.0, 0.0, 9), "0.0 [0.0, 0.0]"),
        (Estimate(2.0, float("nan"), float("nan"), 1), "2.0 (n=1)"),
    ],
)
def test_estimate_as_text(value: Estimate, expected: str) -> None:
    assert str(value) == expected


ROWS = {
    "teacher": {"rouge2": Estimate(12.34, 11.0, 13.0, 500)},
    "student | before\n": {"rouge2": Estimate(5.0, 4.0, 6.0, 500), "reward": Estimate(0.5, 0.4, 0.6, 500)},
}


def test_results_table() -> None:
    text = results_table(ROWS, [("rouge2", "ROUGE-2"), ("reward", "reward [0, 1]")], "Results", "test split")
    lines = text.splitlines()
    assert lines[0] == "Results" and lines[-1] == "test split"
    assert text.isascii() and "\x1b" not in text and all(len(line) <= 120 and line == line.rstrip() for line in lines)
    assert any("12.3 [11.0, 13.0]" in line and "- |" in line for line in lines)
    assert "reward [0, 1]" in text and "student | before" in text


@pytest.mark.parametrize("count", [5, 6, 12])
def test_a_wide_table_keeps_its_numbers_whole(count: int) -> None:
    rows = {"student after": {str(i): Estimate(45.0, 44.0, 46.0, 9) for i in range(count)}}
    text = results_table(rows, [(str(i), f"metric {i}") for i in range(count)], "T", "")
    assert text.count("[44.0, 46.0]") == count and "…" not in text
    assert max(map(len, text.splitlines())) <= 120 or count > 6


def test_markdown_table() -> None:
    text = markdown_table(ROWS, [("rouge2", "ROUGE-2"), ("reward", "a|b")], "Results", "test split")
    lines = text.splitlines()
    assert lines[0] == "**Results**" and lines[-1] == "test split"
    assert lines[2:6] == [
        r"|   | ROUGE-2 | a\|b |",
        "| --- | ---: | ---: |",
        "| teacher | 12.3 [11.0, 13.0] | - |",
        r"| student \| before | 5.0 [4.0, 6.0] | 0.50 [0.40, 0.60] |",
    ]


@pytest.mark.parametrize("table", [results_table, markdown_table])
def test_tables_refuse_nothing_to_show(table) -> None:
    for rows, columns in (({}, [("a", "a")]), (ROWS, [])):
        with pytest.raises(ValueError, match="results table"):
            table(rows, columns, "", "")


def test_model_card() -> None:
    table = markdown_table(ROWS, [("rouge2", "ROUGE-2")], "Results", "")
    settings = {"alpha": "0.5", "divergence": "jsd | beta 0.9\nraw", "teacher": "<b>{t5}</b>"}
    card = model_card("my_student", "RL + GKD", settings, table, "Embedded data, not XSum.", "AutoModelForSeq2SeqLM")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["gkd", "reinforcement-learning", "knowledge-distillation"],
    }
    assert r"# my\_student" in body and "maximise (1 - alpha) E[r] - alpha E[D(p_T || p_S)]" in body
    assert r"| divergence | jsd \| beta 0.9 raw |" in body and r"\<b\>\{t5\}\</b\>" in body
    assert table.strip() in body and "Embedded data, not XSum." in body
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "AutoModelForSeq2SeqLM.from_pretrained" in code
    with pytest.raises(ValueError, match="architecture_class=T5"):
        model_card("n", "m", {}, table, "", "T5")


def test_means_by_position_go_as_far_as_a_tenth_of_the_rows_do() -> None:
    rows = [np.array([float(i), 1.0]) for i in range(9)]
    rows += [np.array([9.0, 1.0, 5.0]), np.array([10.0, 12.0, 7.0, 100.0])]
    assert by_position(rows).tolist() == [5.0, 2.0, 6.0]
    assert by_position(rows[:1]).tolist() == [0.0, 1.0]
