"""GSM8K (Cobbe et al. 2021; GKD paper, section 4.3): arithmetic word problems with worked solutions.

Rows are generated (`gkd_rl.data.embedded.word_problems`), or come from local files or the Hub. Official rows have
`question` and `answer`, a solution with calculator annotations `<<48/2=24>>` that ends in `#### 24`. The official data
have no validation split: the end of the train rows serves as one, and is not trained on.

The paper's prompts have four worked examples before the problem (`shots=4`, section A.5, after Wei et al. 2022), and
its answers end in `The answer is 24.` (`answer_style=words`). Departure from the paper: it trains on chains of thought
of PaLM-540B, which are not published; here the references are the solutions of the data set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from gkd_rl.data.embedded.tokenizer import word_tokenizer
from gkd_rl.data.embedded.word_problems import ANNOTATION, check_difficulty, generate, vocabulary
from gkd_rl.data.row_files import RowProblem
from gkd_rl.data.rows import Row
from gkd_rl.data.task import DataSource
from gkd_rl.errors import DataError
from gkd_rl.types import Example


class Exemplar(NamedTuple):
    """A worked example: problem, reasoning and final answer."""

    question: str
    reasoning: str
    answer: str


# The first four worked examples of Wei et al. 2022 (arXiv 2201.11903, Table 20).
EXEMPLARS = (
    Exemplar(
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have been "
        "21 - 15 = 6.",
        "6",
    ),
    Exemplar(
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5.",
        "5",
    ),
    Exemplar(
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39.",
        "39",
    ),
    Exemplar(
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8.",
        "8",
    ),
)


HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
SENTENCE = re.compile(r"\b[Tt]he answer is:?[ \t]*(\S[^\n]*?)\.?\s*$")


@dataclass(frozen=True)
class Gsm8k(DataSource):
    """Rows of the arithmetic task. Rewards read the column `final_answer`.

    Attributes:
        word_problems: settings of the generator: seed, min_operations, max_operations, distractors.
        validation_size: rows of the validation split; without a validation file the last ones of the train rows.
        question_column: column of the problem.
        answer_column: column of the worked solution.
        prompt_template: the prompt, with {question} in place of the problem.
        shots: worked examples before the problem, in the format of prompt and references, 0 to 4.
        answer_style: end of references: "hashes" is `#### 24`, "words" is `The answer is 24.` in one paragraph.
        strip_annotations: remove calculator annotations from references.
        max_prompt_tokens: longer prompts are truncated.
        max_completion_tokens: longest completion.

    Raises:
        DataError: a setting is out of range.
    """

    FILES: ClassVar[tuple[str, ...]] = ("train", "test")  # validation may be the end of train

    word_problems: dict[str, int]
    question_column: str
    answer_column: str
    prompt_template: str
    shots: int
    answer_style: Literal["hashes", "words"]
    strip_annotations: bool
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_difficulty(**self.word_problems)
        if "{question}" not in self.prompt_template:
            raise DataError(
                f"task.prompt_template={self.prompt_template!r}: it takes a text with {{question}} in it, "
                "e.g. 'Question: {question}'."
            )
        if not 0 <= self.shots <= len(EXEMPLARS):
            raise DataError(f"task.shots={self.shots}: it takes a whole number from 0 to {len(EXEMPLARS)}.")
        if self.answer_style not in ("hashes", "words"):
            raise DataError(f"task.answer_style={self.answer_style}: it takes hashes (#### 24) or words.")

    @property
    def columns(self) -> dict[str, str]:
        """Setting -> name of the column that it selects."""
        return {"task.question_column": self.question_column, "task.answer_column": self.answer_column}

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, its rows cannot be used, or no train row is left beside validation.
        """
        size = self.size(split)
        if self.origin == "embedded":
            problems = generate(split, size, **self.word_problems)
            return [self._example(problem.question, problem.reasoning, str(problem.answer)) for problem in problems]
        if split == "test" or self._has_validation():
            return self.rows.examples(split, self._parse, size)
        rows = self.rows.examples("train", self._parse)
        start = len(rows) - self.validation_size
        if start < 1:
            raise DataError(
                f"task.validation_size={self.validation_size}: validation is taken from the end of the train rows, and "
                f"{self.rows.source('train')} has {len(rows)}; task.validation_size takes a whole number below that, "
                "or give task.data_files.validation."
            )
        return rows[: min(start, size)] if split == "train" else rows[start:]

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """One token for each word of the generated problems; None for other data, which need the checkpoint's."""
        return word_tokenizer(vocabulary()) if self.origin == "embedded" else None

    def _has_validation(self) -> bool:
        return self.origin == "files" and "validation" in (self.data_files or {})

    def _parse(self, row: Row) -> Example:
        question, solution = row.text(self.question_column), row.text(self.answer_column)
        final = HASHES.search(solution) or SENTENCE.search(solution)
        if final is None:
            raise RowProblem(f"column {self.answer_column!r} has no final answer like '#### 72'")
        return self._example(question, solution[: final.start()], final[1].strip())

    def _example(self, question: str, reasoning: str, answer: str) -> Example:
        if self.strip_annotations:
            reasoning = ANNOTATION.sub("", reasoning)
        return Example(
            prompt=self._shots_text + self._prompt(question),
            reference=self._solution(reasoning, answer),
            columns={"final_answer": answer},
        )

    @cached_property
    def _shots_text(self) -> str:
        """The worked examples before the problem."""
        return "".join(
            f"{self._prompt(one.question)} {self._solution(one.reasoning, one.answer)}\n\n"
            for one in EXEMPLARS[: self.shots]
        )

    def _prompt(self, question: str) -> str:
        return self.prompt_template.replace("{question}", question)

    def _solution(self, reasoning: str, answer: str) -> str:
        """A solution in the format of `answer_style`."""
        lines = [line.strip() for line in reasoning.split("\n") if line.strip()]
        if self.answer_style == "hashes":
            return "\n".join([*lines, f"#### {answer}"])
        sentences = [line if line.endswith((".", "!", "?")) else f"{line}." for line in lines]
        return " ".join([*sentences, f"The answer is {answer}."])
