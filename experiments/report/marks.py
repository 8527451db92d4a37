"""Where a summary of the generated news says what its article does not: the words, by the exact checker's grammar."""

from __future__ import annotations

from typing import Any

from gkd_rl.embedded.checker import NewsChecker, stated_facts
from gkd_rl.embedded.grammar import SUMMARIES, pattern
from gkd_rl.embedded.lexicon import EVENT_OF_PARTICIPLE

_CHECKER = NewsChecker()


def marked(article: str, summary: str) -> dict[str, Any]:
    """The verdict on a summary.

    Args:
        article: of the generated news.
        summary: any text.

    Returns:
        `spans`: [start, end] of each unsupported claim's words in the summary; `note`: what a reader should know of it
        in words, e.g. "2 of 5 claims unsupported".
    """
    verdict = _CHECKER(article, summary)
    if not verdict.grammatical:
        return {"spans": [], "note": "no sentence of the grammar"}
    missing = verdict.claims - verdict.supported
    note = f"{missing} of {verdict.claims} claims unsupported" if missing else f"all {verdict.claims} claims supported"
    return {"spans": _unsupported(article, summary), "note": note + (", evasive" if verdict.evasive else "")}


def _unsupported(article: str, summary: str) -> list[list[int]]:
    """Spans of the slots whose values the article does not state."""
    facts = stated_facts(article)
    found = next(match for one in SUMMARIES if (match := pattern(one).fullmatch(summary)))
    claimed = {slot: value for slot, value in found.groupdict().items() if value is not None}

    def stated(slot: str, value: str) -> bool:
        claim = EVENT_OF_PARTICIPLE[value] if slot == "participle" else value
        return facts.get(slot) == claim

    return sorted(list(found.span(slot)) for slot, value in claimed.items() if not stated(slot, value))
