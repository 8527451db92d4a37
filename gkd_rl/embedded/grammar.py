"""The sentences of the generated news, written once and used both ways: to render facts and to read them back.

A template is words, {slots} and [optional phrases]. Rendering leaves out an optional phrase whose slot has no value;
reading turns the same template into a regular expression. Text is lower-case words separated by single spaces,
punctuation included ("anna evans has opened the bridge , sparking protests .").
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from gkd_rl.embedded.lexicon import VALUES

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
