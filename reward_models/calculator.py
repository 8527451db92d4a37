"""A calculator for worked solutions: equations in free text are worked out again, and their results corrected.

The paper counts an answer on GSM8K as right if it is right with an external calculator (section 4.3, after Cobbe et al.
2021); how one is applied to free text it does not say. Here, after Magister et al. 2022 (arXiv 2212.08410), it reads
text that is finished:

1. Equations `a op b (op c ...) = d` are taken from left to right, each with the usual precedence and exact fractions.
   A unit may stand behind a number (`3 apples + 2 apples = 5 apples`); $, commas and % are read, a percentage as a
   share or as a number, whichever agrees. In `a + b = c + d = e` the last link alone has a result to correct.
2. d stays if it is the value, or the value rounded up or down at d's own last digit; else the value takes its place.
3. A corrected result is carried on: later numbers that equal the wrong one become the right one, in words, equations
   and the final answer, until another equation gives the wrong number rightly. A number that stood in the text before
   the slip may be a given, and is replaced in the final answer only.
4. `<<48/2=24>>` is an equation of its own, and a number right behind it is its result.

What is no plain arithmetic is left as it is: unknowns, powers, roots, mixed numbers, mixed measures (1 hour + 20
minutes), and equations whose first number belongs to words before it (`twice 3 + 4 = 10`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reward_models.arithmetic import Token, tokens_of
from reward_models.equations import behind_annotation, expression_before, one_measure, readings, result_place

Key = tuple[Fraction, bool]


def recalculate(text: str) -> str:
    """The text with the results of its equations corrected and carried on."""
    return _Solution(tokens_of(text)).corrected()


class _Solution:
    """A text that is read from left to right.

    `carried` holds what a wrong number became, and whether that number stood in the text before; `settled` the places
    of numbers that are results themselves.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.carried: dict[Key, tuple[Fraction, bool]] = {}
        self.seen: set[Key] = set()
        self.settled: set[int] = set()

    def corrected(self) -> str:
        """Every token in turn."""
        final = False
        for i, token in enumerate(self.tokens):
            if token.kind == "final":
                final = True
            elif token.kind == "equals":
                self._equation(i)
            elif token.kind == "number":
                value, given = self.carried.get(_key(token), (None, False))
                if value is not None and i not in self.settled and (final or not given):
                    token.write(value)
                self.seen.add(_key(token))
                final = False
        return "".join(token.text for token in self.tokens)

    def _equation(self, equals: int) -> None:
        """Settle the result behind an equals sign."""
        place = result_place(self.tokens, equals)
        expression = None if place is None else expression_before(self.tokens, equals)
        if place is None or expression is None or place in self.settled:
            return
        result = self.tokens[place]
        values = readings(self.tokens, expression, place)
        if not values or not one_measure(self.tokens, expression, place):
            return
        wrong, places = _key(result), {place}
        behind = behind_annotation(self.tokens, place)
        if behind is not None and _key(self.tokens[behind]) == wrong:
            places.add(behind)
        self.settled |= places
        self.carried.pop(wrong, None)
        if any(abs(value - result.value) < Fraction(1, 10**result.decimals) for value in values):
            return
        self.carried[wrong] = values[0], wrong in self.seen
        for one in places:
            self.tokens[one].write(values[0])


def _key(token: Token) -> Key:
    return token.value, token.percent
