"""Decoding with a static cache: the tokens of a growing cache, few compiled shapes, no state of earlier rollouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from conftest import KINDS, MakeExamples, MakeModel, MakeStudent, MakeTrainer, codec_of, configured, essential
from decoder_only_kinds import KINDS as DECODER_ONLY_KINDS
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter
from transformers import PreTrainedTokenizerFast

from gkd_rl.errors import ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.generation.static_decoding import UNSUPPORTED_TYPES, StaticDecoding, compiler_for
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import DECODER_ONLY, ENCODER_DECODERS, HiddenStateModel
from gkd_rl.pipeline.build import build_task, resolve_models
from gkd_rl.pipeline.build_trainer import check_generation
from gkd_rl.pipeline.memory import plan_memory
from gkd_rl.planning.memory_plan import Lengths
from gkd_rl.planning.model_memory import static_bytes
from gkd_rl.types import PromptBatch, Rollout

DEEP: dict[str, Any] = {"num_layers": 2, "num_decoder_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    **DECODER_ONLY_KINDS,
    "t5": DEEP,
    "mt5": DEEP,
    "umt5": DEEP,
    "bart": {"encoder_layers": 2, "decoder_layers": 2},
    "mbart": {"encoder_layers": 2, "decoder_layers": 2},
}
ESSENTIAL = ("llama", "qwen2, window", "gemma3_text, window", "t5", "bart")
MAX_TOKENS = 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def static_of(codec: TextCodec, compiler: Callable[..., Any] | None = None) -> StaticDecoding:
    return StaticDecoding(codec.max_prompt_tokens, codec.max_completion_tokens, compiler)


@pytest.mark.parametrize("kind", essential(MODELS, *ESSENTIAL))
def test_tokens_are_those_of_a_growing_cache(
    kind: str, make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """Every supported type, with sliding windows; the second rollout uses the buffers of the first."""
    name = kind.partition(",")[0]
    codec = codec_of("t5" if name in ENCODER_DECODERS else "llama", few_words, MAX_TOKENS)
    static, ended = static_of(codec), 0
    for seed in (4, 7):
        model = make_model(few_words, seed=seed, lively=True, model_type=name, **MODELS[kind])
        prompts = codec.prompts(make_examples(6, seed))
        for sampling in (GREEDY, Sampling(top_p=0.95)):
            plain, fixed = (
                Sampler(codec, sampling, how).sample(model, prompts, 3, seeded(seed)) for how in (None, static)
            )
            assert fixed.ids_BT.tolist() == plain.ids_BT.tolist()
            assert fixed.truncated_B.tolist() == plain.truncated_B.tolist()
            ended += int((~plain.truncated_B).sum())
    assert ended > 2


def rollout_of(
    model: HiddenStateModel,
    codec: TextCodec,
    prompts: PromptBatch,
    static: StaticDecoding | None = None,
    *,
    seed: int = 0,
    per_prompt: int = 4,
) -> Rollout:
    return Sampler(codec, Sampling(), static).sample(model, prompts, per_prompt, seeded(seed))


@pytest.mark.parametrize("kind", essential(["t5 with LoRA", "llama with LoRA"], "llama with LoRA"))
def test_a_few_shapes_are_compiled_once_for_all_rollouts(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """With other prompts, changed weights, an adapter merged again; as full graphs, without a graph break."""
    codec, counter = codec_of(kind, few_words, MAX_TOKENS), CompileCounter()
    student = make_student(kind, few_words, seed=9)
    static = static_of(codec, partial(torch.compile, backend=counter, fullgraph=True, dynamic=False))
    compiled = []
    for number in range(4):
        prompts = codec.prompts(make_examples(1, number))
        expected = rollout_of(student, codec, prompts, seed=number, per_prompt=2)
        found = rollout_of(student, codec, prompts, static, seed=number, per_prompt=2)
        assert found.ids_BT.tolist() == expected.ids_BT.tolist()
        student(found).sum().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        compiled.append(counter.frame_count)
    assert compiled[-1] == 2  # for two rows, and for one


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_rows_leave_when_the_batch_can_be_halved(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    codec = codec_of(kind, few_words, MAX_TOKENS)
    student = make_student(kind, few_words, seed={"t5": 8, "llama": 9}[kind])
    static, decoder = static_of(codec), cast("Any", student.model.get_decoder())
    shapes: list[int] = []
    static.start(student, codec.prompts(make_examples(5)), 4)  # buffers of 20 rows
    decoder.register_forward_pre_hook(lambda _, __, given: shapes.append(len(given["input_ids"])), with_kwargs=True)
    for rows, capacities in ((5, [20, 10, 5, 3]), (2, [10, 5, 3]), (1, [5, 3])):
        shapes.clear()
        rollout_of(student, codec, codec.prompts(make_examples(rows, 2)), static)
        seen = shapes[1:]  # without the prompts
        assert seen == sorted(seen, reverse=True) and set(seen) <= set(capacities)
        assert len(set(seen)) > 1 or rows == 1
        assert seen[0] == capacities[0]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_no_state_of_an_earlier_rollout_is_used(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """The buffers are filled with NaN between rollouts of fewer and of more rows."""
    codec, student = codec_of(kind, few_words, MAX_TOKENS), make_student(kind, few_words, seed=9)
    static = static_of(codec)
    for rows in (3, 2, 6):
        prompts = codec.prompts(make_examples(rows, rows))
        expected = rollout_of(student, codec, prompts)
        assert rollout_of(student, codec, prompts, static).ids_BT.tolist() == expected.ids_BT.tolist()
        assert static._buffers is not None
        layers: Any = (*static._buffers._self_attention, *static._buffers._cross_attention)
        for layer in layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)


def test_buffers_and_merged_weights_keep_their_addresses(
    make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """A CUDA graph uses the addresses of its recording."""
    codec, student = codec_of("llama", few_words, MAX_TOKENS), make_student("llama with LoRA", few_words, seed=9)
    static, seen = static_of(codec), []
    for number in range(3):
        rollout_of(student, codec, codec.prompts(make_examples(3, number)), static)
        assert static._buffers is not None
        cache, inputs = static._buffers.part(12)
        tensors = [one for layer in cast("Any", cache.layers) for one in (layer.keys, layer.values)]
        with student.generating():
            tensors += [*inputs.values(), *student.parameters()]
            seen.append([one.data_ptr() for one in tensors])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_an_adapter_is_merged_in_place(name: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> None:
    settings = LoraConfig(r=2, target_modules="all-linear", use_dora=name == "dora", init_lora_weights=False)
    model = AdaptedModel(make_model(few_words, model_type="llama").model, settings, 0)
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.named_parameters()}
    with model.generating():
        within = dict(model.named_parameters())
        assert all(one.data_ptr() == before[name][0] for name, one in within.items())
        assert any(not torch.equal(one, before[name][1]) for name, one in within.items())
    assert all(torch.equal(one, before[name][1]) for name, one in model.named_parameters())


def test_models_without_support_for_a_static_cache_are_refused(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    codec = codec_of("t5", few_words, MAX_TOKENS)
    model = make_model(few_words, model_type="longt5", local_radius=4)
    message = r"rollout\.static_cache=true: model_type=longt5"
    with pytest.raises(ModelError, match=message):
        check_generation(configured("rollout.static_cache=true").rollout, "longt5")
    with pytest.raises(ModelError, match=message):
        rollout_of(model, codec, codec.prompts(make_examples(2)), static_of(codec))
    model = make_model(few_words, model_type="t5")
    model.model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match=r"static_cache=true with attn_implementation=flex_attention"):
        rollout_of(model, codec, codec.prompts(make_examples(2)), static_of(codec))


@pytest.mark.parametrize("kind", KINDS)
def test_the_setting_changes_no_metric_of_a_run(kind: str, make_trainer: MakeTrainer) -> None:
    plain, fixed = (make_trainer(f"rollout.static_cache={value}", kind=kind) for value in ("false", "true"))
    assert plain.sampler.static is None and fixed.sampler.static is not None
    for step in range(2):
        one, other = plain.step(step), fixed.step(step)
        for name, value in one.metrics.items():
            if not name.startswith("time/"):
                assert other.metrics[name] == value, name


def test_the_step_is_compiled_on_cuda_only() -> None:
    assert compiler_for(torch.device("cpu")) is None
    compiler = cast("Any", compiler_for(torch.device("cuda")))
    assert compiler.func is torch.compile and compiler.keywords["mode"] == "reduce-overhead"


def test_every_supported_type_is_tested_or_refused() -> None:
    assert {kind.partition(",")[0] for kind in MODELS} | {*UNSUPPORTED_TYPES} == {*DECODER_ONLY, *ENCODER_DECODERS}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_memory_plan_counts_the_buffers(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    """Keys and values of all columns, computed by hand; masks and ids are small."""
    codec, student = codec_of(kind, few_words, MAX_TOKENS), make_student(kind, few_words)
    config, columns = student.model.config, codec.max_prompt_tokens + MAX_TOKENS
    width = config.d_kv * config.num_heads if kind == "t5" else config.hidden_size // 2  # one of two heads has keys
    planned = static_bytes(student, static_of(codec), 3, 4)
    used = static_of(codec)
    rollout_of(student, codec, codec.prompts(make_examples(3)), used)
    assert planned == used.held_bytes
    assert 1 < planned / (12 * columns * 2 * 4 * width) < 1.5


@pytest.mark.parametrize("task", essential(["xsum", "gsm8k"], "gsm8k"))
def test_the_memory_plan_of_a_run_has_the_buffers_in_training(task: str) -> None:
    """Independent of the data: keys and values of as many columns as the task's limits allow."""
    sizes = [
        f"{key}.micro_batch_size=1" for key in ("student.sft", "teacher.sft", "trainer")
    ]  # else they are searched for
    config = configured(f"task={task}", "rollout.static_cache=true", *sizes)
    cpu = torch.device("cpu")
    plan = plan_memory(config, Lengths(16, 8), cpu, resolve_models(config, build_task(config), cpu))
    held = next(stage for stage in plan.stages if stage.name == "training").held["static cache"]
    made: dict[str, Any] = config.student.architecture or {}
    heads = "num_heads" if task == "xsum" else "num_key_value_heads"
    size = made["d_kv"] if task == "xsum" else made["hidden_size"] // made["num_attention_heads"]
    layers = made["num_decoder_layers"] if task == "xsum" else made["num_hidden_layers"]
    rows = config.trainer.prompts_per_step * config.rollout.per_prompt
    columns = config.task["max_prompt_tokens"] + config.task["max_completion_tokens"]
    assert 1 < held / (rows * columns * 2 * 4 * made[heads] * size * layers) < 1.3
    plain = configured(f"task={task}", *sizes)
    without = plan_memory(plain, Lengths(16, 8), cpu, resolve_models(plain, build_task(plain), cpu))
    assert all("static cache" not in stage.held for stage in without.stages)
