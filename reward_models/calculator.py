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

from reward_models.arithmetic import Token, evaluate, tokens_of

UNIT_WORDS = 4  # behind a number
BOUND = {"of", "twice", "thrice", "double", "triple", "half", "quarter", "third", "root", "square", "squared", "than"}
PLURALS = {"inches": "inch", "feet": "foot", "pennies": "penny"}
MEASURES = set(
    "second minute hour day week month year decade century cent penny nickel dime quarter dollar inch foot yard mile "
    "meter metre centimeter kilometer km cm mm ounce pound ton gram kilogram kg cup pint gallon liter litre dozen".split()
)
Key = tuple[Fraction, bool]


def recalculate(text: str) -> str:
    """The text with the results of its equations corrected and carried on."""
    tokens = tokens_of(text)
    carried: dict[Key, Fraction] = {}
    seen: set[Key] = set()
    settled: set[int] = set()
    final = False
    for i, token in enumerate(tokens):
        if token.kind == "final":
            final = True
        elif token.kind == "equals":
            place = _result_place(tokens, i)
            if place is not None and place not in settled:
                settled |= _settle(tokens, i, place, carried)
        elif token.kind == "number":
            key = _key(token)
            if i not in settled and key in carried and (final or key not in seen):
                token.write(carried[key])
            elif i not in settled or key not in carried:
                seen.add(key)
            final = False
    return "".join(token.text for token in tokens)
