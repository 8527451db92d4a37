"""English phrases and the German ones that mean the same, from libraries: no word of them is translated by hand.

Numbers in words are num2words'; dates, times, countries, languages, currencies and units are Babel's, that is, the
Unicode CLDR's. A phrase is drawn in English together with every German way of saying it that counts as right; the first
of them is the reference.

Generator of English sentences with their German translations.

The words that matter come from `phrases.py`; the sentences around them are such that any phrase fits, whatever its
gender or number, so that every pair is correct. German puts times and verbs elsewhere than English does.

All German sentences that say the same in other words of the CLDR (a date in digits, a number in digits) are known, so
that a translation can be checked exactly.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from babel import Locale
from babel.dates import format_date, format_time
from babel.numbers import format_currency
from babel.units import format_unit
from num2words import num2words

from gkd_rl.data.embedded.news import words_of
from gkd_rl.data.embedded.splits import distinct

EN, DE = Locale("en", "US"), Locale("de", "DE")
LARGEST = 999
# Those that German names without an article, so that any of them fits into a sentence as it is.
COUNTRIES = words_of(
    "FR DE IT ES PT AT BE DK SE NO FI PL GR HU RO BG HR IE IS EE LV LT RU JP CN IN BR MX CA AU EG KE GH MA PE CL"
)
LANGUAGES = words_of("fr de it es pt da sv fi pl el hu ro bg hr ga is et lv lt ru ja zh hi ar tr nl cs uk sw")
CURRENCIES = words_of("EUR USD GBP CHF SEK DKK NOK PLN CZK HUF JPY CAD AUD INR")
LENGTHS = ("length-kilometer", "length-meter")
TIMES = ("duration-hour", "duration-day", "duration-minute", "duration-week", "duration-year")
GOODS = ("mass-kilogram", "mass-gram", "volume-liter", "mass-tonne")
HEAT = ("temperature-celsius",)


@dataclass(frozen=True)
class Phrase:
    """English, and all that is right in German, the reference first."""

    english: str
    german: tuple[str, ...]


def _number(rng: random.Random, largest: int) -> int:
    """Mostly small; never one, nor one that ends in one, which would agree with what it counts."""
    number = rng.randint(2, min(largest, rng.choice((20, 99, LARGEST))))
    return number + 1 if number % 100 == 1 else number


@functools.cache
def number_words(number: int) -> Phrase:
    """A number below 1,000 in words; in German also in digits, and hundreds without their "ein"."""
    german = num2words(number, lang="de")
    short = german.removeprefix("ein") if 100 <= number < 200 else german
    return Phrase(num2words(number, lang="en"), tuple(dict.fromkeys((german, short, str(number)))))


@functools.cache
def _plural(unit: str, locale: Locale) -> str:
    """The plural of a unit, as it stands after a number."""
    return format_unit(2, unit, locale=locale).removeprefix("2").strip()


def _quantity(number: int, unit: str) -> Phrase:
    words = number_words(number)
    german = tuple(f"{one} {_plural(unit, DE)}" for one in words.german)
    return Phrase(f"{words.english} {_plural(unit, EN)}", german)


def _money(amount: float, currency: str) -> Phrase:
    english, german = (format_currency(amount, currency, locale=locale, format_type="name") for locale in (EN, DE))
    return Phrase(english, (german,))


def _date(day: datetime.date, with_weekday: bool) -> Phrase:
    kind = "full" if with_weekday else "long"
    german = [format_date(day, kind, locale=DE)]
    if not with_weekday:
        german += [format_date(day, "medium", locale=DE)]  # 03.03.2024
    return Phrase(format_date(day, kind, locale=EN), tuple(german))


def _clock(time: datetime.time) -> Phrase:
    english = format_time(time, "short", locale=EN).replace("\u202f", " ")
    return Phrase(english, (format_time(time, "short", locale=DE),))


def _named(table: str, codes: Sequence[str]) -> Callable[[random.Random], Phrase]:
    """One of CLDR's names, e.g. of its territories."""
    names = [Phrase(getattr(EN, table)[code], (getattr(DE, table)[code],)) for code in codes]
    return lambda rng: rng.choice(names)


def _day(rng: random.Random) -> datetime.date:
    return datetime.date(2000, 1, 1) + datetime.timedelta(days=rng.randrange(11_000))


def _measured(units: tuple[str, ...], largest: int) -> Callable[[random.Random], Phrase]:
    return lambda rng: _quantity(_number(rng, largest), rng.choice(units))


DRAW: dict[str, Callable[[random.Random], Phrase]] = {
    "country": _named("territories", COUNTRIES),
    "language": _named("languages", LANGUAGES),
    "number": lambda rng: number_words(_number(rng, LARGEST)),
    "length": _measured(LENGTHS, LARGEST),
    "duration": _measured(TIMES, 99),
    "goods": _measured(GOODS, LARGEST),
    "heat": _measured(HEAT, 45),
    "money": lambda rng: _money(rng.randint(200, 99_900) / 100, rng.choice(CURRENCIES)),
    "date": lambda rng: _date(_day(rng), False),
    "weekday": lambda rng: _date(_day(rng), True),
    "clock": lambda rng: _clock(datetime.time(rng.randrange(24), 5 * rng.randrange(12))),
}


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
