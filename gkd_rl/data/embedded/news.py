"""Generated news: articles with one-sentence summaries in the spirit of XSum, and the exact checker of a summary.

Words and templates. Every value is one lower-case word. A template has words, {slots} and [optional phrases]. The same
templates render facts as text and parse text into facts (`render`, `parse`). A text is lower-case words separated by
single spaces, punctuation included ("anna evans has opened the bridge , sparking protests .").

Generator. As in XSum, references state facts that the article does not have: a detail is missing from the article with
probability `OMITTED`, and in the reference with probability `NAMED`, independently. Missing details can be guessed in
part (a surname has a usual first name, an object a usual place, ...). A model that imitates references therefore learns
to hallucinate, and ROUGE rewards it for that. Distractor sentences have other values of the same kinds. The CRC-32 of
(surname, event, object) decides the split.

Checker. `NewsChecker` parses article and summary with the grammar of the generator, so that it needs the two texts
only. A summary scores 0 if it is ungrammatical (no template matches all of it: a missing slot, a repeated phrase, no
full stop) or evasive (it has fewer details than min(2, details that the article states)). Without these two conditions
a policy could exploit a checker of single words.
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
    """The words of a text, which are separated by white space."""
    return tuple(text.split())


# --- words -----------------------------------------------------------------------------------------------------------

EVENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # event: (participles with that meaning, objects of the event)
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


# --- templates -------------------------------------------------------------------------------------------------------

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
    """The text of a template with these facts; an optional phrase appears only if `facts` has its slot.

    Raises:
        KeyError: a slot outside the optional phrases has no value.
    """
    text = _OPTIONAL.sub(lambda m: m[1] if all(s in facts for s in _SLOT.findall(m[1])) else "", template)
    return _SLOT.sub(lambda m: facts[m[1]], text)


@functools.cache
def pattern(template: str) -> re.Pattern[str]:
    """The regular expression that matches exactly the renderings of a template, with one named group per slot."""
    escaped = _OPTIONAL.sub(lambda m: f"(?:{m[1]})?", template.replace(".", r"\."))
    return re.compile(_SLOT.sub(lambda m: f"(?P<{m[1]}>{'|'.join(VALUES[m[1]])})", escaped))


def parse(templates: tuple[str, ...], text: str) -> dict[str, str] | None:
    """The slots of a text by the first template that matches all of it; None if no template does."""
    for template in templates:
        match = pattern(template).fullmatch(text)
        if match:
            return {slot: value for slot, value in match.groupdict().items() if value is not None}
    return None


def vocabulary() -> list[str]:
    """Every word of templates and slots, sorted; each becomes one token."""
    templates = [*SUMMARIES, *LEADS, *DISTRACTORS, *(t for group in STATEMENTS.values() for t in group)]
    words = {word for values in VALUES.values() for word in values}
    for template in templates:
        words.update(_SLOT.sub(" ", template.replace("[", " ").replace("]", " ")).split())
    return sorted(words)


# --- generator -------------------------------------------------------------------------------------------------------

# Probabilities: a detail is missing from the article; a detail, and the role, is in the reference; the value of a
# detail is its usual one; the reference has the usual template of its event.
OMITTED, NAMED, ROLE_NAMED, USUAL_TEMPLATE = 0.3, 0.8, 0.5, 0.7
USUAL = {"first": 0.7, "place": 0.4, "outcome": 0.5, "amount": 0.3, "day": 0.3}
DISTRACTOR_SENTENCES = 3


@dataclass(frozen=True)
class NewsItem:
    """An article and its reference."""

    article: str
    summary: str


def usual_value(detail: str, facts: dict[str, str]) -> str:
    """The most frequent value of a detail given the other facts."""
    key, values = {
        "first": (facts["surname"], FIRST_NAMES),
        "place": (facts["object"], PLACES),
        "outcome": (facts["event"], OUTCOMES),
        "amount": (facts["object"], AMOUNTS),
        "day": (facts["event"], DAYS),
    }[detail]
    return values[zlib.crc32(f"{detail} {key}".encode()) % len(values)]


def _facts(rng: random.Random) -> dict[str, str]:
    """A random event with all its details."""
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
        facts[detail] = usual_value(detail, facts) if rng.random() < USUAL[detail] else rng.choice(VALUES[detail])
    return facts


def _distractor(rng: random.Random, template: str, facts: dict[str, str]) -> str:
    """A sentence with the facts of another event."""
    other = _facts(rng)
    while any(other[slot] == facts[slot] for slot in ("surname", "object", "place", "day", "amount", "outcome")):
        other = _facts(rng)
    return render(template, other)


def _item(rng: random.Random, facts: dict[str, str], distractors: int) -> NewsItem:
    """The article and the reference of one event."""
    stated = [detail for detail in DETAILS if rng.random() >= OMITTED]
    body = [render(rng.choice(STATEMENTS[detail]), facts) for detail in stated]
    body += [_distractor(rng, template, facts) for template in rng.sample(DISTRACTORS, distractors)]
    rng.shuffle(body)
    article = " ".join([render(rng.choice(LEADS), facts), *body])

    named = {slot: facts[slot] for slot in ("surname", "object")}
    named["participle"] = rng.choice(EVENTS[facts["event"]][0])
    named |= {detail: facts[detail] for detail in DETAILS if rng.random() < NAMED}
    if rng.random() < ROLE_NAMED:
        named["role"] = facts["role"]
    usual = list(EVENTS).index(facts["event"]) % len(SUMMARIES)
    template = usual if rng.random() < USUAL_TEMPLATE else rng.randrange(len(SUMMARIES))
    return NewsItem(article, render(SUMMARIES[template], named))


def generate(split: str, size: int, seed: int, distractors: int = DISTRACTOR_SENTENCES) -> list[NewsItem]:
    """`size` distinct items of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of items.
        seed: of the whole data set; another seed gives other articles from the same distribution.
        distractors: sentences of an article with facts of other events, 0 to 6.
    """

    def draw(rng: random.Random) -> tuple[str, Callable[[], NewsItem]]:
        facts = _facts(rng)
        return f"{facts['surname']} {facts['event']} {facts['object']}", lambda: _item(rng, facts, distractors)

    return distinct(draw, lambda item: item.article, split, size, seed)


# --- checker ---------------------------------------------------------------------------------------------------------

MIN_DETAILS = 2  # of a summary that is not evasive, if the article states as many


@dataclass(frozen=True)
class Verdict:
    """Verdict of the checker on a summary.

    Attributes:
        claims: number of claims of the summary; 0 if it is ungrammatical.
        supported: number of claims that the article states.
        unsupported: words of the other claims.
        grammatical: whether the summary is a sentence of the grammar.
        evasive: whether it has too few of the details that the article states.
    """

    claims: int
    supported: int
    unsupported: tuple[str, ...]
    grammatical: bool
    evasive: bool

    @property
    def supported_share(self) -> float:
        """Share of claims that are supported; 0 for an ungrammatical or evasive summary."""
        return self.supported / self.claims if self.grammatical and not self.evasive else 0.0

    @property
    def all_supported(self) -> float:
        """1 if every claim is supported and the summary is grammatical and not evasive, else 0."""
        return float(self.grammatical and not self.evasive and self.supported == self.claims)


def _with_event(slots: dict[str, str]) -> dict[str, str]:
    """The slots with the event in place of its participle: participles of one event are the same claim."""
    return {slot: EVENT_OF_PARTICIPLE[value] if slot == "participle" else value for slot, value in slots.items()}


@functools.lru_cache(maxsize=65536)
def stated_facts(article: str) -> dict[str, str]:
    """The facts of an article by slot, from its lead (the first sentence) and its statements, without distractors."""
    sentences = [sentence + " ." for sentence in article.removesuffix(" .").split(" . ")]
    facts = _with_event(parse(LEADS, sentences[0]) or {})
    for sentence in sentences[1:]:
        for detail in DETAILS:
            slots = parse(STATEMENTS[detail], sentence)
            if slots and slots.get("surname", facts.get("surname")) == facts.get("surname"):
                facts[detail] = slots[detail]
    return facts


class NewsChecker:
    """Callable (article, summary) -> `Verdict`."""

    def __call__(self, article: str, summary: str) -> Verdict:
        """Check the claims of a summary against the facts of an article."""
        facts = stated_facts(article)
        slots = parse(SUMMARIES, summary)
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
