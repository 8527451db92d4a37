"""What a GPU has to show (pytest -m gpu -n 0): memory of a step at published sizes, and the numbers of the CPU.

Weights are random and made on the device, sizes those of the checkpoints' configurations. Every test has a twin of some
thousand weights on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import MakeTokenizer, configured, letters, with_adapter
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gkd_rl.config import Config
from gkd_rl.config.choices import Quantization
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.evaluation.evaluator import kl_between
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import build_model
from gkd_rl.pipeline.build import Models, attach_adapter
from gkd_rl.pipeline.build_trainer import build_trainer
from gkd_rl.pipeline.models import placed_teacher
from gkd_rl.training.trainer import StepRecord
from gkd_rl.types import Example, Projection, Rollout
from reward_models.composite import Composite

GIB = 2**30
BUDGET = 24 * GIB  # of a consumer card


def t5(d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """T5 v1.1 and Flan-T5."""
    return {
        "model_type": "t5", "d_model": d_model, "d_kv": 64, "d_ff": d_ff, "num_layers": layers,
        "num_decoder_layers": layers, "num_heads": heads, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }  # fmt: skip


def qwen2(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    """Qwen2.5, with its two key-value heads."""
    return {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
    """Shapes of a teacher and its student, words of their tokenizer, and tokens of a prompt and a completion."""

    teacher: dict[str, Any]
    student: dict[str, Any]
    words: int
    prompt: int
    completion: int


PAIRS = {
    "flan_t5": {
        "cuda": Pair(t5(2048, 5120, 24, 32), t5(1024, 2816, 24, 16), 32_128, 1024, 64),  # XL and large
        "cpu": Pair(t5(64, 96, 1, 2), t5(32, 48, 1, 2), 40, 12, 6),
    },
    "qwen2.5": {
        "cuda": Pair(qwen2(1536, 8960, 28, 12), qwen2(896, 4864, 24, 14), 151_936, 512, 256),  # 1.5B and 0.5B
        "cpu": Pair(qwen2(64, 96, 1, 2), qwen2(32, 48, 1, 2), 40, 12, 6),
    },
}
# layers, width and words of the models whose numbers are compared
SIZES = {"cuda": (6, 512, 1000), "cpu": (2, 64, 100)}
KINDS = ("t5", "qwen2")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The GPU, or the CPU for the twin. accelerate keeps one device for a process: it forgets those of other tests."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield torch.device(request.param)
    AcceleratorState._reset_state(reset_partial_state=True)
    if request.param == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def report(device: torch.device, capsys: pytest.CaptureFixture[str]) -> Any:
    """`report("words")`: shown with the name of the card; a twin says nothing."""

    def show(words: str) -> None:
        if device.type == "cuda":
            with capsys.disabled():
                print(f"\n{torch.cuda.get_device_name(device)}: {words}")  # noqa: T201

    return show


def words_of(make_tokenizer: MakeTokenizer, count: int) -> PreTrainedTokenizerBase:
    """A vocabulary of `count`, three special words included."""
    return make_tokenizer(" ".join(f"w{i}" for i in range(count - 3)))


def made_on(device: torch.device, shape: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    """A bfloat16 model of random weights."""
    with device:
        return build_model(shape, tokenizer, seed, torch.bfloat16, "student")


def rows_of(pair: Pair, count: int) -> list[Example]:
    """Prompts of random words, from half of the most tokens to all of them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(pair.prompt // 2, pair.prompt, (count,), generator=generator)
    lengths[0] = pair.prompt - 1
    rows = [torch.randint(0, pair.words - 3, (int(n),), generator=generator).tolist() for n in lengths]
    return [Example(" ".join(f"w{i}" for i in row), "w0", {}) for row in rows]


def one_step(pair: Pair, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> tuple[StepRecord, Models]:
    """As `pipeline.py` does it: an 8-bit teacher and a student with LoRA, 8 prompts of 4 rollouts, 4 at a time."""
    config: Config = configured(
        *("adapter=lora", "alpha=0.5", "teacher.quantization=int8", "trainer.gradient_checkpointing=true"),
        *("trainer.prompts_per_step=8", "rollout.per_prompt=4", "trainer.micro_batch_size=4"),
        *("trainer.head_chunk_tokens=256", "trainer.diagnose_every=0", "trainer.warmup_steps=0"),
    )
    assert config.teacher is not None
    decoder_only = pair.student["model_type"] != "t5"
    codec = TextCodec(tokenizer, pair.prompt, pair.completion, device, decoder_only=decoder_only)
    full = HiddenStateModel(made_on(device, pair.teacher, tokenizer, 1))
    teacher = placed_teacher(full, config.teacher, device)
    student = attach_adapter(config, made_on(device, pair.student, tokenizer, 2), None)
    models = Models(student, teacher, InitialView(student), codec)
    reward = Composite({"letters": letters}, {"letters": 1.0})
    stream = PromptStream(rows_of(pair, 8), 8, 0)
    trainer = build_trainer(config, models, reward, stream, Accelerator(cpu=device.type == "cpu"))
    return trainer.step(0), models


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_with_an_8_bit_teacher_fits(
    name: str, device: torch.device, make_tokenizer: MakeTokenizer, report: Any
) -> None:
    """Loading included: on the GPU the teacher passes through its memory at full precision here, which no run does."""
    pair = PAIRS[name][device.type]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    record, models = one_step(pair, words_of(make_tokenizer, pair.words), device)
    teacher, student = models.teacher, models.student
    assert teacher is not None
    assert {one.device.type for model in (teacher, student) for one in model.parameters()} == {device.type}
    assert {"Int8Params", "Parameter"} <= {type(one).__name__ for one in teacher.parameters()}
    trained = [one for one in student.parameters() if one.requires_grad]
    assert {one.dtype for one in student.parameters() if not one.requires_grad} == {torch.bfloat16}
    assert record.rollout.n_sequences == 32
    assert record.rollout.ids_BT.shape[1] == pair.completion
    assert record.metrics["divergence"] > 0 and record.metrics["grad_norm"] > 0
    assert all(bool(one.isfinite().all()) for one in trained)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        weights = sum(one.numel() for model in (teacher, student) for one in model.parameters())
        report(f"{name}: {weights / 1e9:.2f}e9 weights, {sum(one.numel() for one in trained):,} trained, "
               f"{record.metrics['tokens/student_trained']:.0f} tokens; peak {peak / GIB:.2f} GiB")  # fmt: skip
        assert peak < BUDGET


def plain(kind: str, device: torch.device, tokenizer: PreTrainedTokenizerBase) -> HiddenStateModel:
    """A float32 model on the CPU, whose weights do not depend on the device; its outputs are those of a trained one."""
    layers, width, _ = SIZES[device.type]
    shape = t5(width, 2 * width, layers, 4) if kind == "t5" else qwen2(width, 2 * width, layers, 4)
    shape["tie_word_embeddings"] = False
    model = HiddenStateModel(build_model(shape, tokenizer, 3, torch.float32, "student")).eval()
    head: Any = model.head().weight_VD
    head.data *= 3 / (head.data.std() * width**0.5)  # logits with a standard deviation of 3
    return model


def codec_on(device: torch.device, kind: str, tokenizer: PreTrainedTokenizerBase) -> TextCodec:
    return TextCodec(tokenizer, 64, 16, device, decoder_only=kind != "t5")


def rollout_of(model: HiddenStateModel, codec: TextCodec, sampling: Sampling) -> Rollout:
    pair = Pair({}, {}, codec.vocabulary, 40, 16)
    generator = torch.Generator(codec.device).manual_seed(0)
    return Sampler(codec, sampling).sample(model, codec.prompts(rows_of(pair, 4)), 2, generator)


def moved(rollout: Rollout, device: torch.device) -> Rollout:
    prompts = rollout.prompts
    fields = {name: getattr(rollout, name).to(device) for name in ("prompt_index_B", "ids_BT", "mask_BT")}
    there = dataclasses.replace(prompts, ids_PS=prompts.ids_PS.to(device), mask_PS=prompts.mask_PS.to(device))
    return dataclasses.replace(rollout, prompts=there, **fields)


@torch.no_grad()
def logp_of(model: HiddenStateModel, rollout: Rollout) -> Tensor:
    terms = FusedHead(None)(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
    return terms.logp_BT[rollout.mask_BT].float().cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_cpu(
    kind: str, device: torch.device, make_tokenizer: MakeTokenizer, report: Any
) -> None:
    """In float32 within 1e-3 each; in bfloat16, whose numbers have 8 bits, within 0.05 in the mean and 0.5 each."""
    tokenizer = words_of(make_tokenizer, SIZES[device.type][2])
    model = plain(kind, device, tokenizer)
    rollout = rollout_of(model, codec_on(torch.device("cpu"), kind, tokenizer), Sampling())
    expected, there = logp_of(model, rollout), moved(rollout, device)
    assert expected.min() < -5 and expected.max() > -4, "log-probabilities that tell something"
    single = (logp_of(model.to(device), there) - expected).abs()
    half = (logp_of(model.bfloat16(), there) - expected).abs()
    report(f"{kind}: log-probabilities differ by {single.max():.1e} at most in float32, and in bfloat16 by "
           f"{half.mean():.1e} in the mean and {half.max():.1e} at most")  # fmt: skip
    assert single.max() < 1e-3
    assert 0 < half.mean() < 0.05
    assert half.max() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_writes_what_the_unmerged_one_does(
    kind: str, device: torch.device, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = words_of(make_tokenizer, SIZES[device.type][2])
    codec = codec_on(device, kind, tokenizer)
    base = plain(kind, device, tokenizer).to(device)
    without = rollout_of(base, codec, GREEDY)
    student = with_adapter(base, seed=1).to(device).eval()
    merged = rollout_of(student, codec, GREEDY)
    before = {name: value.clone() for name, value in student.base_weights().items()}
    monkeypatch.setattr(AdaptedModel, "generating", HiddenStateModel.generating)
    assert merged.ids_BT.tolist() == rollout_of(student, codec, GREEDY).ids_BT.tolist()
    assert merged.ids_BT.tolist() != without.ids_BT.tolist(), "the adapter does something"
    assert all(torch.equal(before[name], value) for name, value in student.base_weights().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_teacher_is_close_to_the_full_one(
    kind: str, device: torch.device, make_tokenizer: MakeTokenizer, report: Any
) -> None:
    """Hidden states within 10% (int8) and 75% (NF4) of their norm: the CPU's are off by 5% and 47% in six layers."""
    settings = configured().teacher
    assert settings is not None
    tokenizer = words_of(make_tokenizer, SIZES[device.type][2])
    codec = codec_on(device, kind, tokenizer)
    full = plain(kind, device, tokenizer).to(device)
    rollout = rollout_of(full, codec, Sampling())
    with torch.no_grad():
        exact = full(rollout)[rollout.mask_BT]
    errors, distances = [], []
    for bits in (Quantization.int8, Quantization.nf4):
        copy = plain(kind, device, tokenizer)
        teacher = placed_teacher(copy, dataclasses.replace(settings, quantization=bits), device)
        assert teacher.device.type == device.type
        with torch.no_grad():
            error = teacher(rollout)[rollout.mask_BT] - exact
        errors.append(float(error.norm() / exact.norm()))
        distances.append(float(kl_between(full, teacher, [rollout], 256, codec.vocabulary).mean()))
    report(f"{kind}: hidden states differ by {errors[0]:.1%} (int8) and {errors[1]:.1%} (nf4); "
           f"KL(full || quantised) {distances[0]:.1e} and {distances[1]:.1e} nats")  # fmt: skip
    assert 0 < errors[0] < 0.1
    assert errors[0] < errors[1] < 0.75
    assert 0 < distances[0] < distances[1] < 1
