"""Chat templates: rendering, truncation, the end of an answer, and a teacher with a chat template of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_tokenizers import BOS, BOT, END, TEMPLATE, TURN, USER, tokenizer_of
from conftest import MakeExamples, MakeModel, config_of, models_of

from gkd_rl.errors import DataError, ModelError
from gkd_rl.generation.codec import ChatTemplate, TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import save_model
from gkd_rl.pipeline.build import build_task, resolve_models
from gkd_rl.pipeline.build_trainer import build_evaluator
from gkd_rl.training.teacher_data import generate_teacher_samples
from gkd_rl.types import Example, Projection

CPU = torch.device("cpu")
HEAD, TAIL = [BOS, USER], [TURN, BOT]


def codec_of(max_tokens: int = 12, template: str | None = TEMPLATE, chat: bool = True) -> TextCodec:
    tokenizer = tokenizer_of(template)
    rendering = ChatTemplate(tokenizer, "student.chat") if chat else None
    return TextCodec(tokenizer, max_tokens, 5, CPU, decoder_only=True, chat=rendering)


def ids_of(codec: TextCodec, prompt: str) -> list[int]:
    prompts = codec.prompts([Example(prompt, "", {})])
    return prompts.ids_PS[0, prompts.mask_PS[0]].tolist()


def test_the_prompt_is_a_users_turn_as_the_tokenizer_renders_it() -> None:
    codec = codec_of()
    assert ids_of(codec, "a b") == [*HEAD, 3, 4, *TAIL]  # one start token: the template's
    tokenizer: Any = codec.tokenizer
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "c d"}], add_generation_prompt=True)
    assert ids_of(codec, "c d") == rendered["input_ids"]


def test_a_long_prompt_is_truncated_inside_the_users_text() -> None:
    for max_tokens in (5, 6, 7, 8):
        ids = ids_of(codec_of(max_tokens), "a b c d e a b c d e")
        assert ids == [*HEAD, *[3, 4, 5, 6][: max_tokens - 4], *TAIL]
    assert ids_of(codec_of(4), "a b") == [*HEAD, *TAIL]
    with pytest.raises(DataError, match=r"max_prompt_tokens=3 is less than the 4 tokens of the chat template alone"):
        ids_of(codec_of(3), "a b")


def test_an_answer_ends_with_its_turn() -> None:
    codec = codec_of()
    assert codec.eos_ids == (TURN, END)
    rollout = codec.references([Example("a", "b c", {}), Example("a", "d d d d d d d", {})])
    assert rollout.ids_BT.tolist() == [[4, 5, TURN, 2, 2], [6, 6, 6, 6, TURN]]
    assert rollout.truncated_B.tolist() == [False, False]
    plain = TEMPLATE.replace("<turn>", "</s>")
    assert codec_of(template=plain).eos_ids == (END,)
    assert codec_of(template=TEMPLATE.replace("<turn>", "")).eos_ids == (END,)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "student.chat=true: the tokenizer has no chat template. Set student.chat=false"),
        (
            "{{ raise_exception('no such role') }}",
            "student.chat=true: the tokenizer's chat template fails (no such role)",
        ),
    ],
)
def test_a_tokenizer_without_a_working_template_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        codec_of(template=template)
    assert str(caught.value).startswith(message)


# A teacher that renders prompts with its own template


@pytest.fixture
def teacher(make_model: MakeModel) -> HiddenStateModel:
    model = make_model(tokenizer_of(), seed=5, lively=True, model_type="llama").eval()
    model.codec = codec_of()
    return model


def without_codec(teacher: HiddenStateModel) -> HiddenStateModel:
    """The same weights, without a rendering of prompts."""
    return HiddenStateModel(teacher.model)


def test_a_model_with_its_own_codec_gets_its_own_rendering(
    teacher: HiddenStateModel, make_examples: MakeExamples
) -> None:
    run, own, examples = codec_of(chat=False), codec_of(), make_examples(5)
    rollout = replace(run.references(examples), prompts=run.prompts(examples))
    rendered = replace(rollout, prompts=own.prompts(examples))
    assert rendered.prompts.ids_PS.shape != rollout.prompts.ids_PS.shape
    torch.testing.assert_close(teacher(rollout), without_codec(teacher)(rendered), rtol=0, atol=0)
    shuffled, expected = (one.with_shuffled_prompts().rows(torch.arange(1, 4)) for one in (rollout, rendered))
    torch.testing.assert_close(teacher(shuffled), without_codec(teacher)(expected), rtol=1e-5, atol=1e-5)
    assert (teacher(rollout) - without_codec(teacher)(rollout)).abs().max() > 0.1


def test_its_rollouts_and_samples_are_conditioned_on_its_own_rendering(
    teacher: HiddenStateModel, make_examples: MakeExamples, tmp_path: Path
) -> None:
    run, own, examples = codec_of(chat=False), codec_of(), make_examples(6)
    run.eos_ids = own.eos_ids
    sampled = Sampler(run, GREEDY).sample(teacher, run.prompts(examples), 2, None)
    expected = Sampler(own, GREEDY).sample(without_codec(teacher), own.prompts(examples), 2, None)
    assert sampled.ids_BT.tolist() == expected.ids_BT.tolist()
    assert sampled.prompts.ids_PS.tolist() == run.prompts(examples).ids_PS.tolist()  # the student's rendering
    samples = generate_teacher_samples(tmp_path / "one", teacher, Sampler(run, Sampling()), examples, 3)
    assert samples == generate_teacher_samples(
        tmp_path / "two", without_codec(teacher), Sampler(own, Sampling()), examples, 3
    )


@torch.no_grad()
def test_evaluation_uses_its_own_rendering(
    teacher: HiddenStateModel, make_model: MakeModel, make_examples: MakeExamples
) -> None:
    student = make_model(tokenizer_of(), seed=6, lively=True, model_type="llama")
    run, config, examples = codec_of(chat=False), config_of("evaluation.self_bleu_prompts=0"), make_examples(6)
    rollouts = [Sampler(run, GREEDY).sample(student.eval(), run.prompts(examples), 1, None)]
    rendered = [replace(rollouts[0], prompts=codec_of().prompts(examples))]
    evaluator = build_evaluator(config, models_of(student, teacher, run), None, examples)
    heads = {"reverse_kl": evaluator.heads["reverse_kl"]}
    found = evaluator._divergences(student, teacher, heads, rollouts)["sampled/reverse_kl"]
    own_side, other_side = (
        Projection(model(rollout), model.head())
        for model, rollout in ((student, rollouts[0]), (without_codec(teacher), rendered[0]))
    )
    terms = heads["reverse_kl"](own_side, other_side, rollouts[0].ids_BT, rollouts[0].mask_BT)
    assert terms.divergence_BT is not None
    expected = terms.divergence_BT.sum(1) / rollouts[0].mask_BT.sum(1)
    assert [row.mean() for row in found] == pytest.approx(expected.numpy(), rel=1e-4)
    assert np.concatenate(found) == pytest.approx(terms.divergence_BT[rollouts[0].mask_BT].numpy(), rel=1e-4)


def test_only_a_teacher_with_another_rendering_has_its_own_codec(make_model: MakeModel, tmp_path: Path) -> None:
    other = TEMPLATE.replace("bot {%", "bot a {%")
    for name, template in (("one", TEMPLATE), ("two", other)):
        save_model(tmp_path / name, make_model(tokenizer_of(), model_type="llama").model, tokenizer_of(template), "")
    config, task = config_of(), build_task(config_of())

    def own(student_chat: bool, teacher_chat: bool, folder: str = "one") -> TextCodec | None:
        assert config.teacher is not None
        given: dict[str, Any] = {"architecture": None, "sft": None}
        student = replace(config.student, path=str(tmp_path / "one"), chat=student_chat, **given)
        teacher = replace(config.teacher, path=str(tmp_path / folder), chat=teacher_chat, **given)
        resolved = resolve_models(replace(config, student=student, teacher=teacher), task, CPU)
        codec, other = resolved.codec, resolved.teacher_codec
        assert codec.eos_ids[0] == (TURN if student_chat else END)
        assert other is None or other.eos_ids == codec.eos_ids
        return other

    assert own(False, False) is None and own(True, True) is None
    for found in (own(True, True, "two"), own(False, True), own(False, True, "two")):
        assert found is not None and found.chat is not None
    with pytest.raises(ModelError, match=f"student ends sequences with id {TURN}, teacher with {END}"):
        own(True, False)
