"""Rewards from overlap with the reference, and penalties on the form of a text."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from gkd_rl.evaluation.metrics import rouge_scores
from reward_models.text.form import LengthPenalty, RepetitionPenalty
from reward_models.text.overlap import Overlap, Rouge

TRUTH = "Das Haus steht am 3. Mai leer ."
TEXTS = [TRUTH, "Das Haus steht leer .", "Ein Hund bellt", ""]


@pytest.mark.parametrize("kind", ["bleu", "chrf", "chrf++"])
def test_overlap_is_sacrebleus(kind: Any) -> None:
    found = Overlap(kind)(prompts=["unused"] * 4, completions=TEXTS, reference=[TRUTH] * 4, document=["unused"])
    for text, score in zip(TEXTS, found, strict=True):
        theirs = (
            sacrebleu.sentence_bleu(text, [TRUTH], use_effective_order=True)
            if kind == "bleu"
            else sacrebleu.sentence_chrf(text, [TRUTH], word_order=2 if kind == "chrf++" else 0)
        )
        assert score == pytest.approx(theirs.score / 100)
    assert found[0] == pytest.approx(1.0) and found[0] > found[1] > found[2] >= found[3] == 0.0


def texts_of(seed: int, count: int = 60) -> list[str]:
    """Texts as models and data sets have them: several sentences, punctuation, capitals, umlauts, numbers, nothing."""
    generator = random.Random(seed)
    words = [
        "the",
        "The",
        "cats",
        "cat",
        "sat",
        "sitting,",
        "on",
        "mat",
        ".",
        "Haus",
        "Häuser",
        "größer",
        "3.5%",
        "$1,200",
        "U.S.",
        "don't",
        "-",
        '"quoted"',
        "(in)",
        "\n",
        "!",
        "日本",
        "😀",
    ]
    return [" ".join(generator.choices(words, k=generator.randrange(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_the_rouge_reward_is_rouge_scores_and_the_metrics(kind: Any) -> None:
    texts, truths = texts_of(1), texts_of(2)
    found = Rouge(kind)(texts, texts, reference=truths)
    scorer = RougeScorer([kind], use_stemmer=True)
    assert found == [scorer.score(truth, text)[kind].fmeasure for text, truth in zip(texts, truths, strict=True)]
    assert 0 < sum(found) / len(found) < 1
    if kind != "rougeLsum":
        assert [100 * one for one in found] == pytest.approx(
            rouge_scores(texts, truths, use_stemmer=True)[kind].tolist()
        )


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "none"])
def test_the_bleu_reward_is_sacrebleus(tokenize: str) -> None:
    texts, truths = texts_of(3), texts_of(4)
    found = Overlap("bleu", tokenize)(texts, texts, reference=truths)
    theirs = [
        sacrebleu.sentence_bleu(text, [truth], tokenize=tokenize, use_effective_order=True).score / 100
        for text, truth in zip(texts, truths, strict=True)
    ]
    assert found == pytest.approx(theirs) and max(found) > 0


def test_the_tokenizer_is_a_setting() -> None:
    plain, split = (Overlap("bleu", tokenize)(["x"], ["haus."], ["haus ."])[0] for tokenize in ("none", "13a"))
    assert plain < split == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("words", "penalty"), [(0, -1.0), (1, -0.5), (2, 0.0), (4, 0.0), (5, -0.25), (8, -1.0), (99, -1.0)]
)
def test_length(words: int, penalty: float) -> None:
    assert LengthPenalty(longest=4, shortest=2)(["x"], ["w " * words]) == [pytest.approx(penalty)]


def test_repetition() -> None:
    texts = ["a b c d", "a b a b a b", "a", ""]
    assert RepetitionPenalty(2)(["x"] * 4, texts) == pytest.approx([0.0, 2 / 5 - 1, 0.0, 0.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Overlap("ter"), "takes one of bleu"),  # pyright: ignore[reportArgumentType]
        (lambda: Overlap("bleu", "words"), "tokenize=words"),
        (lambda: LengthPenalty(0), "longest >= 1"),
        (lambda: LengthPenalty(3, 4), "shortest <= longest"),
        (lambda: RepetitionPenalty(0), "n=0"),
    ],
)
def test_refusals(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
