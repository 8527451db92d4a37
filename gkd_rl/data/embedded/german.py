"""Generator of English sentences with their German translations, all of which are known.

Phrases come from libraries, so that none is translated by hand: numbers in words from num2words; dates, times,
countries, languages, currencies and units from Babel, that is, the Unicode CLDR. A phrase has its English form and
every accepted German form, the reference first.

Sentences are frames with slots for phrases. Any phrase fits its slot, whatever its gender or number, so that every pair
is correct; the order of words differs between the languages. The accepted translations are all combinations of the
accepted phrases (a date in digits, a number in digits), so that a translation can be checked exactly.
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
# Countries without an article in German, so that any of them fits a frame.
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
    """An English phrase, and the accepted German phrases, the reference first."""

    english: str
    german: tuple[str, ...]


def _number(rng: random.Random, largest: int) -> int:
    """A number from 2, small ones more often; never ending in 01, where German agrees with the counted noun."""
    number = rng.randint(2, min(largest, rng.choice((20, 99, LARGEST))))
    return number + 1 if number % 100 == 1 else number


@functools.cache
def number_words(number: int) -> Phrase:
    """A number below 1,000 in words; German also in digits, and 1xx also without its leading "ein"."""
    german = num2words(number, lang="de")
    short = german.removeprefix("ein") if 100 <= number < 200 else german
    return Phrase(num2words(number, lang="en"), tuple(dict.fromkeys((german, short, str(number)))))


@functools.cache
def _plural(unit: str, locale: Locale) -> str:
    """The plural of a unit, as after a number."""
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
    """A function that draws one of CLDR's names, e.g. of its territories."""
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


# (English, German); a second slot of one kind ends in 2.
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
FIGURES = {"money", "date", "weekday", "clock"}  # kinds of phrases in digits
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Translation:
    """An English sentence, its German reference, and all accepted translations, the reference included."""

    english: str
    german: str
    accepted: tuple[str, ...]


def _draw(rng: random.Random, frames: tuple[tuple[str, str], ...]) -> tuple[str, Callable[[], Translation]]:
    """An English sentence, and a function that makes its translations."""
    english, german = rng.choice(frames)
    phrases = {slot: DRAW[slot.rstrip("2")](rng) for slot in SLOT.findall(english)}
    sentence = english.format(**{slot: phrase.english for slot, phrase in phrases.items()})

    def translate() -> Translation:
        choices = itertools.product(*(phrase.german for phrase in phrases.values()))
        accepted = tuple(german.format(**dict(zip(phrases, words, strict=True))) for words in choices)
        return Translation(sentence, accepted[0], accepted)

    return sentence, translate


def generate(split: str, size: int, seed: int, *, simple: bool = False) -> list[Translation]:
    """`size` distinct sentences of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of sentences.
        seed: of the whole data set.
        simple: only frames without phrases in digits.
    """
    frames = tuple(frame for frame in FRAMES if not simple or FIGURES.isdisjoint(SLOT.findall(frame[0])))
    return distinct(lambda rng: _draw(rng, frames), lambda translation: translation.english, split, size, seed)
