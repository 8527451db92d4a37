"""The calculator: equations in free text, what is no equation, slips that are planted, and texts made to break it."""

from __future__ import annotations

import random
import re
import time
from fractions import Fraction

import pytest

from reward_models.text.answers import answer_of
from reward_models.text.arithmetic import evaluate, format_number, tokens_of
from reward_models.text.equations import recalculate

SOLUTIONS = [  # of the shape of the data set's
    "She sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    "It seats 0.75*60,000=<<0.75*60000=45000>>45,000.\nAnd 45,000-5,003=<<45000-5003=39997>>39,997.\n#### 39,997",
    "Tom pays 4 x $1.50 = $<<4*1.5=6>>6.\nSo $30 - $6 = $<<30-6=24>>24.\nThat is 24/8 = <<24/8=3>>3 each.\n#### 3",
    "There are 13 marbles + 17 marbles = <<13+17=30>>30 marbles.\nHalf are red, 30 / 2 = <<30/2=15>>15.\n#### 15",
    "20% of $90 = $<<20*.01*90=18>>18, so $90 - $18 = $<<90-18=72>>72 is left.\n#### 72",
]


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        ("2 + 3 * 4 = 20", "2 + 3 * 4 = 14"),
        ("(2 + 3) * 4 = 14 in all", "(2 + 3) * 4 = 20 in all"),
        ("$1,200 / 3 = $500.00", "$1,200 / 3 = $400"),
        ("999 + 1 = 1,001", "999 + 1 = 1,000"),
        ("3 apples + 2 ripe pears = 6 fruits.", "3 apples + 2 ripe pears = 5 fruits."),
        ("12 − 5 = 6 and 4 × 9 ÷ 3 = 11", "12 − 5 = 7 and 4 × 9 ÷ 3 = 12"),
        ("3 times 4 plus 1 = 12", "3 times 4 plus 1 = 13"),
        ("6 divided by 4 = 2.5", "6 divided by 4 = 1.5"),
        ("5 - 8 = 3", "5 - 8 = -3"),
        ("10 / 3 = 4.21", "10 / 3 = 3.33"),
        ("25% of 80 = 25", "25% of 80 = 20"),
        ("100% - 30% = 60%", "100% - 30% = 70%"),
        ("1 / 4 = 20%", "1 / 4 = 25%"),
        ("$0.25 x 10 = 260 cents", "$0.25 x 10 = 250 cents"),
        ("3 trays * 42 eggs/tray = 125 eggs", "3 trays * 42 eggs/tray = 126 eggs"),
        ("60 / 3/4 = 90", "60 / 3/4 = 80"),
        ("1 + 1 = 1 + 2 = 4", "1 + 1 = 1 + 2 = 3"),
        ("a total of 5 * 3 = 16 times a year", "a total of 5 * 3 = 15 times a year"),
        ("he has <<5*3=16>>16 left", "he has <<5*3=15>>15 left"),
        ("of 16 men, <<5*3=16>>16 go", "of 16 men, <<5*3=15>>15 go"),
        ("5*3 = $<<5*3=16>>16", "5*3 = $<<5*3=15>>15"),
    ],
)
def test_results_are_corrected(text: str, corrected: str) -> None:
    assert recalculate(text) == corrected
    assert recalculate(corrected) == corrected


@pytest.mark.parametrize(
    "text",
    [
        "10 / 3 = 3.3, 10/3=3.33, 10 / 3 = 3 and 10 / 4 = 3, rounded or cut at their last digit",
        "25% of 80 = 20; 10% + 20% = 30%; 1/4 = 25%; 50% * 10 = 5",
        "2x + 5 = 16, 3 + y = 9, 8 x Y = 72, 3n = 12, so 3*30 = 30 + M",
        "7 = 3 + 5",
        "2 ^ 3 + 1 = 10, 2**3 = 9, √9 + 1 = 5, 3! + 1 = 8",
        "2 1/2 + 1 = 4, 1 and 1/4 + 1 = 3, 14, 400 / 80 = 181 and 16,0000/10=16001",
        "1 hour + 20 minutes = 80 minutes; 5 feet + 6 inches = 66 inches; 1 hour 30 minutes + 5 minutes = 95 minutes",
        "twice 4 + 2 = 10, and half of 10 + 4 = 9",
        "at 7:50 + 30 = 8:20, 0900-0130 = 0730, 20 / 240 = 8.333...%, 600 x 30 = 18 000",
        "7 adults + Shonda (1) + 2 kids = 10",
        "1 / 0 = 3, 5 - = 4, = 4, 3 + 2) = 6, + 2 = 5",
        "So - as 3 of us know - it = 3, and 3-year = 5",
        "",
    ],
)
def test_what_is_no_plain_arithmetic_is_left(text: str) -> None:
    assert recalculate(text) == text


def test_a_slip_is_carried_on() -> None:
    text = "48/2 = 25 clips. These 25 and 48 are 48+25 = 73. 73 - 3 = 70. The answer is 70."
    assert recalculate(text) == "48/2 = 24 clips. These 24 and 48 are 48+24 = 72. 72 - 3 = 69. The answer is 69."
    # exactly, although 3.33 is what stands there
    assert recalculate("10 / 3 = 4.21. 4.21 * 3 = 12.63. #### 12.63") == "10 / 3 = 3.33. 3.33 * 3 = 10. #### 10"
    # 5 may be the given one, but the answer is the result
    assert recalculate("5 * 3 = 5. 5 + 1 = 6. #### 5") == "5 * 3 = 15. 5 + 1 = 6. #### 15"
    # another equation gives the wrong number rightly
    assert recalculate("3 + 3 = 7. 5 + 2 = 7. 7 * 2 = 14") == "3 + 3 = 6. 5 + 2 = 7. 7 * 2 = 14"


def planted(solution: str, which: int, wrong: str, follow: bool) -> str:
    """The solution with one result replaced: in its equation alone, or wherever it is used later too."""
    result = r"=([0-9.,]+)>>([0-9.,]*[0-9])|= ?\$?([0-9][0-9.,]*[0-9]|[0-9])"
    match = list(re.finditer(result, solution))[which]
    number = match[2] or match[3]
    head, tail = solution[: match.start()], solution[match.start() :]
    pattern = rf"(?<![0-9.,]){re.escape(number)}(?![0-9]|[.,][0-9])"
    return head + re.sub(pattern, wrong, tail, count=0 if follow else len(re.findall(pattern, match[0])))


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("annotated", [False, True])
def test_planted_slips_are_mended(annotated: bool, follow: bool) -> None:
    generator = random.Random(0)
    for solution in SOLUTIONS:
        text = solution if annotated else re.sub("<<[^<>]*>>", "", solution)
        truth = answer_of(text, "nothing")
        assert recalculate(text) == text
        for which in range(len(re.findall("<<", solution))):
            for _ in range(5):
                slip = planted(text, which, str(generator.randrange(101, 9999)) + ".37", follow)
                assert slip != text
                assert answer_of(recalculate(slip), "nothing") == truth, (slip, recalculate(slip))


def test_random_chains_come_out_as_exact_arithmetic_has_them() -> None:
    generator = random.Random(1)
    for _ in range(200):
        value, lines = Fraction(generator.randrange(2, 50)), []
        for _ in range(generator.randrange(1, 6)):
            number, operator = generator.randrange(2, 12), generator.choice("+-*")
            after = {"+": value + number, "-": value - number, "*": value * number}[operator]
            if after <= 0:
                continue
            lines.append(f"{value} {operator} {number} = {after} things.")
            value = after
        assert recalculate("\n".join(lines)) == "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 5000 + " + 1 = 3",
        "(" * 5000 + "1" + ")" * 5000 + " + 1 = 3",
        "1" + " + 1" * 5000 + " = 3",
        "- " * 5000 + "1 = 3",
        "<<" * 3000 + "= 3 " * 2000,
        "a " * 3000 + "= 3 " * 1000,
        "\n".join(f"{'*'.join([f'{i}.37'] * 20)}/7 = {i + 1}.37" for i in range(60)),  # each carried to the next
        "__import__('os').system('x') = 3, 9**9**9**9 = 3",
    ],
)
def test_texts_made_to_break_it_end_soon(text: str) -> None:
    start = time.process_time()
    recalculate(text)
    assert time.process_time() - start < 2


def test_the_evaluator() -> None:
    for text, value in (("2-3-4", -5), ("8/4/2", 1), ("-(2+3)*-2", 10), ("50%*10", 5), ("1,000/3*3", 1000)):
        assert evaluate([token for token in tokens_of(text) if token.kind != "space"], True) == value
    for text in ("2+", "(2", "2)", "", "2 2", "1/0", "=", "07+1"):
        assert evaluate([token for token in tokens_of(text) if token.kind != "space"], True) is None
    formatted = {"5": "5", "-0.5": "-0.5", "1/3": "0.33", "1/8": "0.125"}
    assert {one: format_number(Fraction(one), 2, False) for one in formatted} == formatted
    assert format_number(Fraction(-1234567, 2), 2, True) == "-617,283.5"
