"""Adapters of the student: what is trained, what comes back bit for bit, and what other libraries load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeExamples, MakeModel, config_of, letters
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.errors import ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.merge import merge
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import locate
from gkd_rl.models.loading import load_model, load_tokenizer, save_model
from gkd_rl.pipeline.build import Models, attach_adapter
from gkd_rl.pipeline.build_trainer import build_trainer
from gkd_rl.pipeline.results import describe_method
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Rollout
from reward_models.composite import Composite

KINDS = ("t5", "llama")
SETTINGS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


@pytest.fixture
def codec_of(few_words: PreTrainedTokenizerFast) -> Any:
    def make(kind: str) -> TextCodec:
        return TextCodec(few_words, 20, 8, torch.device("cpu"), decoder_only=kind == "llama")

    return make


@pytest.fixture
def make_adapted(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> Any:
    """A model with an adapter that has learnt something."""

    def make(kind: str, name: str = "lora", dtype: torch.dtype = torch.float32, **more: Any) -> AdaptedModel:
        changes = {"model_type": kind} if kind == "llama" else {}
        plain = make_model(few_words, seed=8, lively=True, **changes)
        settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **SETTINGS[name], **more)
        adapted = AdaptedModel(plain.to(dtype).model, settings, seed=3)
        generator = torch.Generator().manual_seed(1)
        for parameter in trained(adapted).values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return adapted.eval()

    return make


def trained(model: HiddenStateModel) -> dict[str, Tensor]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def frozen(model: AdaptedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.base_weights().items()}


def rollout_of(model: HiddenStateModel, codec: TextCodec, examples: list[Any], sampling: Sampling = GREEDY) -> Rollout:
    generator = torch.Generator().manual_seed(5)
    return Sampler(codec, sampling).sample(model, codec.prompts(examples), 2, generator)


def trainer_of(
    student: HiddenStateModel, teacher: HiddenStateModel | None, initial: Any, codec: TextCodec, rows: Any, *more: str
) -> Trainer:
    config = config_of("trainer.learning_rate=0.05", "trainer.warmup_steps=0", *more)
    models = Models(student, teacher, initial, codec)
    from accelerate import Accelerator

    return build_trainer(
        config, models, Composite({"x": letters}, {"x": 1.0}), PromptStream(rows, 4, 0), Accelerator(cpu=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_generating_merges_and_the_weights_come_back_bit_for_bit(
    kind: str, name: str, dtype: torch.dtype, make_adapted: Any, codec_of: Any, make_examples: MakeExamples
) -> None:
    model, codec, rows = make_adapted(kind, name, dtype), codec_of(kind), make_examples(6)
    before = frozen(model)
    rollout = rollout_of(model, codec, rows, Sampling())
    with torch.no_grad(), model.generating():
        merged = model(rollout)
        assert any(not torch.equal(before[key], value) for key, value in model.base_weights().items())
    after = model.base_weights()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        unmerged = model(rollout)
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    valid = rollout.mask_BT
    assert (merged[valid] - unmerged[valid]).norm() < tolerance * unmerged[valid].norm()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_greedy_text_is_that_of_the_unmerged_model(
    kind: str, make_adapted: Any, codec_of: Any, make_examples: MakeExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, codec, rows = make_adapted(kind), codec_of(kind), make_examples(8)
    merged = rollout_of(model, codec, rows)
    monkeypatch.setattr(AdaptedModel, "generating", HiddenStateModel.generating)
    assert torch.equal(merged.ids_BT, rollout_of(model, codec, rows).ids_BT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_while_generating_loses_nothing(kind: str, make_adapted: Any) -> None:
    model = make_adapted(kind)
    before = frozen(model)
    with pytest.raises(RuntimeError, match="stop"), model.generating():
        raise RuntimeError("stop")
    assert all(torch.equal(before[key], value) for key, value in model.base_weights().items())
    assert not any(layer.merged for layer in model._layers)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_it(
    kind: str, name: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast, codec_of: Any, make_examples: Any
) -> None:
    plain = make_model(few_words, seed=8, lively=True, **({"model_type": kind} if kind == "llama" else {}))
    rollout = rollout_of(plain, codec_of(kind), make_examples(4), Sampling())
    with torch.no_grad():
        expected = plain(rollout)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **SETTINGS[name]}
    made = [AdaptedModel(copy.deepcopy(plain.model), LoraConfig(**settings), seed) for seed in (3, 3, 4)]
    with torch.no_grad():
        torch.testing.assert_close(made[0](rollout), expected, rtol=1e-5, atol=1e-6)
    one, same, other = (trained(model) for model in made)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all("lora_" in key for key in one)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_learns_and_the_initial_student_stays(
    kind: str, name: str, make_adapted: Any, codec_of: Any, make_examples: MakeExamples
) -> None:
    model, codec, rows = make_adapted(kind, name, lora_dropout=0.1), codec_of(kind), make_examples(12)
    view = InitialView(model)
    with torch.no_grad(), model.adapter.disable_adapter():
        probe = rollout_of(HiddenStateModel(model.model), codec, rows[:4])
        expected = model.eval()(probe)
    before, adapter = frozen(model), {key: value.clone() for key, value in trained(model).items()}
    trainer = trainer_of(model, None, view, codec, rows, "alpha=0.5", "teacher=initial_student")
    for step in range(3):
        assert trainer.step(step).metrics["divergence"] >= 0
    assert all(torch.equal(before[key], value) for key, value in model.base_weights().items())
    assert all(not torch.equal(adapter[key], value) for key, value in trained(model).items())
    torch.testing.assert_close(view(probe), expected, rtol=0, atol=0)
    assert not view(probe).requires_grad
    assert not list(view.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_student_has_no_divergence_from_itself(
    kind: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast, codec_of: Any, make_examples: MakeExamples
) -> None:
    plain = make_model(few_words, seed=8, lively=True, **({"model_type": kind} if kind == "llama" else {}))
    model = AdaptedModel(plain.model, LoraConfig(r=4, target_modules="all-linear"), 0)
    view = InitialView(model)
    options = ("alpha=1", "teacher=initial_student", "divergence=forward_kl")
    record = trainer_of(model, None, view, codec_of(kind), make_examples(12), *options).step(0)
    assert record.metrics["divergence"] == pytest.approx(0, abs=1e-6)
    assert record.metrics["grad_norm"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_product_of_the_two_matrices(
    kind: str, make_adapted: Any, codec_of: Any, make_examples: MakeExamples
) -> None:
    """dL/dA = s Bᵀ dL/dW and dL/dB = s dL/dW Aᵀ, with dL/dW of a plain model of weights W + s B A."""
    model, codec = make_adapted(kind), codec_of(kind)
    rollout = rollout_of(model, codec, make_examples(4), Sampling())
    model.double()  # in float32 the two ways round differently, by as much as 3e-4 on some CPUs
    reference = HiddenStateModel(copy.deepcopy(model).merge())
    weights = torch.randn(model(rollout).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one in (model, reference):
        (one(rollout) * weights * rollout.mask_BT.unsqueeze(-1)).sum().backward()
    plain = dict(reference.model.named_modules())
    layers = {name: module for name, module in model.model.named_modules() if module in model._layers}
    assert layers
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        whole: Tensor = plain[name].weight.grad  # pyright: ignore
        scale = layer.scaling["default"]
        torch.testing.assert_close(a.grad, scale * b.T @ whole, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(b.grad, scale * whole @ a.T, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_step_into_micro_batches_changes_nothing(
    kind: str, make_adapted: Any, codec_of: Any, make_examples: MakeExamples
) -> None:
    found = []
    for size in (8, 3, 1):
        model = make_adapted(kind)
        options = ("alpha=0.5", "teacher=initial_student", f"trainer.micro_batch_size={size}")
        trainer_of(model, None, InitialView(model), codec_of(kind), make_examples(12), *options).step(0)
        found.append(torch.cat([value.flatten() for value in trained(model).values()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["base beside it", "base of its own"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_loads_three_ways(
    kind: str,
    elsewhere: bool,
    make_adapted: Any,
    codec_of: Any,
    make_examples: MakeExamples,
    few_words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model, codec, rows = make_adapted(kind), codec_of(kind), make_examples(8)
    text = rollout_of(model, codec, rows).texts
    if not elsewhere:
        model.model.save_pretrained(tmp_path / "checkpoint", state_dict=model.base_weights())
        model.base_path = str(tmp_path / "checkpoint")
    folder = tmp_path / "run" / "model"
    save_model(folder, model, few_words, "A card.\n")
    assert (folder / "base").is_dir() is elsewhere
    assert (folder / "README.md").read_text() == "A card.\n"
    assert (folder / "adapter_model.safetensors").is_file()
    auto = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    base = auto.from_pretrained(model.base_path or folder / "base")
    with_peft = HiddenStateModel(PeftModel.from_pretrained(base, str(folder)).merge_and_unload())  # pyright: ignore
    assert rollout_of(with_peft, codec, rows).texts == text
    if elsewhere:  # a folder that was moved still finds its base
        folder = folder.rename(tmp_path / "moved")
    ours = HiddenStateModel(load_model(locate(str(folder), None, "student.path"), torch.float32))
    assert rollout_of(ours, codec, rows).texts == text
    merge(folder, tmp_path / "merged")
    whole = auto.from_pretrained(tmp_path / "merged")
    assert rollout_of(HiddenStateModel(whole), codec, rows).texts == text
    assert load_tokenizer(locate(str(tmp_path / "merged"), None, "x")).get_vocab() == few_words.get_vocab()
    with pytest.raises(ModelError, match="exists"):
        merge(folder, tmp_path / "merged")
    with pytest.raises(ModelError, match="holds no adapter_config"):
        merge(tmp_path / "merged", tmp_path / "other")


def test_names_that_cannot_be_adapted_are_refused(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> None:
    model = make_model(few_words, model_type="llama", tie_word_embeddings=False).model
    for names, says in ((["nonsense"], "no linear layer"), (["lm_head", "q_proj"], "is the output head")):
        with pytest.raises(ModelError, match=says) as caught:
            attach_adapter(config_of("adapter=lora", f"adapter.targets=[{','.join(names)}]"), model, None)
        assert "q_proj" in str(caught.value)
    adapted = attach_adapter(
        config_of("adapter=lora", "adapter.targets=[q_proj,v_proj]", "adapter.rank=2"), model, None
    )
    assert {name.split(".")[-4] for name in trained(adapted)} == {"q_proj", "v_proj"}


def test_a_run_says_what_it_trains() -> None:
    assert "trains" not in describe_method(config_of())
    said = describe_method(config_of("adapter=dora", "adapter.targets=[q,v]", "adapter.rank=4"))["trains"]
    assert said == "DoRA of rank 4, lora_alpha 32, on q v"
