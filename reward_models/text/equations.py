"""A calculator for worked solutions: equations in free text are recomputed and their wrong results replaced.

The GKD paper counts an answer on GSM8K as right if it is right with an external calculator (section 4.3, after Cobbe et
al. 2021), and does not state how a calculator is applied to free text. Here, after Magister et al. 2022 (arXiv
2212.08410), it is applied to the finished text:

1. Equations `a op b (op c ...) = d` are evaluated from left to right, with the usual precedence in exact fractions. A
   unit may follow a number (`3 apples + 2 apples = 5 apples`); $, commas and % are accepted, a percentage as a share or
   as a number, whichever agrees. In `a + b = c + d = e` only the last equation has a result to correct.
2. d is kept if it is the value, or the value rounded up or down at d's last digit; else it is replaced by the value.
3. A correction is propagated: later numbers equal to the wrong result are replaced too, in text, equations and the
   final answer, until another equation has that number as a correct result. A number that already appeared before the
   wrong result may be a given of the problem, and is then replaced in the final answer only.
4. `<<48/2=24>>` is an equation of its own, and a number right after it is its result.

Anything that is not plain arithmetic is left unchanged: unknowns, powers, roots, mixed numbers, mixed units (1 hour +
20 minutes), and equations whose first number belongs to the words before it (`twice 3 + 4 = 10`). In doubt a text is
not an equation.

All functions take the tokens of a text (`reward_models.text.arithmetic`) and indices of tokens in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reward_models.text.arithmetic import MAX_TOKENS, Token, evaluate, tokens_of

MAX_UNIT_WORDS = 4  # words after a number that may be its unit
MODIFIERS = {"twice", "thrice", "double", "triple", "half", "quarter", "third", "root", "square", "squared", "than"}
PLURALS = {"inches": "inch", "feet": "foot", "pennies": "penny"}
TIMES = ("second", "minute", "hour", "day", "week", "month", "year", "decade", "century")
MONEY = ("cent", "penny", "nickel", "dime", "quarter", "dollar")
LENGTHS = ("inch", "foot", "yard", "mile", "meter", "metre", "centimeter", "kilometer", "km", "cm", "mm")
WEIGHTS = ("ounce", "pound", "ton", "gram", "kilogram", "kg")
UNITS = {*TIMES, *MONEY, *LENGTHS, *WEIGHTS, "cup", "pint", "gallon", "liter", "litre", "dozen"}
Key = tuple[Fraction, bool]  # value of a number, and whether it has a percent sign


def recalculate(text: str) -> str:
    """The text with wrong results of its equations replaced, and the corrections propagated."""
    return _Corrector(tokens_of(text)).corrected()


class _Corrector:
    """Corrects the tokens of one text from left to right.

    Attributes:
        corrections: wrong number -> its correction, and whether the wrong number appeared before the equation.
        seen: numbers so far.
        results: indices of numbers that are results of equations themselves.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.corrections: dict[Key, tuple[Fraction, bool]] = {}
        self.seen: set[Key] = set()
        self.results: set[int] = set()

    def corrected(self) -> str:
        """The corrected text."""
        final = False  # the next number is the final answer
        for i, token in enumerate(self.tokens):
            if token.kind == "final":
                final = True
            elif token.kind == "equals":
                self._correct_equation(i)
            elif token.kind == "number":
                value, given = self.corrections.get(_key(token), (None, False))
                if value is not None and i not in self.results and (final or not given):
                    token.set_value(value)
                self.seen.add(_key(token))
                final = False
        return "".join(token.text for token in self.tokens)

    def _correct_equation(self, equals: int) -> None:
        """Check the result after an equals sign, and replace it if it is wrong."""
        index = result_index(self.tokens, equals)
        expression = None if index is None else expression_before(self.tokens, equals)
        if index is None or expression is None or index in self.results:
            return
        result = self.tokens[index]
        values = candidate_values(self.tokens, expression, index)
        if not values or not units_agree(self.tokens, expression, index):
            return
        wrong, indices = _key(result), {index}
        repeated = index_after_annotation(self.tokens, index)
        if repeated is not None and _key(self.tokens[repeated]) == wrong:
            indices.add(repeated)
        self.results |= indices
        self.corrections.pop(wrong, None)
        if any(abs(value - result.value) < Fraction(1, 10**result.decimals) for value in values):
            return
        self.corrections[wrong] = values[0], wrong in self.seen
        for i in indices:
            self.tokens[i].set_value(values[0])


def _key(token: Token) -> Key:
    return token.value, token.percent


def _next(tokens: Sequence[Token], start: int, step: int, skipped: tuple[str, ...] = ("space",)) -> int | None:
    """The first index from `start` on, in steps of `step`, whose token is not of a skipped kind; None at an end."""
    while 0 <= start < len(tokens):
        if tokens[start].kind not in skipped:
            return start
        start += step
    return None


def result_index(tokens: Sequence[Token], equals: int) -> int | None:
    """Index of the number after an equals sign; None unless that number, with a unit or without, is the whole side."""
    index = _next(tokens, equals + 1, 1)
    if index is not None and tokens[index].kind == "open":
        closes = [i for i in range(index, min(len(tokens), index + 4 * MAX_TOKENS)) if tokens[i].kind == "close"]
        index = _next(tokens, closes[0] + 1, 1) if closes else None
    if index is None or tokens[index].kind != "number":
        return None
    if any(token.text in (":", ".") for token in tokens[index + 1 : index + 2]) and not _ends(tokens, index + 1):
        return None  # 6:48, 8.33...
    adjacent = _next(tokens, index + 1, 1)
    after_unit = _next(tokens, index + 1, 1, ("space", "word", "per"))
    if adjacent is not None and tokens[adjacent].kind == "number":
        return None  # 10 000
    if after_unit is None or tokens[after_unit].kind not in ("operator", "power", "left"):
        return index
    operand = _next(tokens, after_unit + 1, 1)
    continues = operand is not None and (tokens[operand].kind in ("number", "left") or _is_unknown(tokens[operand]))
    if tokens[after_unit].kind == "operator":  # a dash before words ends the equation, a minus continues it
        is_dash = tokens[after_unit].operation == "-" or tokens[after_unit].text == "times" or after_unit != adjacent
        return None if continues or not is_dash else index
    return index if after_unit != adjacent else None


def _is_unknown(token: Token) -> bool:
    """A single letter like x, except the words "a" and "I"."""
    return len(token.text) == 1 and token.text.isalpha() and token.text not in "aAI"


def _ends(tokens: Sequence[Token], point: int) -> bool:
    """Whether the point or colon at `point` ends a clause."""
    return all(token.kind in ("space", "word") or token.text == "\n" for token in tokens[point + 1 : point + 2])


def expression_before(tokens: Sequence[Token], equals: int) -> list[int] | None:
    """Indices of the numbers, operators and brackets before an equals sign; None if it is not plain arithmetic."""
    indices: list[int] = []
    end = equals - 1
    while True:
        operand = _operand(tokens, end)
        if operand is None:
            return None
        indices = operand + indices
        before = _next(tokens, operand[0] - 1, -1)
        if before is None or tokens[before].kind != "operator":
            break
        indices, end = [before, *indices], before - 1
    if len(indices) < 3 or (before is not None and _is_bound(tokens, before, indices[0])):
        return None
    return indices


def _operand(tokens: Sequence[Token], end: int) -> list[int] | None:
    """Indices of the number or the bracket that ends at `end`, without the unit after it."""
    last = _next(tokens, end, -1, ("space", "word", "per"))
    if last is None or sum(token.kind == "word" for token in tokens[last : end + 1]) > MAX_UNIT_WORDS:
        return None
    if any(len(token.text) == 1 for token in tokens[last : end + 1] if token.kind == "word"):
        return None  # an unknown
    if tokens[last].kind == "number":
        return [last]
    if tokens[last].kind != "right":
        return None
    return _bracket(tokens, last)


def _bracket(tokens: Sequence[Token], last: int) -> list[int] | None:
    """Indices of a bracket that closes at `last` and of its content; None if that is not plain arithmetic."""
    depth, inside = 0, []
    for i in range(last, max(-1, last - 4 * MAX_TOKENS), -1):
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


def _is_bound(tokens: Sequence[Token], before: int, first: int) -> bool:
    """Whether the token before an expression changes the meaning of its first number.

    Args:
        tokens: of the text.
        before: index of the token before the expression, spaces skipped.
        first: index of the first number.
    """
    token, kind = tokens[before], tokens[before].kind
    further = _next(tokens, before - 1, -1)
    last = tokens[before if further is None else further]
    if kind == "word" and (token.text.lower() in MODIFIERS or _unit(token)):
        return True
    if kind == "word" and token.text == "of":  # half of 10, but not a total of 10
        return last.kind == "number" or last.text.lower() in MODIFIERS
    if kind == "word" and token.text == "and":  # 1 and 1/4
        return last.kind == "number" and tokens[first + 1].text == "/"
    if kind == "word":
        far = _next(tokens, before, -1, ("space", "word", "per"))
        return far is not None and tokens[far].kind == "operator"  # a term without a number
    if kind == "other":  # 16,0000 and 14, 400 and 7:50 and + . 84
        return token.text in (",", ":", ".") and last.kind in (("operator",) if token.text == "." else ("number",))
    return kind in ("number", "power", "per", "right") or (kind == "left" and last.kind == "operator")


def candidate_values(tokens: Sequence[Token], expression: Sequence[int], result: int) -> list[Fraction]:
    """Possible values of an expression, the likeliest first.

    Percentages are shares in products and quotients, else numbers. A quotient is in percent if the result has a percent
    sign. Dollars become cents if the result is in cents. 3 / 1/4 is 3 / (1/4).

    Args:
        tokens: of the text.
        expression: indices of the expression.
        result: index of the result.
    """
    plain = [tokens[i] for i in expression]
    variants = [grouped, plain] if (grouped := _grouped(tokens, expression)) != plain else [plain]
    scales = any(token.kind == "operator" and token.operation in "*/" for token in plain)
    shares = (scales, not scales) if any(token.percent for token in plain) else (True,)
    found = [evaluate(variant, share) for variant in variants for share in shares]
    values = [value for value in found if value is not None]
    if not values or not (tokens[result].percent or _in_cents(tokens, result)):
        return values
    dollars = any("$" in token.text for token in tokens[max(0, expression[0] - 1) : expression[-1]])
    hundredfold = [100 * value for value in values]
    return [*hundredfold, *values] if (scales if tokens[result].percent else dollars) else [*values, *hundredfold]


def _in_cents(tokens: Sequence[Token], result: int) -> bool:
    after = _next(tokens, result + 1, 1)
    return after is not None and _unit(tokens[after]) in ("cent", "penny")


def _grouped(tokens: Sequence[Token], expression: Sequence[int]) -> list[Token]:
    """The expression with brackets around divisors that are fractions; spaces show them, as in 3 / 1/4."""
    found: list[Token] = []
    rest = list(expression)
    while rest:
        texts = [tokens[i].text for i in rest[:4]]
        tight = len(rest) > 3 and rest[3] == rest[1] + 2 and texts[0] == texts[2] == "/"
        if tight and tokens[rest[0] + 1].kind == "space" and tokens[rest[1]].kind == tokens[rest[3]].kind == "number":
            found += [tokens[rest[0]], Token("left", "("), *(tokens[i] for i in rest[1:4]), Token("right", ")")]
            rest = rest[4:]
        else:
            found.append(tokens[rest.pop(0)])
    return found


def _unit(token: Token) -> str:
    """The unit that a word names, in the singular; empty for other words."""
    word = token.text.lower()
    word = PLURALS.get(word, word if word in UNITS else word.removesuffix("s"))
    return word if word in UNITS else ""


def units_agree(tokens: Sequence[Token], expression: Sequence[int], result: int) -> bool:
    """Whether the numbers of an equation have at most one unit of `UNITS` between them."""
    found = set()
    for index in (*expression, result):
        after = _next(tokens, index + 1, 1)
        if tokens[index].kind == "number" and after is not None and tokens[after].kind == "word":
            found.add(_unit(tokens[after]))
    return len(found - {""}) < 2


def index_after_annotation(tokens: Sequence[Token], index: int) -> int | None:
    """Index of the number right after an annotation `<<...=result>>` whose result is at `index`; None without one."""
    close = _next(tokens, index + 1, 1)
    if close is None or tokens[close].kind != "close":
        return None
    after = _next(tokens, close + 1, 1)
    return after if after is not None and tokens[after].kind == "number" else None
