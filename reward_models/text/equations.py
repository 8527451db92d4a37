"""Where an equation stands in free text: its expression, its result, and what its words say about them.

All functions take the tokens of a text and places in them. In doubt there is no equation.

A calculator for worked solutions: equations in free text are worked out again, and their results corrected.

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

from reward_models.text.arithmetic import LONGEST, Token, evaluate, tokens_of

UNIT_WORDS = 4  # behind a number
BOUND = {"twice", "thrice", "double", "triple", "half", "quarter", "third", "root", "square", "squared", "than"}
PLURALS = {"inches": "inch", "feet": "foot", "pennies": "penny"}
TIMES = ("second", "minute", "hour", "day", "week", "month", "year", "decade", "century")
MONEY = ("cent", "penny", "nickel", "dime", "quarter", "dollar")
LENGTHS = ("inch", "foot", "yard", "mile", "meter", "metre", "centimeter", "kilometer", "km", "cm", "mm")
WEIGHTS = ("ounce", "pound", "ton", "gram", "kilogram", "kg")
MEASURES = {*TIMES, *MONEY, *LENGTHS, *WEIGHTS, "cup", "pint", "gallon", "liter", "litre", "dozen"}


def _next(tokens: Sequence[Token], start: int, step: int, skipped: tuple[str, ...] = ("space",)) -> int | None:
    """The first place from `start` on, in the direction of `step`, that is not of a skipped kind; None at an end."""
    while 0 <= start < len(tokens):
        if tokens[start].kind not in skipped:
            return start
        start += step
    return None


def result_place(tokens: Sequence[Token], equals: int) -> int | None:
    """Where the number behind an equals sign is, if it is all that stands there but a unit."""
    place = _next(tokens, equals + 1, 1)
    if place is not None and tokens[place].kind == "open":
        closes = [i for i in range(place, min(len(tokens), place + 4 * LONGEST)) if tokens[i].kind == "close"]
        place = _next(tokens, closes[0] + 1, 1) if closes else None
    if place is None or tokens[place].kind != "number":
        return None
    if any(token.text in (":", ".") for token in tokens[place + 1 : place + 2]) and not _ends(tokens, place + 1):
        return None  # 6:48, 8.33...
    behind = _next(tokens, place + 1, 1)
    after = _next(tokens, place + 1, 1, ("space", "word", "per"))
    if behind is not None and tokens[behind].kind == "number":
        return None  # 10 000
    if after is None or tokens[after].kind not in ("operator", "power", "left"):
        return place
    operand = _next(tokens, after + 1, 1)
    continues = operand is not None and (tokens[operand].kind in ("number", "left") or _is_unknown(tokens[operand]))
    if tokens[after].kind == "operator":
        is_dash = tokens[after].operation == "-" or tokens[after].text == "times" or after != behind  # before words
        return None if continues or not is_dash else place
    return place if after != behind else None


def _is_unknown(token: Token) -> bool:
    """x, but not the words "a" and "I"."""
    return len(token.text) == 1 and token.text.isalpha() and token.text not in "aAI"


def _ends(tokens: Sequence[Token], point: int) -> bool:
    """A point or colon ends a clause."""
    return all(token.kind in ("space", "word") or token.text == "\n" for token in tokens[point + 1 : point + 2])


def expression_before(tokens: Sequence[Token], equals: int) -> list[int] | None:
    """Places of the numbers, operators and brackets before an equals sign; None where it is no plain arithmetic."""
    places: list[int] = []
    end = equals - 1
    while True:
        operand = _operand(tokens, end)
        if operand is None:
            return None
        places = operand + places
        before = _next(tokens, operand[0] - 1, -1)
        if before is None or tokens[before].kind != "operator":
            break
        places, end = [before, *places], before - 1
    if len(places) < 3 or (before is not None and _binds(tokens, before, places[0])):
        return None
    return places


def _operand(tokens: Sequence[Token], end: int) -> list[int] | None:
    """Places of the number or the bracket that ends at `end`, units behind it left out."""
    last = _next(tokens, end, -1, ("space", "word", "per"))
    if last is None or sum(token.kind == "word" for token in tokens[last : end + 1]) > UNIT_WORDS:
        return None
    if any(len(token.text) == 1 for token in tokens[last : end + 1] if token.kind == "word"):
        return None  # an unknown
    if tokens[last].kind == "number":
        return [last]
    if tokens[last].kind != "right":
        return None
    return _bracket(tokens, last)


def _bracket(tokens: Sequence[Token], last: int) -> list[int] | None:
    """Places of a bracket that closes at `last` and of what is in it."""
    depth, inside = 0, []
    for i in range(last, max(-1, last - 4 * LONGEST), -1):
        kind = tokens[i].kind
        depth += (kind == "right") - (kind == "left")
        if kind not in ("number", "operator", "left", "right", "space", "word", "per"):
            return None
        if kind == "word" and tokens[_next(tokens, i - 1, -1) or 0].kind in ("left", "operator"):
            return None  # an unknown
        if kind in ("number", "operator", "left", "right"):
            inside.insert(0, i)
        if depth == 0:
            return inside
    return None


def _binds(tokens: Sequence[Token], before: int, first: int) -> bool:
    """What stands before an expression belongs to its first number."""
    token, kind = tokens[before], tokens[before].kind
    further = _next(tokens, before - 1, -1)
    last = tokens[before if further is None else further]
    if kind == "word" and (token.text.lower() in BOUND or _measure(token)):
        return True
    if kind == "word" and token.text == "of":  # half of 10, but not a total of 10
        return last.kind == "number" or last.text.lower() in BOUND
    if kind == "word" and token.text == "and":  # 1 and 1/4
        return last.kind == "number" and tokens[first + 1].text == "/"
    if kind == "word":
        far = _next(tokens, before, -1, ("space", "word", "per"))
        return far is not None and tokens[far].kind == "operator"  # a term without a number
    if kind == "other":  # 16,0000 and 14, 400 and 7:50 and + . 84
        return token.text in (",", ":", ".") and last.kind in (("operator",) if token.text == "." else ("number",))
    return kind in ("number", "power", "per", "right") or (kind == "left" and last.kind == "operator")


def readings(tokens: Sequence[Token], places: Sequence[int], result: int) -> list[Fraction]:
    """The values that an expression may have, the likeliest first.

    Percentages are shares where something is multiplied or divided, else numbers; a quotient is a percentage of 100
    where the result has a percent sign; dollars come out in cents where the result is in cents; 3 / 1/4 is 3 / (1/4).
    """
    plain = [tokens[i] for i in places]
    expressions = [grouped, plain] if (grouped := _grouped(tokens, places)) != plain else [plain]
    scales = any(token.kind == "operator" and token.operation in "*/" for token in plain)
    shares = (scales, not scales) if any(token.percent for token in plain) else (True,)
    found = [evaluate(expression, share) for expression in expressions for share in shares]
    values = [value for value in found if value is not None]
    if not values or not (tokens[result].percent or _in_cents(tokens, result)):
        return values
    dollars = any("$" in token.text for token in tokens[max(0, places[0] - 1) : places[-1]])
    hundredfold = [100 * value for value in values]
    return [*hundredfold, *values] if (scales if tokens[result].percent else dollars) else [*values, *hundredfold]


def _in_cents(tokens: Sequence[Token], result: int) -> bool:
    after = _next(tokens, result + 1, 1)
    return after is not None and _measure(tokens[after]) in ("cent", "penny")


def _grouped(tokens: Sequence[Token], places: Sequence[int]) -> list[Token]:
    """The expression with brackets around fractions that something is divided by, as spaces show them."""
    found: list[Token] = []
    rest = list(places)
    while rest:
        texts = [tokens[i].text for i in rest[:4]]
        tight = len(rest) > 3 and rest[3] == rest[1] + 2 and texts[0] == texts[2] == "/"
        if tight and tokens[rest[0] + 1].kind == "space" and tokens[rest[1]].kind == tokens[rest[3]].kind == "number":
            found += [tokens[rest[0]], Token("left", "("), *(tokens[i] for i in rest[1:4]), Token("right", ")")]
            rest = rest[4:]
        else:
            found.append(tokens[rest.pop(0)])
    return found


def _measure(token: Token) -> str:
    """The measure that a word names, in the singular; nothing for other words."""
    word = token.text.lower()
    word = PLURALS.get(word, word if word in MEASURES else word.removesuffix("s"))
    return word if word in MEASURES else ""


def one_measure(tokens: Sequence[Token], expression: Sequence[int], result: int) -> bool:
    """Numbers of an equation are not of different measures."""
    found = set()
    for place in (*expression, result):
        after = _next(tokens, place + 1, 1)
        if tokens[place].kind == "number" and after is not None and tokens[after].kind == "word":
            found.add(_measure(tokens[after]))
    return len(found - {""}) < 2


def behind_annotation(tokens: Sequence[Token], place: int) -> int | None:
    """Where the number right behind `<<...=place>>` is."""
    close = _next(tokens, place + 1, 1)
    if close is None or tokens[close].kind != "close":
        return None
    behind = _next(tokens, close + 1, 1)
    return behind if behind is not None and tokens[behind].kind == "number" else None


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
