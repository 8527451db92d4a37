"""Generator of short news articles with one-sentence summaries, in the spirit of XSum.

As in XSum, references state facts that the article does not: each detail is left out of the article with probability
OMIT, and named by the reference with probability NAME whether or not the article has it. Omitted details are partly
guessable (a surname has a usual first name, an object a usual place, ...), so a model that imitates references learns
to hallucinate and is paid in ROUGE for it. Distractor sentences hold other values of the same kinds.

Train, validation and test are disjoint by construction: who did what to which object (surname, event, object) decides
the split by its CRC-32. All draws come from Python's Mersenne Twister, so rows are the same on every machine.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from gkd_rl.embedded.grammar import DISTRACTORS, LEADS, STATEMENTS, SUMMARIES, render
from gkd_rl.embedded.lexicon import AMOUNTS, DAYS, DETAILS, EVENTS, FIRST_NAMES, OUTCOMES, PLACES, ROLES, SURNAMES
from gkd_rl.embedded.splits import distinct

OMIT = 0.3  # a detail is missing from the article
NAME = 0.8  # a detail is named by the reference
ROLE = 0.5  # the role is named by the reference
USUAL = {"first": 0.7, "place": 0.4, "outcome": 0.5, "amount": 0.3, "day": 0.3}  # the guessable value is the true one
HOUSE_STYLE = 0.7  # the reference is written in the usual style of its event
DISTRACTOR_SENTENCES = 3


@dataclass(frozen=True)
class NewsItem:
    """An article and its reference, as text."""

    article: str
    summary: str


def usual(detail: str, facts: dict[str, str]) -> str:
    """The value of `detail` that goes most often with the known facts."""
    key, values = {
        "first": (facts["surname"], FIRST_NAMES),
        "place": (facts["object"], PLACES),
        "outcome": (facts["event"], OUTCOMES),
        "amount": (facts["object"], AMOUNTS),
        "day": (facts["event"], DAYS),
    }[detail]
    return values[zlib.crc32(f"{detail} {key}".encode()) % len(values)]


_POOLS = {"first": FIRST_NAMES, "place": PLACES, "day": DAYS, "amount": AMOUNTS, "outcome": OUTCOMES}


def _facts(rng: random.Random) -> dict[str, str]:
    """One event with all its details."""
    event = rng.choice(list(EVENTS))
    participles, objects = EVENTS[event]
    facts = {
        "surname": rng.choice(SURNAMES),
        "event": event,
        "participle": rng.choice(participles),
        "object": rng.choice(objects),
        "role": rng.choice(ROLES),
    }
    for detail in DETAILS:
        facts[detail] = usual(detail, facts) if rng.random() < USUAL[detail] else rng.choice(_POOLS[detail])
    return facts


def _distractor(rng: random.Random, template: str, facts: dict[str, str]) -> str:
    """A sentence about somebody or something else."""
    other = _facts(rng)
    while any(other[slot] == facts[slot] for slot in ("surname", "object", "place", "day", "amount", "outcome")):
        other = _facts(rng)
    return render(template, other)


def _item(rng: random.Random, facts: dict[str, str], distractors: int) -> NewsItem:
    """Write the article and the reference of one event."""
    stated = [detail for detail in DETAILS if rng.random() >= OMIT]
    body = [render(rng.choice(STATEMENTS[detail]), facts) for detail in stated]
    body += [_distractor(rng, template, facts) for template in rng.sample(DISTRACTORS, distractors)]
    rng.shuffle(body)
    article = " ".join([render(rng.choice(LEADS), facts), *body])

    named = {slot: facts[slot] for slot in ("surname", "object")}
    named["participle"] = rng.choice(EVENTS[facts["event"]][0])
    named |= {detail: facts[detail] for detail in DETAILS if rng.random() < NAME}
    if rng.random() < ROLE:
        named["role"] = facts["role"]
    house = list(EVENTS).index(facts["event"]) % len(SUMMARIES)
    style = house if rng.random() < HOUSE_STYLE else rng.randrange(len(SUMMARIES))
    return NewsItem(article, render(SUMMARIES[style], named))


def generate(split: str, size: int, seed: int, distractors: int = DISTRACTOR_SENTENCES) -> list[NewsItem]:
    """`size` distinct items of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of items.
        seed: of the whole data set; another seed gives other articles about the same world.
        distractors: sentences of an article that are about others, 0 to 6.
    """

    def draw(rng: random.Random) -> tuple[str, Callable[[], NewsItem]]:
        facts = _facts(rng)
        return f"{facts['surname']} {facts['event']} {facts['object']}", lambda: _item(rng, facts, distractors)

    return distinct(draw, lambda item: item.article, split, size, seed)
