"""Metrics of an evaluation beside ROUGE: copying, the judge, kinds of rows, failed rewards, corpus scores, beams."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import MakeExamples, MakeModel, MakePrompts, MakeRollout, codec_of, config_of, configured, models_of
from transformers import PreTrainedTokenizerFast

from gkd_rl.config import Config
from gkd_rl.config.choices import Metric
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError
from gkd_rl.evaluation.evaluator import Evaluation
from gkd_rl.generation.sampler import Beams, Sampler
from gkd_rl.generation.text_statistics import copy_rate
from gkd_rl.losses.objective import StepTotals
from gkd_rl.pipeline.build_trainer import build_evaluator, build_supervised_trainer
from gkd_rl.training.step_metrics import rollout_metrics
from gkd_rl.types import Example
from reward_models.composite import Composite, Scores
from reward_models.guard import Guard

QUICK = (
    "reward=faithfulness",
    "evaluation.batch_size=4",
    "evaluation.rollout_prompts=3",
    "evaluation.self_bleu_prompts=0",
)


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def twice(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [2.0 * len(text) + len(prompt) for prompt, text in zip(prompts, completions, strict=True)]


def evaluated(
    reward: Composite, examples: list[Example], model: Any, tokenizer: PreTrainedTokenizerFast, *overrides: str
) -> Evaluation:
    config = config_of(*QUICK, *overrides)
    evaluator = build_evaluator(config, models_of(model, None, codec_of("t5", tokenizer)), reward, examples)
    return evaluator.evaluate(model, "student")


@pytest.mark.parametrize(
    ("text", "source", "n", "expected"),
    [
        ("a b c d", "x a b y c d", 2, 2 / 3),  # a b and c d, not b c
        ("a b c", "a b c", 2, 1.0),
        ("c b a", "a b c", 2, 0.0),
        ("a b a b", "a b", 2, 2 / 3),
        ("a b c", "c b a", 1, 1.0),
        ("a", "a", 2, 0.0),
        ("", "a b", 2, 0.0),
    ],
)
def test_the_share_of_copied_ngrams(text: str, source: str, n: int, expected: float) -> None:
    assert copy_rate(text, source, n) == pytest.approx(expected)
    with pytest.raises(ValueError, match="n=0: the n of an n-gram is an integer >= 1"):
        copy_rate(text, source, 0)


def test_the_judge_minus_the_reward(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    model, examples = make_model(few_words, seed=3, lively=True), make_examples(6)
    reward = Composite({"paid": length, "held_out": twice}, {"paid": 0.5, "held_out": 0.0})
    found = evaluated(reward, examples, model, few_words, "reward.judge=held_out")
    texts, values = found.completions, found.values
    paid = np.array([0.5 * len(text) for text in texts])
    judged = np.array([2.0 * len(text) + len(row.prompt) for text, row in zip(texts, examples, strict=True)])
    assert values["reward"] == pytest.approx(paid)
    assert values["judge_minus_reward"] == pytest.approx(judged - paid)
    assert len(values["sampled/judge_minus_reward"]) == 3
    copied = [copy_rate(text, row.prompt) for text, row in zip(texts, examples, strict=True)]
    assert values["copy_rate"] == pytest.approx(copied)
    assert "judge_minus_reward" not in evaluated(reward, examples, model, few_words, "reward.judge=null").values


def test_the_reward_of_each_kind_of_row(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    model = make_model(few_words, seed=3, lively=True)
    kinds = ["odd", "even", "odd", "odd", "even"]
    examples = [
        dataclasses.replace(row, columns={"kind": kind}) for row, kind in zip(make_examples(5), kinds, strict=True)
    ]
    reward = Composite({"paid": twice}, {"paid": 1.0})
    values = evaluated(reward, examples, model, few_words).values
    assert values["reward/odd"] == pytest.approx(values["reward"][[0, 2, 3]])
    assert values["reward/even"] == pytest.approx(values["reward"][[1, 4]])
    assert len(set(values["reward"])) > 2
    one = [dataclasses.replace(row, columns={"kind": "odd"}) for row in examples]
    assert "reward/odd" not in evaluated(reward, one, model, few_words).values, "it is the reward"


def test_failed_rewards_are_counted_in_evaluations_and_steps(
    make_model: MakeModel, make_examples: MakeExamples, make_prompts: MakePrompts, make_rollout: MakeRollout,
    few_words: PreTrainedTokenizerFast,
) -> None:  # fmt: skip
    def fails_at_length_1(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [None if len(prompt) == 1 else 1.0 for prompt in prompts]

    model, examples = make_model(few_words, seed=3, lively=True), make_examples(6)
    expected = [float(len(row.prompt) == 1) for row in examples]
    examples[2] = Example("a", "b", {"document": "a"})
    expected[2] = 1.0
    reward = Composite({"x": fails_at_length_1}, {"x": 1.0}, Guard(on_failure="replace", failure_value=-3.0))
    values = evaluated(reward, examples, model, few_words).values
    assert values["reward_failed"].tolist() == expected
    assert values["reward"].tolist() == [-3.0 if failed else 1.0 for failed in expected]

    rollout = make_rollout(make_prompts([[3], [4]]), [[3, 1], [4, 1]])
    totals = StepTotals(tokens=4, sequences=2)

    def metrics(failed: list[bool] | None) -> dict[str, float]:
        return rollout_metrics(rollout, totals, Scores([1.0, 2.0], {"x": [1.0, 2.0]}, failed), teacher_scored=False)

    assert metrics([True, False])["reward/failed"] == 0.5 and "reward/failed" not in metrics(None)


def test_corpus_scores_are_computed_if_selected(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    model, examples = make_model(few_words, seed=3, lively=True), make_examples(6)
    reward = Composite({"paid": length}, {"paid": 1.0})
    both = evaluated(reward, examples, model, few_words, "evaluation.metrics=[bleu,rouge]")
    assert both.corpus.keys() == {"bleu", "chrf"} and "rouge2" in both.values
    none = evaluated(reward, examples, model, few_words, "evaluation.metrics=[]")
    assert not none.corpus and "rouge2" not in none.values
    changes, levels = both.changes(both, 100, 0), both.estimates(100, 0)
    assert (changes["bleu"].mean, changes["rouge2"].mean) == (0.0, 0.0) and changes.keys() == levels.keys()
    assert [metric.value for metric in Metric] == ["rouge", "bleu"]


def test_the_best_beams_are_measured(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    model, examples = make_model(few_words, seed=5, lively=True), make_examples(6)
    reward = Composite({"paid": length}, {"paid": 1.0})
    searched = evaluated(reward, examples, model, few_words, "evaluation.beams=4", "evaluation.length_penalty=0.6")
    codec = codec_of("t5", few_words)
    assert searched.completions == Sampler(codec, Beams(4, 0.6)).sample(model, codec.prompts(examples), 1, None).texts
    assert searched.completions != evaluated(reward, examples, model, few_words).completions


def test_a_judge_must_have_weight_0() -> None:
    def problems(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            validate(configured(*overrides))
        return str(caught.value)

    validate(configured("reward=faithfulness", "reward.judge=supported_share"))
    paid = problems("reward=faithfulness", "reward.judge=all_supported")
    assert "reward.judge=all_supported" in paid and "of weight 0: supported_share" in paid
    assert "reward.judge=nobody" in problems("reward=faithfulness", "reward.judge=nobody")


@pytest.mark.parametrize("reward", ["faithfulness", "entailment_news"])
def test_a_reward_of_generated_text_is_refused_for_other_text(reward: str) -> None:
    data = ["task.data=files", "task.data_files={train: a.jsonl, validation: b.jsonl, test: c.jsonl}"]
    with pytest.raises(ConfigError, match=r"checks generated text only.*a\.jsonl.*choose another reward"):
        validate(configured(*data, f"reward={reward}"))
    validate(configured(*data, "reward=rouge"))


def test_a_supervised_stage_trains_on_the_first_rows_only(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    config: Config = configured("student.sft.batch_size=4", "student.sft.train_rows=5", "student.sft.steps=30")
    model, codec, examples = make_model(few_words), codec_of("t5", few_words), make_examples(20)
    trainer = build_supervised_trainer(model, config.student, codec, examples, Accelerator(cpu=True))
    seen = {row for step in range(30) for row in trainer.stream.rows(step)}
    assert seen == set(range(5))
