"""Teachers in 8 and 4 bit, elsewhere or offloaded, against transformers' own quantisation and against themselves."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel, MakePrompts, MakeRollout, configured
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gkd_rl.config import TeacherConfig
from gkd_rl.config.choices import Quantization
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Sampler, Sampling
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.placement import PlacedModel, check_quantization, quantizable, quantized
from gkd_rl.pipeline.models import check_teacher, placed_teacher
from gkd_rl.training.cost import ModelCost
from gkd_rl.types import Rollout

CPU = torch.device("cpu")
INT8, NF4 = Quantization.int8, Quantization.nf4
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.02},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128},
}
# Rounding moves a weight by half a step at most: of int8, the row's largest weight / 127; of NF4, the widest gap of its
# code (-1 to -0.6962) times the largest of the 64 weights of a block. An input of int8 is rounded in the same way.
NF4_STEP = 1 - 0.6961928


@pytest.fixture(params=SIZES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[INT8, NF4], ids=lambda one: one.value)
def bits(request: pytest.FixtureRequest) -> Quantization:
    return request.param


@pytest.fixture
def full(kind: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=2, model_type=kind, **SIZES[kind]).eval()


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    prompts = make_prompts([[3, 4, 5, 6, 7], [5], [7, 7, 3]])
    return make_rollout(prompts, [[4, 5, 1], [3, 3, 6, 1], [1], [2, 4, 4], [6, 1], [5, 7, 1]], per_prompt=2)


def quantised(full: HiddenStateModel, bits: Quantization) -> HiddenStateModel:
    return HiddenStateModel(quantized(copy.deepcopy(full.model), bits, CPU)).eval()


def settings_of(**changes: Any) -> TeacherConfig:
    teacher = configured().teacher
    assert teacher is not None
    for name, value in changes.items():
        setattr(teacher, name, value)
    return teacher


@torch.no_grad()
def test_it_is_what_transformers_does(
    full: HiddenStateModel, kind: str, bits: Quantization, rollout: Rollout, tmp_path: Path
) -> None:
    full.model.save_pretrained(tmp_path)
    loader = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    eight = BitsAndBytesConfig(load_in_8bit=True)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    theirs: PreTrainedModel = loader.from_pretrained(tmp_path, quantization_config=eight if bits is INT8 else four)
    ours = quantised(full, bits)
    assert _types(ours.model) == _types(theirs)
    assert torch.equal(ours(rollout), HiddenStateModel(theirs).eval()(rollout))
    assert torch.equal(ours.head().weight_VD, full.head().weight_VD)


def _types(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


@torch.no_grad()
def test_every_matrix_is_as_close_as_its_bits_allow(full: HiddenStateModel, bits: Quantization) -> None:
    names = list(quantizable(full.model))
    assert len(names) >= 10
    ours = quantised(full, bits)
    for name in names:
        matrix, rounded = full.model.get_submodule(name), ours.model.get_submodule(name)
        assert isinstance(matrix, nn.Linear)
        weight = matrix.weight
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1))
        error = (rounded(x) - matrix(x)).abs()
        bound = _bound(weight, x, bits)
        assert (error <= bound).all(), name
        assert error.max() > 0, name


def _bound(weight: Tensor, x: Tensor, bits: Quantization) -> Tensor:
    """What half steps of weights (and of int8's inputs) can add up to in an output; 1% for float16."""
    if bits is INT8:
        of_weight = weight.abs().amax(1) / 127 / 2
        of_input = x.abs().amax(1) / 127 / 2
        sums = x.abs().sum(1)[:, None] * of_weight + of_input[:, None] * (weight.abs().sum(1) + of_weight * x.shape[1])
        return 1.01 * sums + 1e-3
    step = NF4_STEP / 2 * weight.reshape(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(weight.shape)
    return 1.01 * (x.abs() @ step.T) + 1e-3


@torch.no_grad()
def test_hidden_states_are_close(full: HiddenStateModel, rollout: Rollout) -> None:
    """Relative error of a random matrix: int8 rounds weight and input by some 1/127 of their largest (3 standard
    deviations): 3/127/√12 each, 1% together; NF4's is 10%. Layers add up: bounds of 5% and 50%."""
    exact = full(rollout)[rollout.mask_BT]
    errors = [
        float((quantised(full, bits)(rollout)[rollout.mask_BT] - exact).norm() / exact.norm()) for bits in (INT8, NF4)
    ]
    assert 0 < errors[0] < 0.05
    assert errors[0] < errors[1] < 0.5


def test_nothing_of_it_has_a_gradient(full: HiddenStateModel, bits: Quantization, rollout: Rollout) -> None:
    teacher = placed_teacher(copy.deepcopy(full), settings_of(quantization=bits), CPU)
    assert not [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    assert not teacher(rollout).requires_grad
    assert not teacher.training


def test_its_cost_is_that_of_its_shapes(full: HiddenStateModel, bits: Quantization) -> None:
    assert ModelCost.of(quantised(full, bits)) == ModelCost.of(full)


@pytest.mark.parametrize("offload", [True, False])
@torch.no_grad()
def test_elsewhere_it_gives_the_same_numbers(
    full: HiddenStateModel, kind: str, offload: bool, rollout: Rollout, few_words: PreTrainedTokenizerFast
) -> None:
    moved = PlacedModel(copy.deepcopy(full.model), CPU, CPU, offload=offload)
    assert moved.device == CPU
    assert torch.equal(moved(rollout), full(rollout))
    assert torch.equal(moved.head().weight_VD, full.head().weight_VD)
    weights = {parameter.device.type for parameter in moved.parameters()}
    assert weights == ({"meta"} if offload else {"cpu"})  # between two visits a layer holds nothing
    sampler = Sampler(TextCodec(few_words, 20, 8, CPU, decoder_only=kind == "llama"), Sampling())
    one, other = (
        sampler.sample(model, rollout.prompts, 3, torch.Generator().manual_seed(0)).ids_BT for model in (moved, full)
    )
    assert torch.equal(one, other)


def test_where_it_is_placed(full: HiddenStateModel) -> None:
    assert not isinstance(placed_teacher(copy.deepcopy(full), settings_of(device="cpu"), CPU), PlacedModel)
    assert isinstance(placed_teacher(copy.deepcopy(full), settings_of(offload=True), CPU), PlacedModel)
    elsewhere = placed_teacher(copy.deepcopy(full), settings_of(device="cpu"), torch.device("meta"))
    assert isinstance(elsewhere, PlacedModel)
    assert elsewhere.device.type == elsewhere.head().weight_VD.device.type == "meta"
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"cpu"}


def test_what_goes_in_and_out_is_moved(full: HiddenStateModel, rollout: Rollout) -> None:
    elsewhere = placed_teacher(copy.deepcopy(full), settings_of(device="cpu"), torch.device("meta"))
    assert elsewhere(rollout).device.type == "meta"
    state = elsewhere.start(rollout.prompts, 1)
    assert state.hidden_BD.device.type == state.step(torch.tensor([3, 4, 5])).device.type == "meta"


def test_a_device_that_is_not_there_is_refused() -> None:
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(ConfigError, match=rf"teacher.device={name}: .* takes cpu.* or null"):
            check_teacher(settings_of(device=name))
    check_teacher(settings_of(device="cpu"))
    check_teacher(None)


def test_without_bitsandbytes_there_is_one_message(monkeypatch: pytest.MonkeyPatch, bits: Quantization) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_quantization(Quantization.none, "teacher.quantization")
    with pytest.raises(ModelError, match=rf"teacher.quantization={bits.value} needs bitsandbytes.*pip install"):
        check_teacher(settings_of(quantization=bits))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["teacher=initial_student", "teacher.quantization=int8"], "set teacher.quantization=none"),
        (["teacher=initial_student", "teacher.device=cpu"], "set teacher.device=null"),
        (["teacher=initial_student", "teacher.offload=true"], "set teacher.offload=false"),
        (["teacher.quantization=nf4", "teacher.offload=true"], "quantised weights cannot be moved"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(configured(*overrides))
    (problem,) = caught.value.problems
    assert says.lower() in problem.lower()


def test_what_goes_together_is_taken() -> None:
    validate(configured("teacher.quantization=nf4", "teacher.device=cpu"))
    validate(configured("teacher.offload=true"))
