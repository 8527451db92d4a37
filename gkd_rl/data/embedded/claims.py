"""Generator of (article, claim, label) rows from the generated news: what an entailment model is trained on.

A claim is a sentence of the summaries' grammar. Every supported claim stands beside a false one of the same article:
with one or more facts swapped, by preference for a value that another sentence of the article has, or for the usual
value of what the article leaves out; or broken (cut off, words dropped, repeated or misplaced, two sentences joined),
because a policy that is paid by the model writes such texts, they say nothing that an article could support, and a
model that never saw them pays for them.

A label is 1 where `NewsChecker` finds the claim grammatical and all of it supported. Evasive claims keep their label:
an article entails what it says, however little of it is repeated.
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
    read,
    render,
    stated_facts,
    usual,
)

CHECKER = NewsChecker()
LONG = 0.5  # a claim says most of what the article does; the others say one detail or none
BROKEN = 0.3  # of the false claims
EVENT = 0.08  # of the swaps: that three words mean one event is the hardest thing to learn here
MORE_SWAPS = 0.3  # a false claim has another false fact
ELSEWHERE, USUAL_VALUE = 0.5, 0.5  # a false value is one that a distractor has; of the others, the usual one


def _supported(rng: random.Random, facts: Mapping[str, str]) -> dict[str, str]:
    """Slots of a claim that these facts support."""
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


def _elsewhere(article: str) -> dict[str, str]:
    """Values that distractors have, by slot."""
    found: dict[str, str] = {}
    for sentence in article.removesuffix(" .").split(" . "):
        found |= read(DISTRACTORS, sentence + " .") or {}
    return found


def _swapped(
    rng: random.Random, slots: Mapping[str, str], facts: Mapping[str, str], elsewhere: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """The slots with one of them false, and which; of a detail that the article leaves out, any value is false."""
    others = sorted({*slots, *(detail for detail in DETAILS if detail not in facts)} - {"participle"})
    slot = "participle" if rng.random() < EVENT else rng.choice(others)
    right = facts.get(slot)
    if slot == "participle":
        wrong = [word for word, event in EVENT_OF_PARTICIPLE.items() if event != right]
        return {**slots, slot: rng.choice(wrong)}, slot
    values = EVENTS[facts["participle"]][1] if slot == "object" else VALUES[slot]
    guess = usual(slot, {**facts, "event": facts["participle"]}) if slot in DETAILS else None
    if slot in elsewhere and elsewhere[slot] != right and rng.random() < ELSEWHERE:
        return {**slots, slot: elsewhere[slot]}, slot
    if guess not in (None, right) and rng.random() < USUAL_VALUE:
        return {**slots, slot: str(guess)}, slot
    return {**slots, slot: rng.choice([value for value in values if value != right])}, slot


def _cut(rng: random.Random, words: list[str], other: list[str]) -> tuple[list[str], int]:
    kept = words[: rng.randrange(1, len(words))]
    return kept, len(kept) - 1


def _dropped(rng: random.Random, words: list[str], other: list[str]) -> tuple[list[str], int]:
    start = rng.randrange(len(words) - 1)
    longest = rng.choice((3, len(words)))
    return words[:start] + words[start + rng.randint(1, min(longest, len(words) - 1 - start)) :], start


def _repeated(rng: random.Random, words: list[str], other: list[str]) -> tuple[list[str], int]:
    start = rng.randrange(len(words))
    stop = min(len(words), start + rng.randint(1, 4))
    return words[:stop] + words[start:stop] * rng.randint(1, 2) + words[stop:], stop


def _misplaced(rng: random.Random, words: list[str], other: list[str]) -> tuple[list[str], int]:
    at = rng.randrange(len(words))
    return [*words[:at], rng.choice([word for word in words if word != words[at]]), *words[at + 1 :]], at


def _joined(rng: random.Random, words: list[str], other: list[str]) -> tuple[list[str], int]:
    at = rng.randrange(1, len(words))
    return words[:at] + other[rng.randrange(len(other)) :], at


# of a claim's words and those of another claim with the same facts: the broken text, and where it goes wrong
BREAKS: dict[str, Callable[[random.Random, list[str], list[str]], tuple[list[str], int]]] = {
    "cut": _cut,
    "dropped": _dropped,
    "repeated": _repeated,
    "misplaced": _misplaced,
    "joined": _joined,
}


def _broken(rng: random.Random, slots: Mapping[str, str], claim: str) -> tuple[str, str, int]:
    """A text that is no sentence of the grammar, what was done to the claim, and the word that cannot stand there."""
    while True:
        kind, other = rng.choice(sorted(BREAKS)), render(rng.choice(SUMMARIES), slots)
        words, at = BREAKS[kind](rng, claim.split(), other.split())
        text = " ".join(words)
        if read(SUMMARIES, text) is None:
            return text, kind, min(at, len(words) - 1)


def _pair(rng: random.Random, article: str) -> list[dict[str, Any]]:
    """A supported claim of an article, and the same made false."""
    facts = stated_facts(article)
    slots, template = _supported(rng, facts), rng.choice(SUMMARIES)
    claim = render(template, slots)
    right = _row(article, claim, 1, "supported", [0] * len(claim.split()))
    if rng.random() < BROKEN:
        false, kind, fault = _broken(rng, slots, claim)
        return [right, _row(article, false, 0, kind, [int(at == fault) for at in range(len(false.split()))])]
    elsewhere = _elsewhere(article)
    slots, kind = _swapped(rng, slots, facts, elsewhere)
    while rng.random() < MORE_SWAPS:
        slots, kind = _swapped(rng, slots, facts, elsewhere)[0], "several"
    false = render(template, slots)
    wrong = CHECKER(article, false).unsupported
    return [right, _row(article, false, 0, kind, [int(word in wrong) for word in false.split()])]


def _row(article: str, claim: str, label: int, kind: str, unsupported: list[int]) -> dict[str, Any]:
    return {"premise": article, "hypothesis": claim, "label": label, "kind": kind, "unsupported": unsupported}


def claim_rows(split: str, articles: int, pairs: int, seed: int) -> list[dict[str, Any]]:
    """Rows of premise, hypothesis, label, kind and unsupported.

    The label is 1 for a supported claim, 0 for a false one; the kind is supported, the swapped slot, several, or how it
    is broken; unsupported marks the words at fault, of a broken text the first one that cannot stand where it does.

    Args:
        split: whose articles: "train", "validation" or "test".
        articles: how many.
        pairs: of a supported and a false claim, for each article.
        seed: of articles and claims.
    """
    rng = random.Random(zlib.crc32(f"claims {seed} {split}".encode()))
    return [row for item in generate(split, articles, seed) for _ in range(pairs) for row in _pair(rng, item.article)]
