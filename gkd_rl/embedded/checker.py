"""Exact checker of the generated news: which claims of a summary does the article support?

It reads both texts with the grammar that wrote them, so it needs no facts beside the text. A summary counts as
unsupported altogether when it is ungrammatical (no template accepts all of it: a dropped slot, a repeated phrase, a
missing full stop) or evasive (it names fewer details than `min(2, details the article states)`); both are ways in which
a policy gets past a checker that only looks at words.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gkd_rl.embedded.grammar import LEADS, STATEMENTS, SUMMARIES, read
from gkd_rl.embedded.lexicon import DETAILS, EVENT_OF_PARTICIPLE

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
