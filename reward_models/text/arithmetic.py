"""Plain arithmetic in free text: a tokenizer, an evaluator of expressions in exact fractions, and number formatting.

The evaluator supports + - * / and brackets. Limits bound its time and memory; no part of a text is run as code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_TOKENS = 64  # of one expression; it bounds the nesting of brackets too
MAX_CHARACTERS = 24  # of one token
MAX_BITS = 1024  # of a value: an exact fraction that is propagated through many equations would grow without limit
TOKEN = re.compile(
    r"(?P<open><<)|(?P<close>>>)"
    r"|(?P<number>(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[ ]?%)?)"
    r"|(?P<final>####|\b[Aa]nswer(?: is\b|:))"
    r"|(?P<power>\*\*|[\^√!])"
    r"|(?P<per>/ ?[A-Za-z]{2,})"
    r"|(?P<operator>[-+*/×÷−–]|\b(?:plus|minus|times|multiplied by|divided by)\b|(?<![A-Za-z])[xX](?![A-Za-z]))"
    r"|(?P<equals>=)|(?P<left>\()|(?P<right>\))"
    r"|(?P<word>[A-Za-z]+(?:['’-][A-Za-z]+)*)"
    r"|(?P<space>[ \t$€£]+)|(?P<other>.|\n)"
)
CLOCK = re.compile(r"0[0-9]")  # 0730 is a time of day, not a number
OPERATORS = {"−": "-", "–": "-", "×": "*", "x": "*", "X": "*", "÷": "/"}
OPERATORS |= {"plus": "+", "minus": "-", "times": "*", "of": "*", "multiplied by": "*", "divided by": "/"}


@dataclass
class Token:
    """A piece of a text.

    Attributes:
        kind: name of a group of `TOKEN`.
        text: the piece.
        value: of a number; for a percentage the number before the percent sign.
    """

    kind: str
    text: str
    value: Fraction = Fraction(0)

    @property
    def percent(self) -> bool:
        """Whether it is a number with a percent sign."""
        return self.kind == "number" and self.text.endswith("%")

    @property
    def decimals(self) -> int:
        """Digits after the decimal point."""
        return len(self.text.rstrip(" %").partition(".")[2])

    @property
    def operation(self) -> str:
        """The operator as one of + - * /."""
        return OPERATORS.get(self.text, self.text)

    def set_value(self, value: Fraction) -> None:
        """Replace this number by another, which keeps its commas and its percent sign."""
        sign = "%" if self.percent else ""
        self.text = format_number(value, max(2, self.decimals), commas="," in self.text) + sign
        self.value = value


def tokens_of(text: str) -> list[Token]:
    """The whole text as tokens; `of` between two numbers is a multiplication."""
    found = [Token(str(match.lastgroup), match[0]) for match in TOKEN.finditer(text)]
    for token in found:
        if len(token.text) > MAX_CHARACTERS:
            token.kind = "other"
        elif token.kind == "number":
            token.value = Fraction(token.text.rstrip(" %").replace(",", ""))
    solid = [token for token in found if token.kind != "space"]
    for before, token, after in zip(solid, solid[1:], solid[2:], strict=False):
        if token.text == "of" and before.kind == after.kind == "number":
            token.kind = "operator"
    return found


def format_number(value: Fraction, places: int, commas: bool) -> str:
    """A number in decimals: exact if at most six places are enough, else rounded to `places`.

    Args:
        value: the number.
        places: decimal places of a rounded number.
        commas: group thousands by commas.
    """
    exact = next((count for count in range(7) if (value * 10**count).denominator == 1), None)
    places = places if exact is None else exact
    whole, rest = divmod(abs(round(value * 10**places)), 10**places)
    text = (f"{whole:,}" if commas else f"{whole}") + (f".{rest:0{places}d}" if places else "")
    return f"-{text}" if value < 0 else text


def evaluate(expression: Sequence[Token], percent_is_share: bool) -> Fraction | None:
    """The value of an expression with the usual precedence; None if it is malformed, too long or too large.

    Args:
        expression: tokens of the kinds number, operator, left and right.
        percent_is_share: 5% is 0.05 if true, else 5.
    """
    if len(expression) > MAX_TOKENS or any(CLOCK.match(token.text) for token in expression):
        return None
    rest = iter([*expression, Token("end", "")])
    try:
        value, after = _sum(next(rest), rest, percent_is_share)
    except (ValueError, ZeroDivisionError):
        return None
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    return value if after.kind == "end" and bits <= MAX_BITS else None


def _sum(token: Token, rest: Iterator[Token], share: bool) -> tuple[Fraction, Token]:
    """A sum that starts at `token`; returns its value and the token after it, as `_product` and `_factor` do."""
    value, token = _product(token, rest, share)
    while token.kind == "operator" and token.operation in "+-":
        term, after = _product(next(rest), rest, share)
        value, token = (value + term if token.operation == "+" else value - term), after
    return value, token


def _product(token: Token, rest: Iterator[Token], share: bool) -> tuple[Fraction, Token]:
    value, token = _factor(token, rest, share)
    while token.kind == "operator" and token.operation in "*/":
        factor, after = _factor(next(rest), rest, share)
        value, token = (value * factor if token.operation == "*" else value / factor), after
    return value, token


def _factor(token: Token, rest: Iterator[Token], share: bool) -> tuple[Fraction, Token]:
    if token.kind == "operator" and token.operation == "-":
        value, after = _factor(next(rest), rest, share)
        return -value, after
    if token.kind == "left":
        value, after = _sum(next(rest), rest, share)
        if after.kind != "right":
            raise ValueError("a bracket is not closed")
        return value, next(rest)
    if token.kind != "number":
        raise ValueError(f"{token.text!r} is not a number")
    return token.value / 100 if share and token.percent else token.value, next(rest)
