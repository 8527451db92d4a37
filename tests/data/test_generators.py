"""Generators other than the news: every row is right, checkers are exact, splits are disjoint."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from gkd_rl.data.embedded import german, instructions, walk, word_problems
from gkd_rl.data.embedded.german import COUNTRIES, LANGUAGES, number_words
from gkd_rl.data.embedded.splits import SPLITS, distinct
from gkd_rl.data.embedded.tokenizer import subword_tokenizer, word_tokenizer
from gkd_rl.data.embedded.walk import MOVES, WalkChecker, shortest
from gkd_rl.errors import DataError
from reward_models.text.answers import ExactMatch
from reward_models.text.form import Verifiable

GENERATORS: dict[str, Callable[[str, int, int], list[Any]]] = {
    "word problems": lambda split, size, seed: word_problems.generate(split, size, seed, 1, 4, 2),
    "walks": lambda split, size, seed: walk.generate(split, size, seed, 6),
    "translations": german.generate,
    "instructions": instructions.generate,
}
PROMPT = {"word problems": "question", "walks": "prompt", "translations": "english", "instructions": "prompt"}


@pytest.mark.parametrize("name", list(GENERATORS))
def test_rows_are_distinct_repeatable_and_of_one_split(name: str) -> None:
    generate, prompt = GENERATORS[name], PROMPT[name]
    rows = {split: generate(split, 300, 7) for split in SPLITS}
    assert rows["train"] == generate("train", 300, 7)
    assert rows["train"][:100] == generate("train", 100, 7), "a longer list begins with the shorter one"
    assert rows["train"] != generate("train", 300, 8)
    texts = {split: {getattr(row, prompt) for row in items} for split, items in rows.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not texts[one] & texts[other]


def test_a_generator_without_further_rows_raises() -> None:
    with pytest.raises(ValueError, match=r"has [0-9]+ distinct train rows of this kind, and 50 are needed"):
        distinct(lambda rng: (str(rng.randrange(9)), lambda: 1), lambda item: item, "train", 50, 0)


def test_word_problems_add_up() -> None:
    problems = word_problems.generate("train", 2000, 3, 1, 4, 1)
    for problem in problems:
        value = int(problem.question.split()[2])
        for left, sign, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = <<[^>]+>>(\d+) \.", problem.solution):
            assert int(left) == value
            value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[sign](
                value, int(right)
            )
            assert value == int(result) and (sign != "/" or int(left) % int(right) == 0)
        assert value == problem.answer and 1 <= value <= 99
    assert {problem.solution.count("=<<") or problem.solution.count(" = ") for problem in problems} == {1, 2, 3, 4}
    texts, answers = [problem.plain_solution for problem in problems], [str(problem.answer) for problem in problems]
    for otherwise in ("nothing", "last_number"):
        reward = ExactMatch(otherwise)
        assert set(reward(texts, texts, final_answer=answers)) == {1.0}


@pytest.mark.parametrize("largest", [10, 20])
def test_no_number_of_a_word_problem_is_above_the_largest(largest: int) -> None:
    problems = word_problems.generate("train", 300, 0, 1, 4, 1, largest)
    numbers = {int(n) for one in problems for n in re.findall(r"\d+", f"{one.question} {one.plain_solution}")}
    assert numbers <= set(range(1, largest + 1)) and max(numbers) == largest


def test_the_text_of_a_word_problem_has_its_steps() -> None:
    """An independent parser of the sentences, which does not use the solution."""
    for problem in word_problems.generate("test", 500, 1, 1, 4, 3):
        name, total = problem.question.split()[0], 0
        for sentence in problem.question.removesuffix(" ?").split(" . "):
            number = int((re.findall(r"\d+", sentence) or ["0"])[0])
            if sentence.startswith(f"{name} has"):
                total = number
            elif sentence.startswith(f"{name} "):
                verb = sentence.split()[1]
                total = {
                    "buys": total + number, "finds": total + number, "gives": total - number, "loses": total - number,
                    "sells": total - number, "doubles": total * 2, "triples": total * 3,
                    "keeps": total // (2 if "half" in sentence else 3),
                }[verb]  # fmt: skip
            elif f" gives {name} " in sentence:
                total += number
        assert total == problem.answer, problem


@pytest.mark.parametrize(
    ("settings", "message"),
    [((0, 0, 2, 0), "1 <= min_operations"), ((0, 3, 2, 0), "min_operations=3, max_operations=2"),
     ((0, 1, 5, 0), "max_operations <= 4"), ((0, 1, 2, 4), "distractors=4: it takes 0 to 3"),
     ((-1, 1, 2, 0), "seed=-1"), ((0, 1, 2, 0, 9), "largest=9: it takes 10 to 99"),
     ((0, 1, 2, 0, 100), "largest=100: it takes 10 to 99")],
)  # fmt: skip
def test_difficulties_that_cannot_be(settings: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        word_problems.check_difficulty(*settings)


def test_references_of_walks_arrive_and_are_shortest() -> None:
    checker = WalkChecker()
    for one in walk.generate("train", 500, 2, 6):
        verdict = checker(one.prompt, one.path)
        assert (verdict.arrives, verdict.progress) == (1.0, 1.0)
    for start in range(40):
        for target in range(40):
            assert start + sum(MOVES[move] for move in shortest(start, target)) == target
    assert shortest(0, 39) == ("+12", "+12", "+5", "+5", "+5")


def test_another_path_than_the_reference_counts() -> None:
    checker, prompt = WalkChecker(), "from 3 to 5 4 :"
    assert checker(prompt, "+1 4 +1 5 hit -1 4 hit").arrives == 1.0
    assert checker(prompt, "+12 15 -12 3 +1 4 +1 5 hit -1 4 hit").arrives == 1.0, "a detour"


@pytest.mark.parametrize(
    ("answer", "progress"),
    [
        ("", 0.0),
        ("+1 5 +1 6", 0.0),  # a wrong value
        ("-5 -2 hit", 0.0),  # out of range
        ("+1 4 hit", 0.0),  # no target
        ("+1 4 +1 5 hit", 0.5),
        ("+1 4 +1 5 hit -1 4", 0.5),  # not hit
        ("+1 4 +1 5 hit -1 4 hit hit", 1.0),  # too much
        ("+1 4 +1 5 hit -1 4 hit +1 5", 1.0),  # walks on
        ("+1 4 +1 5 hit jump 4 hit", 0.5),
        ("+1 4 +1 5 hit -1", 0.5),
    ],
)
def test_wrong_walks(answer: str, progress: float) -> None:
    verdict = WalkChecker()("from 3 to 5 4 :", answer)
    assert (verdict.arrives, verdict.progress) == (0.0, progress)


def test_a_prompt_that_is_no_walk() -> None:
    with pytest.raises(ValueError, match="is not the prompt of a walk"):
        WalkChecker()("go home", "+1 4")


def test_translations_are_those_of_the_libraries() -> None:
    rows = german.generate("train", 2000, 0)
    assert all(row.german == row.accepted[0] for row in rows)
    assert len({row.german for row in rows}) > 1990
    by_english = {row.english: row for row in rows}
    assert len(by_english) == 2000
    assert number_words(312).german == ("dreihundertzwölf", "312")
    assert number_words(117).german == ("einhundertsiebzehn", "hundertsiebzehn", "117")
    dates = [row for row in rows if " on " in row.english and "pays" in row.english]
    assert all(re.search(r" am \d{1,2}\. [A-ZÄ][a-zä]+ \d{4} ", row.german) for row in dates)
    assert all(re.search(r" am \d\d\.\d\d\.\d{4} ", row.accepted[1]) for row in dates)
    assert not any("{" in text or "  " in text for row in rows for text in (row.english, *row.accepted))


def test_no_country_or_language_needs_an_article() -> None:
    """German names of some countries have an article, which the frames do not."""
    with_article = {"CH", "TR", "US", "NL", "SK", "UA", "IR", "IQ", "SD", "CZ", "GB", "MN", "DO", "AE", "CD", "PH"}
    assert not with_article & set(COUNTRIES)
    assert len(set(COUNTRIES)) == len(COUNTRIES) and len(set(LANGUAGES)) == len(LANGUAGES)


def test_answers_to_instructions_pass_their_checks_and_others_do_not() -> None:
    rows = instructions.generate("train", 1000, 5)
    reward = Verifiable("all")
    checks = [row.checks for row in rows]
    assert set(reward([row.prompt for row in rows], [row.answer for row in rows], instructions=checks)) == {1.0}
    assert set(reward([row.prompt for row in rows], [""] * len(rows), instructions=checks)) == {0.0}
    answers = [row.answer for row in rows]
    random.Random(0).shuffle(answers)
    assert sum(reward([row.prompt for row in rows], answers, instructions=checks)) < 20


def test_words_have_an_id_each() -> None:
    tokenizer = word_tokenizer(word_problems.vocabulary())
    for problem in word_problems.generate("train", 500, 0, 1, 4, 3):
        for text in (problem.question, problem.plain_solution):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_subwords_decode_to_the_encoded_text_and_are_deterministic() -> None:
    rows = german.generate("train", 1500, 0)
    lists = [row.answer for row in instructions.generate("train", 500, 0)]
    texts = [text for row in rows for text in (row.english, row.german)] + lists
    tokenizer = subword_tokenizer(texts, 400, split_digits=True)
    assert (
        tokenizer.backend_tokenizer.to_str()
        == subword_tokenizer(texts, 400, split_digits=True).backend_tokenizer.to_str()
    )
    assert len(tokenizer) <= 400
    for row in german.generate("test", 200, 0):
        ids = tokenizer(row.german)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == row.german
    assert [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in lists] == lists
    pieces = tokenizer.tokenize("Am 25. Mai 2017")
    assert not any(len(re.findall(r"\d", piece)) > 1 for piece in pieces), "digits stand alone"
