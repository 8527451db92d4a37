"""The words of the generated news: what can happen, to what, by whom, where, when and with what consequence.

Every value is one lower-case word, so that a claim is a word and a word list is a vocabulary.

The sentences of the generated news, written once and used both ways: to render facts and to read them back.

A template is words, {slots} and [optional phrases]. Rendering leaves out an optional phrase whose slot has no value;
reading turns the same template into a regular expression. Text is lower-case words separated by single spaces,
punctuation included ("anna evans has opened the bridge , sparking protests .").

Generator of short news articles with one-sentence summaries, in the spirit of XSum.

As in XSum, references state facts that the article does not: each detail is left out of the article with probability
OMIT, and named by the reference with probability NAME whether or not the article has it. Omitted details are partly
guessable (a surname has a usual first name, an object a usual place, ...), so a model that imitates references learns
to hallucinate and is paid in ROUGE for it. Distractor sentences hold other values of the same kinds.

Train, validation and test are disjoint by construction: who did what to which object (surname, event, object) decides
the split by its CRC-32. All draws come from Python's Mersenne Twister, so rows are the same on every machine.

Exact checker of the generated news: which claims of a summary does the article support?

It reads both texts with the grammar that wrote them, so it needs no facts beside the text. A summary counts as
unsupported altogether when it is ungrammatical (no template accepts all of it: a dropped slot, a repeated phrase, a
missing full stop) or evasive (it names fewer details than `min(2, details the article states)`); both are ways in which
a policy gets past a checker that only looks at words.
"""

from __future__ import annotations

import functools
import random
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gkd_rl.data.embedded.splits import distinct


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


EVENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # event: (participles that mean it, objects it happens to)
    "open": (("opened", "unveiled", "inaugurated"), ("bridge", "museum", "library", "stadium", "hospital", "airport")),
    "sell": (("sold", "auctioned", "offloaded"), ("painting", "vineyard", "yacht", "castle", "ranch", "necklace")),
    "ban": (("banned", "outlawed", "prohibited"), ("drone", "drug", "film", "novel", "scooter", "game")),
    "steal": (("stolen", "snatched", "taken"), ("ring", "violin", "trophy", "lorry", "crown", "manuscript")),
    "rescue": (("rescued", "saved", "recovered"), ("dog", "climber", "sailor", "horse", "child", "pilot")),
    "cancel": (("cancelled", "scrapped", "abandoned"), ("festival", "concert", "parade", "tour", "marathon", "fair")),
    "repair": (("repaired", "restored", "rebuilt"), ("tower", "statue", "tunnel", "chapel", "harbour", "windmill")),
    "buy": (("bought", "purchased", "acquired"), ("newspaper", "brewery", "club", "hotel", "farm", "bakery")),
}
EVENT_OF_PARTICIPLE = {word: event for event, (words, _) in EVENTS.items() for word in words}

SURNAMES = words_of(
    "adams baker carter davies evans fisher grant harris irving jones keller lewis mason nolan owens "
    "parker quinn reed shaw turner underwood vaughn walsh young ashby brooks cole dixon ellis foster "
    "gibson howard ingram jarvis knight lowe marsh norris osborne price"
)
FIRST_NAMES = words_of(
    "anna ben clara david emma frank grace henry irene jack kate liam maria noah olive peter rosa simon tina victor"
)
ROLES = words_of(
    "mayor banker lawyer farmer doctor minister builder artist teacher investor officer engineer chef actor"
)
PLACES = words_of(
    "leeds york bath derby oxford london dover truro wells ripon lincoln durham exeter preston salford "
    "bristol cardiff swansea dundee perth belfast cork galway norwich"
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
AMOUNTS = words_of("two three four five six seven eight nine ten twelve fifteen twenty thirty forty fifty sixty")
OUTCOMES = words_of("protests praise delays lawsuits layoffs celebrations confusion strikes")

CORE = ("surname", "event", "object")
DETAILS = ("first", "place", "day", "amount", "outcome")
VALUES: dict[str, tuple[str, ...]] = {
    "surname": SURNAMES,
    "participle": tuple(EVENT_OF_PARTICIPLE),
    "object": tuple(word for _, words in EVENTS.values() for word in words),
    "role": ROLES,
    "first": FIRST_NAMES,
    "place": PLACES,
    "day": DAYS,
    "amount": AMOUNTS,
    "outcome": OUTCOMES,
}


SUBJECT = "[{role} ][{first} ]{surname}"
SUMMARIES = (
    SUBJECT + " has {participle} the {object}[ in {place}][ on {day}][ for {amount} million pounds]"
    "[ , sparking {outcome}] .",
    "the {object}[ in {place}] has been {participle} by " + SUBJECT + "[ for {amount} million pounds][ on {day}]"
    "[ amid {outcome}] .",
    "[on {day} ]" + SUBJECT + " had {participle} the {object}[ worth {amount} million pounds][ in {place}]"
    "[ , leading to {outcome}] .",
    "[{place} : ]the {object}[ , valued at {amount} million pounds ,] was {participle}[ on {day}] by "
    + SUBJECT
    + "[ , prompting {outcome}] .",
)
LEADS = (
    "{role} {surname} has {participle} the {object} .",
    "the {object} has been {participle} by {role} {surname} .",
    "it was confirmed that {role} {surname} had {participle} the {object} .",
)
STATEMENTS: dict[str, tuple[str, ...]] = {
    "first": ("friends of {first} {surname} were not surprised .", "{first} {surname} smiled but did not speak ."),
    "place": ("it happened in {place} .", "people across {place} were talking about it ."),
    "day": ("it took place on {day} .", "the news broke on {day} ."),
    "amount": ("the sum involved was {amount} million pounds .", "experts put the value at {amount} million pounds ."),
    "outcome": ("the step led to {outcome} .", "there were {outcome} within hours ."),
}
DISTRACTORS = (
    "{role} {surname} declined to comment .",
    "{surname} had {participle} the {object} years ago .",
    "a council in {place} is watching closely .",
    "a meeting about it is planned for {day} .",
    "a similar case once cost {amount} million pounds .",
    "some had expected {outcome} .",
)

_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def render(template: str, facts: Mapping[str, str]) -> str:
    """Fill a template; an optional phrase appears only if `facts` has its slot.

    Raises:
        KeyError: a slot outside the optional phrases has no value.
    """
    text = _OPTIONAL.sub(lambda m: m[1] if all(s in facts for s in _SLOT.findall(m[1])) else "", template)
    return _SLOT.sub(lambda m: facts[m[1]], text)


@functools.cache
def pattern(template: str) -> re.Pattern[str]:
    """The regular expression that accepts exactly the renderings of `template`, one named group per slot."""
    escaped = _OPTIONAL.sub(lambda m: f"(?:{m[1]})?", template.replace(".", r"\."))
    return re.compile(_SLOT.sub(lambda m: f"(?P<{m[1]}>{'|'.join(VALUES[m[1]])})", escaped))


def read(templates: tuple[str, ...], text: str) -> dict[str, str] | None:
    """The slots of `text` under the first template that accepts all of it, or None."""
    for template in templates:
        match = pattern(template).fullmatch(text)
        if match:
            return {slot: value for slot, value in match.groupdict().items() if value is not None}
    return None


def vocabulary() -> list[str]:
    """Every word that any template or slot can produce, sorted."""
    templates = [*SUMMARIES, *LEADS, *DISTRACTORS, *(t for group in STATEMENTS.values() for t in group)]
    words = {word for values in VALUES.values() for word in values}
    for template in templates:
        words.update(_SLOT.sub(" ", template.replace("[", " ").replace("]", " ")).split())
    return sorted(words)


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


MIN_DETAILS = 2


@dataclass(frozen=True)
class Verdict:
    """What the article says about a summary.

    Attributes:
        claims: number of claims the summary makes; 0 if it is ungrammatical.
        supported: how many of them the article states.
        unsupported: the words that it does not state.
        grammatical: the summary is a sentence of the grammar.
        evasive: it leaves out what it could have said.
    """

    claims: int
    supported: int
    unsupported: tuple[str, ...]
    grammatical: bool
    evasive: bool

    @property
    def supported_share(self) -> float:
        """Supported claims over claims, 0 for an ungrammatical or evasive summary."""
        return self.supported / self.claims if self.grammatical and not self.evasive else 0.0

    @property
    def all_supported(self) -> float:
        """1 if every claim is supported and the summary is grammatical and not evasive, else 0."""
        return float(self.grammatical and not self.evasive and self.supported == self.claims)


def _with_event(slots: dict[str, str]) -> dict[str, str]:
    """Claims are about the event, not about the word chosen for it."""
    return {slot: EVENT_OF_PARTICIPLE[value] if slot == "participle" else value for slot, value in slots.items()}


@functools.lru_cache(maxsize=65536)
def stated_facts(article: str) -> dict[str, str]:
    """The facts an article states, by slot; the lead comes first and distractors state none of them."""
    sentences = [sentence + " ." for sentence in article.removesuffix(" .").split(" . ")]
    facts = _with_event(read(LEADS, sentences[0]) or {})
    for sentence in sentences[1:]:
        for detail in DETAILS:
            slots = read(STATEMENTS[detail], sentence)
            if slots and slots.get("surname", facts.get("surname")) == facts.get("surname"):
                facts[detail] = slots[detail]
    return facts


class NewsChecker:
    """Callable `(article, summary) -> Verdict`."""

    def __call__(self, article: str, summary: str) -> Verdict:
        """Judge `summary` by what `article` states."""
        facts = stated_facts(article)
        slots = read(SUMMARIES, summary)
        if slots is None:
            return Verdict(claims=0, supported=0, unsupported=(), grammatical=False, evasive=False)
        claims = _with_event(slots)
        unsupported = tuple(slots[slot] for slot, value in claims.items() if facts.get(slot) != value)
        stated_details = sum(detail in facts for detail in DETAILS)
        named_details = sum(detail in claims for detail in DETAILS)
        return Verdict(
            claims=len(claims),
            supported=len(claims) - len(unsupported),
            unsupported=unsupported,
            grammatical=True,
            evasive=named_details < min(MIN_DETAILS, stated_details),
        )
