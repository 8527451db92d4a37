"""BLEU and chrF of a corpus are sacrebleu's, with its signatures, and their intervals are of the corpus score."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from gkd_rl.data.embedded import german
from gkd_rl.evaluation.metrics import corpus_counts


def corpus(size: int, noise: float, seed: int) -> tuple[list[str], list[str]]:
    """References and translations of which some words are wrong."""
    rng = random.Random(seed)
    references = [row.german for row in german.generate("train", size, 0)]
    words = [word for text in references for word in text.split()]
    spoilt = [" ".join(w if rng.random() > noise else rng.choice(words) for w in text.split()) for text in references]
    return references, spoilt


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.7, 1.0])
def test_the_scores_are_sacrebleus(noise: float) -> None:
    references, texts = corpus(200, noise, 1)
    texts[3] = ""
    found = corpus_counts(texts, references)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = metric.corpus_score(texts, [references])
        assert found[name].estimate(100, 0).mean == pytest.approx(expected.score, abs=1e-9)
        assert found[name].signature == str(metric.get_signature())
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2" in found["bleu"].signature


def test_a_corpus_score_is_no_mean_of_sentences() -> None:
    references, texts = corpus(100, 0.4, 2)
    sentences = np.mean(
        [BLEU(effective_order=True).sentence_score(t, [r]).score for t, r in zip(texts, references, strict=True)]
    )
    assert abs(corpus_counts(texts, references)["bleu"].estimate(100, 0).mean - sentences) > 1


def test_intervals_are_those_of_a_bootstrap_over_sentences() -> None:
    """Against sacrebleu's own resampling, which draws other numbers."""
    references, texts = corpus(300, 0.4, 3)
    found = corpus_counts(texts, references)["bleu"].estimate(1000, 0)
    theirs = BLEU().corpus_score(texts, [references], n_bootstrap=1000)
    assert found.n == 300 and found.low < found.mean < found.high
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.15)  # pyright: ignore


def test_differences_are_paired() -> None:
    references, texts = corpus(300, 0.4, 4)
    better = [r if i % 10 == 0 else t for i, (r, t) in enumerate(zip(references, texts, strict=True))]
    one, other = corpus_counts(better, references), corpus_counts(texts, references)
    for name in ("bleu", "chrf"):
        change = one[name].difference(other[name], 500, 0)
        alone = one[name].estimate(500, 0), other[name].estimate(500, 0)
        assert change.mean == pytest.approx(alone[0].mean - alone[1].mean)
        assert 0 < change.low < change.mean < change.high
        assert change.high - change.low < alone[0].high - alone[0].low, "what both share is not in it"
        same = one[name].difference(one[name], 100, 0)
        assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_one_sentence_has_no_interval() -> None:
    assert str(corpus_counts(["a b c d e"], ["a b c d e"])["bleu"].estimate(100, 0)) == "100.0 (n=1)"
