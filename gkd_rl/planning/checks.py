"""What one check of the doctor found, and all of them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        check: its name.
        state: `ok`, `failed`, or `unknown` where what it needs cannot be reached from here.
        words: what was found.
    """

    check: str
    state: str
    words: str

    def __str__(self) -> str:
        return f"{self.state:<9}{self.check:<12}{self.words}"


def summary(findings: Sequence[CheckResult]) -> str:
    """The last line of the table: how many checks failed, and which could not be made."""
    failed, unknown = ([one.check for one in findings if one.state == state] for state in (FAILED, UNKNOWN))
    words = f"{len(findings)} checks, {len(failed)} failed" + (f" ({', '.join(failed)})" if failed else "")
    return words + (f", {len(unknown)} not made ({', '.join(unknown)})" if unknown else "")
