"""Generator of English sentences with their German translations.

The words that matter come from `phrases.py`; the sentences around them are such that any phrase fits, whatever its
gender or number, so that every pair is correct. German puts times and verbs elsewhere than English does.

All German sentences that say the same in other words of the CLDR (a date in digits, a number in digits) are known, so
that a translation can be checked exactly.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from gkd_rl.embedded.phrases import DRAW
from gkd_rl.embedded.splits import distinct

# A digit tells two slots of one kind apart.
FRAMES = (
    ("{country} pays {country2} {money} on {date}.", "{country} zahlt {country2} am {date} {money}."),
    (
        "In {country}, {language} is spoken by {number} people.",
        "In {country} wird {language} von {number} Menschen gesprochen.",
    ),
    (
        "The train from {country} to {country2} leaves on {weekday} at {clock}.",
        "Der Zug von {country} nach {country2} fährt am {weekday} um {clock} Uhr ab.",
    ),
    ("The road through {country} is {length} long.", "Die Straße durch {country} ist {length} lang."),
    (
        "The course in {language} costs {money} and lasts {duration}.",
        "Der Kurs in {language} kostet {money} und dauert {duration}.",
    ),
    ("On {date}, {goods} of rice arrived from {country}.", "Am {date} kamen {goods} Reis aus {country} an."),
    ("At {clock}, it was {heat} in {country}.", "Um {clock} Uhr waren es in {country} {heat}."),
    (
        "The guests from {country} stay for {duration} and speak {language}.",
        "Die Gäste aus {country} bleiben {duration} und sprechen {language}.",
    ),
)
FIGURES = {"money", "date", "weekday", "clock"}  # written in digits
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Translation:
    """A sentence, its reference, and all translations that are right, the reference among them."""

    english: str
    german: str
    accepted: tuple[str, ...]


def _draw(rng: random.Random, frames: tuple[tuple[str, str], ...]) -> tuple[str, Callable[[], Translation]]:
    """An English sentence, and what translates it."""
    english, german = rng.choice(frames)
    phrases = {slot: DRAW[slot.rstrip("2")](rng) for slot in SLOT.findall(english)}
    sentence = english.format(**{slot: phrase.english for slot, phrase in phrases.items()})

    def write() -> Translation:
        choices = itertools.product(*(phrase.german for phrase in phrases.values()))
        accepted = tuple(german.format(**dict(zip(phrases, words, strict=True))) for words in choices)
        return Translation(sentence, accepted[0], accepted)

    return sentence, write


def generate(split: str, size: int, seed: int, *, simple: bool = False) -> list[Translation]:
    """`size` distinct sentences of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of sentences.
        seed: of the whole data set.
        simple: only sentences in which every number is in words.
    """
    frames = tuple(frame for frame in FRAMES if not simple or FIGURES.isdisjoint(SLOT.findall(frame[0])))
    return distinct(lambda rng: _draw(rng, frames), lambda translation: translation.english, split, size, seed)
