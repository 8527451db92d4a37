"""Generator of (article, claim, label) rows from the generated news, to train an entailment model.

A claim is a sentence of the summaries' grammar. Each supported claim comes with a false one of the same article, made
from it in one of two ways:

- One or more facts are swapped, preferably for a value that a distractor of the article has, or for the usual value of
  a detail that the article does not state.
- The sentence is broken: truncated, words dropped, repeated or misplaced, two sentences joined. A policy that is
  rewarded by the entailment model generates such texts, and a model that is not trained on them scores them high.

The label is 1 if `NewsChecker` finds the claim grammatical and completely supported. Evasive claims keep that label: an
article entails each of its statements, however few of them a claim repeats.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from gkd_rl.data.embedded.news import (
    DETAILS,
    DISTRACTORS,
    EVENT_OF_PARTICIPLE,
    EVENTS,
    SUMMARIES,
    VALUES,
    NewsChecker,
    generate,
    parse,
    render,
    stated_facts,
    usual_value,
)

CHECKER = NewsChecker()
# Probabilities
LONG = 0.5  # a claim has most of the article's details; the others have one detail or none
BROKEN = 0.3  # a false claim is broken, not swapped
EVENT = 0.08  # a swap is of the event: that three participles mean one event is the hardest to learn
MORE_SWAPS = 0.3  # a false claim has a further false fact
OF_DISTRACTOR, USUAL_VALUE = 0.5, 0.5  # a false value is a distractor's; if it is not, it is the usual one
Words = list[str]


def _supported(rng: random.Random, facts: Mapping[str, str]) -> dict[str, str]:
    """The slots of a claim that these facts support."""
    stated = [detail for detail in DETAILS if detail in facts]
    if rng.random() < LONG:
        named = [detail for detail in stated if rng.random() < 0.85]
    else:
        named = rng.sample(stated, min(len(stated), rng.randrange(2)))
    slots = {slot: facts[slot] for slot in ("surname", "object", *named)}
    slots["participle"] = rng.choice(EVENTS[facts["participle"]][0])
    if rng.random() < 0.4:
        slots["role"] = facts["role"]
    return slots


def _distractor_values(article: str) -> dict[str, str]:
    """Values of the article's distractors, by slot."""
    found: dict[str, str] = {}
    for sentence in article.removesuffix(" .").split(" . "):
        found |= parse(DISTRACTORS, sentence + " .") or {}
    return found


def _swapped(
    rng: random.Random, slots: Mapping[str, str], facts: Mapping[str, str], distracting: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """The slots with one false value, and its slot; any value of a detail that the article does not state is false."""
    others = sorted({*slots, *(detail for detail in DETAILS if detail not in facts)} - {"participle"})
    slot = "participle" if rng.random() < EVENT else rng.choice(others)
    right = facts.get(slot)
    if slot == "participle":
        wrong = [word for word, event in EVENT_OF_PARTICIPLE.items() if event != right]
        return {**slots, slot: rng.choice(wrong)}, slot
    values = EVENTS[facts["participle"]][1] if slot == "object" else VALUES[slot]
    guess = usual_value(slot, {**facts, "event": facts["participle"]}) if slot in DETAILS else None
    if slot in distracting and distracting[slot] != right and rng.random() < OF_DISTRACTOR:
        return {**slots, slot: distracting[slot]}, slot
    if guess not in (None, right) and rng.random() < USUAL_VALUE:
        return {**slots, slot: str(guess)}, slot
    return {**slots, slot: rng.choice([value for value in values if value != right])}, slot


def _truncated(rng: random.Random, words: Words, other: Words) -> tuple[Words, int]:
    kept = words[: rng.randrange(1, len(words))]
    return kept, len(kept) - 1


def _dropped(rng: random.Random, words: Words, other: Words) -> tuple[Words, int]:
    start = rng.randrange(len(words) - 1)
    longest = rng.choice((3, len(words)))
    return words[:start] + words[start + rng.randint(1, min(longest, len(words) - 1 - start)) :], start


def _repeated(rng: random.Random, words: Words, other: Words) -> tuple[Words, int]:
    start = rng.randrange(len(words))
    stop = min(len(words), start + rng.randint(1, 4))
    return words[:stop] + words[start:stop] * rng.randint(1, 2) + words[stop:], stop


def _misplaced(rng: random.Random, words: Words, other: Words) -> tuple[Words, int]:
    at = rng.randrange(len(words))
    return [*words[:at], rng.choice([word for word in words if word != words[at]]), *words[at + 1 :]], at


def _joined(rng: random.Random, words: Words, other: Words) -> tuple[Words, int]:
    at = rng.randrange(1, len(words))
    return words[:at] + other[rng.randrange(len(other)) :], at


# Kind -> function of a claim's words and those of another claim with the same facts, which returns the words of the
# broken text and the index of the first wrong one.
BREAKS: dict[str, Callable[[random.Random, Words, Words], tuple[Words, int]]] = {
    "cut": _truncated,
    "dropped": _dropped,
    "repeated": _repeated,
    "misplaced": _misplaced,
    "joined": _joined,
}


def _broken(rng: random.Random, slots: Mapping[str, str], claim: str) -> tuple[str, str, int]:
    """A text that is not a sentence of the grammar, how it was made from the claim, and the index of its wrong word."""
    while True:
        kind, other = rng.choice(sorted(BREAKS)), render(rng.choice(SUMMARIES), slots)
        words, at = BREAKS[kind](rng, claim.split(), other.split())
        text = " ".join(words)
        if parse(SUMMARIES, text) is None:
            return text, kind, min(at, len(words) - 1)


def _pair(rng: random.Random, article: str) -> list[dict[str, Any]]:
    """A supported claim of an article, and a false one made from it."""
    facts = stated_facts(article)
    slots, template = _supported(rng, facts), rng.choice(SUMMARIES)
    claim = render(template, slots)
    right = _row(article, claim, 1, "supported", [0] * len(claim.split()))
    if rng.random() < BROKEN:
        false, kind, fault = _broken(rng, slots, claim)
        return [right, _row(article, false, 0, kind, [int(at == fault) for at in range(len(false.split()))])]
    distracting = _distractor_values(article)
    slots, kind = _swapped(rng, slots, facts, distracting)
    while rng.random() < MORE_SWAPS:
        slots, kind = _swapped(rng, slots, facts, distracting)[0], "several"
    false = render(template, slots)
    wrong = CHECKER(article, false).unsupported
    return [right, _row(article, false, 0, kind, [int(word in wrong) for word in false.split()])]


def _row(article: str, claim: str, label: int, kind: str, unsupported: list[int]) -> dict[str, Any]:
    return {"premise": article, "hypothesis": claim, "label": label, "kind": kind, "unsupported": unsupported}


def claim_rows(split: str, articles: int, pairs: int, seed: int) -> list[dict[str, Any]]:
    """Rows as dicts of premise, hypothesis, label, kind and unsupported.

    - label: 1 for a supported claim, 0 for a false one.
    - kind: "supported", the swapped slot, "several", or a key of `BREAKS`.
    - unsupported: 0 or 1 for each word of the hypothesis; 1 marks false words, or the first wrong word of a broken
      text.

    Args:
        split: split of the articles: "train", "validation" or "test".
        articles: number of articles.
        pairs: pairs of a supported and a false claim for each article.
        seed: of articles and claims.
    """
    rng = random.Random(zlib.crc32(f"claims {seed} {split}".encode()))
    return [row for item in generate(split, articles, seed) for _ in range(pairs) for row in _pair(rng, item.article)]
