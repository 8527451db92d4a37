"""The memory plan counts what a real run would take, and the doctor says what speaks against a run before it starts."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURE, LLAMA, configured, essential
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PreTrainedTokenizerBase

from gkd_rl.config import Config
from gkd_rl.config.choices import Decay, DivergenceName, OptimizerName, Quantization
from gkd_rl.data.embedded.news import generate
from gkd_rl.doctor import main
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.configurations import KNOWN_CONFIGURATIONS, known_config
from gkd_rl.models.loading import build_model, empty_model
from gkd_rl.models.placement import quantized
from gkd_rl.pipeline.memory import plan_memory, with_micro_batches
from gkd_rl.planning.memory_plan import Lengths, LiveMemory, MemoryPlan, peak_bytes, reset_peak
from gkd_rl.planning.model_memory import (
    Update,
    generation_bytes,
    largest_micro_batch,
    optimizer_bytes,
    reading_bytes,
    training_bytes,
    weight_bytes,
    without_data,
)
from gkd_rl.training.optimization import OptimizerSettings

CPU = torch.device("cpu")
SHAPES = {
    "t5": {**ARCHITECTURE, "d_model": 64, "num_layers": 2, "num_decoder_layers": 2},
    "llama": {**LLAMA, "hidden_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2},
}
LENGTHS = Lengths(24, 12)
UPDATE = Update(FusedHead(TokenDivergence(DivergenceName.jsd, 0.9), chunk_tokens=16), recompute=False, per_prompt=2)


def model_of(kind: str, tokenizer: PreTrainedTokenizerBase, device: str, *, adapted: bool = False) -> HiddenStateModel:
    with torch.device(device):
        model = build_model(SHAPES[kind], tokenizer, 0, torch.float32, "student")
        if not adapted:
            return HiddenStateModel(model)
        return AdaptedModel(model, LoraConfig(r=4, target_modules="all-linear"), 0)


def test_live_memory_counts_storages_once_and_forgets_them() -> None:
    held = torch.zeros(1000)
    with LiveMemory([held]) as live:
        one = held + 1
        view = one.view(10, 100)
        held.mul_(2)
        assert (live.now, live.peak) == (4000, 4000)
        two = view * 2
        del one, view
        assert (live.now, live.peak) == (4000, 8000)
    del two


@pytest.mark.parametrize(
    ("kind", "recompute", "adapted"),  # every pair of settings
    essential(
        [("t5", False, False), ("t5", True, True), ("llama", False, True), ("llama", True, False)],
        *[("t5", False, False), ("llama", True, False)],
    ),
)
def test_the_plan_counts_what_a_step_takes(
    kind: str, recompute: bool, adapted: bool, news_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The same code with data: the counts agree, but for the mask of grouped attention, which fakes always have."""
    update = Update(UPDATE.head, recompute, 2)

    def counts(student: HiddenStateModel, teacher: HiddenStateModel) -> list[int]:
        teacher.requires_grad_(False)
        found = list(training_bytes(student, teacher, LENGTHS, 4, update).values())
        found += [reading_bytes(student, LENGTHS, 4, 2), reading_bytes(student, LENGTHS, 4, 1, UPDATE.head, teacher)]
        return [*found, *generation_bytes(student, LENGTHS, 4, 2).values()]

    real = counts(model_of(kind, news_tokenizer, "cpu", adapted=adapted), model_of(kind, news_tokenizer, "cpu"))
    student, teacher = model_of(kind, news_tokenizer, "meta", adapted=adapted), model_of(kind, news_tokenizer, "meta")
    with FakeTensorMode():
        planned = counts(without_data(student), without_data(teacher))
    assert len(planned) == len(real) and all(real)
    assert planned == pytest.approx(real, rel=0.06)


def test_recomputing_layers_takes_less(news_tokenizer: PreTrainedTokenizerBase) -> None:
    model = model_of("llama", news_tokenizer, "meta")
    with FakeTensorMode():
        model = without_data(model)
        kept, recomputed = (
            training_bytes(model, None, LENGTHS, 8, Update(FusedHead(None), recompute, 1))["activations"]
            for recompute in (False, True)
        )
    assert recomputed < kept / 3


@pytest.mark.parametrize("kind", [Quantization.int8, Quantization.nf4])
def test_weights_of_a_quantised_model(kind: Quantization, news_tokenizer: PreTrainedTokenizerBase) -> None:
    model = model_of("llama", news_tokenizer, "cpu")
    planned = weight_bytes(model, kind)
    whole = weight_bytes(model)
    inner = quantized(model.model, kind, CPU)
    stored = sum(one.numel() * one.element_size() for one in inner.state_dict().values())
    assert planned == pytest.approx(stored, rel=0.02) and planned < whole


@pytest.mark.parametrize("name", list(OptimizerName))
def test_states_of_the_optimiser(name: OptimizerName, news_tokenizer: PreTrainedTokenizerBase) -> None:
    model = model_of("t5", news_tokenizer, "cpu")
    optimizer, _ = OptimizerSettings(10, name, 1e-3, 0.0, 0, Decay.constant).build(model.parameters())
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    stored = sum(one.numel() * one.element_size() for one in tensors if one.ndim > 0)
    assert optimizer_bytes(model, name) == pytest.approx(stored, rel=0.02)


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_completions_of_a_budget_of_tokens(per_prompt: int) -> None:
    lengths = Lengths(prompt=100, completion=20)
    assert [lengths.tokens(count, 4) for count in (1, 4, 5)] == [120, 180, 300]
    for completions in range(1, 12):
        assert lengths.completions_in(lengths.tokens(completions, per_prompt), per_prompt, 99) == completions
    assert lengths.completions_in(1, per_prompt, 99) == 1
    assert lengths.completions_in(10**12, per_prompt, 32) == 32


@pytest.mark.parametrize(
    ("free", "expected"), [(10_000, 32), (3_300, 32), (3_299, 16), (1_150, 8), (400, 3), (200, 1), (0, 1)]
)
def test_the_largest_micro_batch_that_fits(free: int, expected: int) -> None:
    """100 bytes, and 100 for each completion; 32 of them are shared out evenly."""
    found = largest_micro_batch(lambda size: 100 + 100 * size, free, 32)
    assert found == expected
    assert found == 1 or 100 + 100 * found <= free


SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 5000, "tie_word_embeddings": True, "head_dim": 32}
WEIGHTS = 5000 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a configuration and nothing else."""
    folder = tmp_path_factory.mktemp("checkpoint")
    AutoConfig.for_model("llama", **SIZES).save_pretrained(folder)
    return str(folder)


def scaled(checkpoint: str, *overrides: str) -> list[str]:
    paths = [f"student.path={checkpoint}", f"teacher.path={checkpoint}", "trainer.head_chunk_tokens=64"]
    return ["experiment=gsm8k_rl", "scale=single_gpu", *paths, *overrides]


SHORT = Lengths(16, 8)


def planned(*overrides: str) -> tuple[Config, MemoryPlan]:
    config = configured("alpha=0.5", *overrides)
    return config, plan_memory(config, SHORT, CPU, None)


def test_a_plan_needs_no_weights(checkpoint: str) -> None:
    config, plan = planned(*scaled(checkpoint, "teacher.dtype=float32", "scale.memory_gib=16"))
    training = next(stage for stage in plan.stages if stage.name == "training")
    assert training.held["student"] == 2 * WEIGHTS  # bfloat16
    assert WEIGHTS < training.held["teacher in int8"] < 4 * WEIGHTS
    assert training.held["optimiser"] == 2 * training.held["gradients"] == 2 * training.held["adapter"]
    assert [stage.name for stage in plan.stages] == ["teacher: loading", "teacher audit", "training", "evaluation"]
    held = sum(plan.largest.held.values())
    assert plan.peak == pytest.approx(plan.process + held + 1.25 * (plan.largest.peak - held), abs=2)
    chosen = with_micro_batches(config, plan).trainer.tokens_per_micro_batch
    assert plan.micro_batch_sizes["trainer"] == 32 and chosen == plan.tokens_per_micro_batch["trainer"]
    assert chosen is not None
    again = plan_memory(with_micro_batches(config, plan), SHORT, CPU, None)
    assert again.micro_batch_sizes["trainer"] == 32 and not again.tokens_per_micro_batch


@pytest.mark.parametrize(
    ("place", "held"),
    essential([("cuda:1", False), ("cpu", False), ("cuda:0", True), ("cuda", True)], ("cpu", False), ("cuda", True)),
)
def test_a_teacher_on_another_card_takes_nothing_of_this_one(checkpoint: str, place: str, held: bool) -> None:
    options = scaled(checkpoint, f"teacher.device={place}", "scale.memory_gib=16", "trainer.micro_batch_size=1")
    plan = plan_memory(configured("alpha=0.5", *options), Lengths(16, 8), torch.device("cuda", 0), None)
    assert all(("teacher in int8" in stage.held) == held for stage in plan.stages if stage.name == "training")


@pytest.mark.exhaustive
def test_a_supervised_stage_is_planned_with_its_own_micro_batch(checkpoint: str) -> None:
    options = [
        "experiment=gsm8k_rl",
        "scale=single_gpu",
        f"student.path={checkpoint}",
        "teacher=like_student",
        "adapter=none",
    ]
    config, plan = planned(*options, "trainer.head_chunk_tokens=64", "scale.memory_gib=16")
    stage = next(stage for stage in plan.stages if stage.name == "teacher: supervised")
    assert stage.held["gradients"] == stage.held["teacher"] and plan.micro_batch_sizes["teacher.sft"] == 32
    sized = with_micro_batches(config, plan)
    assert sized.teacher is not None and sized.teacher.sft is not None
    assert sized.teacher.sft.tokens_per_micro_batch == plan.tokens_per_micro_batch["teacher.sft"] > 0
    training = next(stage for stage in plan.stages if stage.name == "training")
    assert training.held["initial student"] == training.held["student"]


@pytest.mark.parametrize(
    ("path", "weights"),
    [
        ("google/t5-base-lm-adapt", 247_577_856),
        ("google/flan-t5-large", 783_150_080),
        ("google/flan-t5-xl", 2_849_757_184),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_known_shapes_have_the_published_weights(path: str, weights: int) -> None:
    config = known_config(path)
    assert config is not None
    model = empty_model(config, torch.bfloat16, None)
    assert sum(one.numel() for one in model.parameters()) == weights


def test_every_checkpoint_of_the_configuration_has_a_known_shape() -> None:
    for scale, task in (("single_gpu", "xsum"), ("single_gpu", "gsm8k"), ("paper", "xsum"), ("paper", "gsm8k")):
        config = configured("alpha=0.5", f"scale={scale}", f"task={task}")
        assert config.teacher is not None
        paths = {config.student.path, config.teacher.path}
        paths |= {row["path"] for row in config.scale.sizes.values()}
        assert paths <= KNOWN_CONFIGURATIONS.keys()


@pytest.mark.exhaustive
def test_less_memory_makes_smaller_micro_batches(checkpoint: str) -> None:
    def largest(gib: float) -> tuple[int, MemoryPlan]:
        _, plan = planned(*scaled(checkpoint, "teacher.audit_prompts=0", f"scale.memory_gib={gib}"))
        return plan.micro_batch_sizes["trainer"], plan

    largest(16)  # loads what a plan takes in this process, which counts as well
    whole, plan = largest(16)
    training = next(stage for stage in plan.stages if stage.name == "training")
    update = sum(training.phases["update"].values())
    size, tight = largest((plan.process + sum(training.held.values()) + update * 0.8) / 0.92 / 2**30)
    assert whole == 32 and 1 < size <= 16
    stage = next(stage for stage in tight.stages if stage.name == "training")
    assert sum(stage.phases["update"].values()) <= update * 0.8


@pytest.mark.exhaustive
@pytest.mark.usefixtures("composed_once")
def test_a_run_that_does_not_fit_names_its_largest_part(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["task.max_prompt_tokens=32", "task.max_completion_tokens=16", "scale.memory_gib=0.1"]
    assert main(scaled(checkpoint, *sizes)) == 1
    said = capsys.readouterr().out
    assert "failed   memory" in said and "It does not fit, most of it is" in said
    assert "unknown  data" in said  # the Hub
    assert "failed   tokenizers" in said  # the folder has none


def test_the_doctor_of_the_default_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["experiment=xsum_rl", "reward=faithfulness", "task.train_size=300", "task.test_size=10"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    states = {line.split()[1]: line.split()[0] for line in lines if not line.startswith(" ")}
    names = ["settings", "devices", "precision", "hub", "data", "tokenizers", "lengths", "reward", "disk", "memory"]
    assert states == {**dict.fromkeys(names, "ok"), "ends": "unknown", "teacher": "unknown"}
    assert last == "12 checks, 0 failed, 2 not made (ends, teacher)"
    assert any("key-value cache" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("composed_once", "without_memory")
def test_the_doctor_trains_no_reward_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkd_rl.data.embedded.claims.generate", lambda split, size, seed: generate(split, 8, seed))
    small = ["task.train_size=100", "task.test_size=10", f"cache_dir={tmp_path}"]
    assert main(["experiment=xsum_rl", *small]) == 0
    assert "unknown  reward      entailment: the run trains its model first" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["alpha=7"], "alpha takes a number >= 0 and <= 1"),
        (["-m", "alpha=0,1"], "-m: the doctor checks one run"),
    ],
)
def test_settings_are_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.out == ""


SIZED = ["experiment=xsum_rl", "reward=faithfulness", "task.train_size=100", "task.test_size=10"]


@pytest.mark.usefixtures("composed_once", "without_memory")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["task.max_completion_tokens=4"], "failed   lengths"),
        (["task.max_prompt_tokens=10"], "raise task.max_prompt_tokens"),
        (["reward=exact_match"], "failed   reward"),
        (["teacher.device=cuda:9"], "failed   devices"),
        (["student.tokenizer=/no/such/folder"], "failed   tokenizers"),
    ],
)
def test_what_speaks_against_a_run_is_said(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = {text.partition("=")[0]: text for text in [*SIZED, *arguments]}  # each setting once
    assert main(list(typed.values())) == 1
    assert says in capsys.readouterr().out


def test_the_peak_is_measured_anew_for_every_run() -> None:
    size = 160_000_000
    reset_peak(CPU)
    before = peak_bytes(CPU)
    with mmap.mmap(-1, size) as block:  # not from malloc, which may have as much left over from earlier tests
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
        high = peak_bytes(CPU)
    assert high - before == pytest.approx(size, rel=0.2)
    reset_peak(CPU)
    assert peak_bytes(CPU) < high - 100_000_000
