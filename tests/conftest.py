"""What every room of the suite shares: models of some thousand weights, vocabularies of a few words, fixed rollouts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from gkd_rl import doctor
from gkd_rl.cli import command_line as precheck
from gkd_rl.config import Config
from gkd_rl.config.validation import validate
from gkd_rl.data.embedded.tokenizer import SPECIAL, build_tokenizer
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import DECODER_ONLY, HiddenStateModel
from gkd_rl.models.loading import build_model
from gkd_rl.pipeline import doctor_checks as checkup
from gkd_rl.pipeline.build import Models, build_critic
from gkd_rl.pipeline.build_trainer import build_trainer
from gkd_rl.run import find_config_dir
from gkd_rl.training.teacher_data import TeacherSamples
from gkd_rl.training.trainer import StepRecord, Trainer
from gkd_rl.types import Example, PromptBatch, Rollout, Source
from reward_models.composite import Composite

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: as many of those run at once as cores
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """All but the tests that are asked for with -m gpu are about the CPU, also on a machine with a GPU."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(trylast=True)  # after tests were deselected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow or many tests come first: while the last file runs, the other workers have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -count[item.path]))


ARCHITECTURE = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,  # so that a word of the past, and its distance, weigh as much as the last one
}

BART = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "init_std": 0.5,
    "forced_eos_token_id": None,
}

ARCHITECTURES = {"t5": ARCHITECTURE, "llama": LLAMA}


def essential(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Values for `parametrize`: all but `kept` get the marker `exhaustive`. A tuple holds several arguments."""
    rows = [one if isinstance(one, tuple) else (one,) for one in values]
    essential_rows = [one if isinstance(one, tuple) else (one,) for one in kept]
    absent = [row for row in essential_rows if row not in rows]
    assert not absent, f"essential cases that do not exist: {absent}"
    return [pytest.param(*row, marks=() if row in essential_rows else pytest.mark.exhaustive) for row in rows]


# students; the two essential ones differ in architecture and in what is trained
KINDS = essential(["t5", "llama", "t5 with LoRA", "llama with LoRA"], "t5", "llama with LoRA")
PROMPTS, PER_PROMPT, LONGEST = 4, 2, 8
SIZES = (
    *(f"trainer.prompts_per_step={PROMPTS}", f"rollout.per_prompt={PER_PROMPT}", "trainer.diagnose_every=0"),
    "reward.judge=null",  # tests bring rewards of their own
)
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
MakeModel = Callable[..., HiddenStateModel]
MakeStudent = Callable[..., HiddenStateModel]
MakeExamples = Callable[..., list[Example]]
MakePrompts = Callable[..., PromptBatch]
MakeRollout = Callable[..., Rollout]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """`make_tokenizer("a b")`: the embedded tokenizer with other words; pad is 0, end 1, unknown 2, then the words."""

    def make(words: str) -> PreTrainedTokenizerFast:
        ids = {word: i for i, word in enumerate([*SPECIAL, *words.split()])}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )

    return make


@pytest.fixture(scope="session")
def few_words(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    """A vocabulary of eight, so that random models end their sequences now and then."""
    return make_tokenizer("a b c d e")


@pytest.fixture(scope="session")
def news_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """`make_model(tokenizer, seed, **architecture)`: a fresh T5 of random weights; a Llama by `model_type="llama"`.

    `lively` gives it an output embedding of its own: one that is tied to the input embedding repeats its last word.
    """

    def make(
        tokenizer: PreTrainedTokenizerBase, seed: int = 0, *, lively: bool = False, **changes: object
    ) -> HiddenStateModel:
        kind = str(changes.get("model_type"))
        base = LLAMA if kind in DECODER_ONLY else BART if kind.endswith("bart") else ARCHITECTURE
        model = build_model({**base, **changes}, tokenizer, seed, torch.float32, "student")
        if lively:
            head: Any = model.get_output_embeddings()
            values = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
            head.weight = nn.Parameter(values)
        return HiddenStateModel(model)

    return make


@pytest.fixture(scope="session")
def make_student(make_model: MakeModel) -> MakeStudent:
    """`make_student("llama with LoRA", tokenizer, seed, dropout)`: one of KINDS, lively."""

    def make(kind: str, tokenizer: PreTrainedTokenizerBase, seed: int = 8, dropout: float = 0.0) -> HiddenStateModel:
        base, _, adapter = kind.partition(" with ")
        rate = {"t5": "dropout_rate", "llama": "attention_dropout"}[base]
        model = make_model(tokenizer, seed=seed, lively=True, model_type=base, **{rate: dropout})
        return with_adapter(model, seed, dropout) if adapter else model

    return make


@pytest.fixture(scope="session")
def make_examples() -> MakeExamples:
    """`make_examples(n, seed)`: prompts of one to six of the words a..e, and references of one to four."""

    def make(count: int, seed: int = 0) -> list[Example]:
        generator = torch.Generator().manual_seed(seed)

        def text(longest: int) -> str:
            length = int(torch.randint(1, longest + 1, (), generator=generator))
            return " ".join("abcde"[i] for i in torch.randint(0, 5, (length,), generator=generator).tolist())

        rows = [(f"{text(5)} a", text(4)) for _ in range(count)]
        return [Example(prompt, reference, {"document": prompt}) for prompt, reference in rows]

    return make


@pytest.fixture(scope="session")
def make_prompts() -> MakePrompts:
    """`make_prompts([[3, 4], [5]], extra=2)`: right-padded ids, every row ended by id 1, `extra` columns of padding."""

    def make(rows: Sequence[Sequence[int]], extra: int = 0) -> PromptBatch:
        width = max(len(row) for row in rows) + 1 + extra
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row) + 1] = torch.tensor([*row, 1])
            mask[i, : len(row) + 1] = True
        return PromptBatch([Example(str(row), "", {}) for row in rows], ids, mask)

    return make


@pytest.fixture(scope="session")
def make_rollout() -> MakeRollout:
    """`make_rollout(prompts, [[3, 1], [4]], per_prompt=1, extra=2)`: given completions, padded by `extra` columns."""

    def make(
        prompts: PromptBatch, completions: Sequence[Sequence[int]], per_prompt: int = 1, extra: int = 0
    ) -> Rollout:
        width = max(len(row) for row in completions) + extra
        ids = torch.zeros(len(completions), width, dtype=torch.long)
        mask = torch.zeros(len(completions), width, dtype=torch.bool)
        for i, row in enumerate(completions):
            ids[i, : len(row)] = torch.tensor(list(row))
            mask[i, : len(row)] = True
        return Rollout(
            prompts=prompts,
            prompt_index_B=torch.arange(len(prompts.examples)).repeat_interleave(per_prompt),
            ids_BT=ids,
            mask_BT=mask,
            truncated_B=torch.tensor([1 not in row for row in completions]),
            texts=[" ".join(map(str, row)) for row in completions],
            source=Source.student,
        )

    return make


def with_adapter(model: HiddenStateModel, seed: int, dropout: float = 0.0) -> AdaptedModel:
    """LoRA on every linear layer, with two random matrices: a fresh adapter is 0, and one of its gradients too."""
    settings = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", lora_dropout=dropout)
    adapted = AdaptedModel(model.model, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, one in sorted(adapted.named_parameters()):
            if one.requires_grad:
                one.copy_(torch.rand(one.shape, generator=generator, dtype=torch.float64) - 0.5)
    return adapted


def share_of_a(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """A reward."""
    return [text.split().count("a") / (len(text.split()) + 1) for text in completions]


def letters(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """A reward that few completions share, of random models too."""
    return [sum((i + 1) * ord(letter) for i, letter in enumerate(text)) % 11 / 5 for text in completions]


def configured(*overrides: str) -> Config:
    """The configuration as the command line gives it; what Hydra composed once serves every change of a value."""
    groups = [one for one in overrides if one[0] in "+~" or (find_config_dir() / one.partition("=")[0]).is_dir()]
    values = OmegaConf.from_dotlist([one for one in overrides if one not in groups])
    config = OmegaConf.to_object(OmegaConf.merge(_composed(*groups), values))
    assert isinstance(config, Config)
    return config


@pytest.fixture
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's settings are `configured`: Hydra composes a command line three times, which takes seconds."""

    def settings(arguments: list[str]) -> Config:
        config = configured(*arguments)
        validate(config)
        return config

    monkeypatch.setattr(doctor, "_configured", settings)


COMPOSED: dict[str, DictConfig | Exception] = {}


@pytest.fixture
def commands_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Hydra made of the same overrides is made no second time, which is most of a refusal's seconds."""

    def composed(name: str, overrides: Sequence[str] = (), **more: Any) -> DictConfig:
        refused, key = repr((name, *overrides)), repr((name, *overrides, more))
        if key not in COMPOSED and refused not in COMPOSED:
            try:
                COMPOSED[key] = compose(name, list(overrides), **more)
            except Exception as error:
                COMPOSED[refused] = error
        found = COMPOSED.get(refused) or COMPOSED[key]
        if isinstance(found, Exception):
            raise found
        return copy.deepcopy(found)

    monkeypatch.setattr(precheck, "compose", composed)


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor plans no memory, which takes seconds."""
    monkeypatch.setattr(checkup, "_memory", lambda *_: iter(()))


@functools.cache
def _composed(*groups: str) -> DictConfig:
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return compose("config", list(groups))


def config_of(*overrides: str) -> Config:
    """The configuration at the sizes of a few words."""
    return configured(*SIZES, *overrides)


def models_of(student: HiddenStateModel, teacher: HiddenStateModel | None, codec: TextCodec) -> Models:
    """Both models and the initial student: a frozen copy, or what is there without the adapter."""
    if isinstance(student, AdaptedModel):
        return Models(student, teacher, InitialView(student), codec)
    return Models(student, teacher, copy.deepcopy(student).requires_grad_(False).eval(), codec)


def padded(prompts: PromptBatch, left: int = 0, right: int = 0) -> PromptBatch:
    """The same prompts in more columns."""
    ids, mask = (torch.nn.functional.pad(one, (left, right)) for one in (prompts.ids_PS, prompts.mask_PS))
    return dataclasses.replace(prompts, ids_PS=ids, mask_PS=mask)


def codec_of(kind: str, tokenizer: PreTrainedTokenizerBase, longest: int = LONGEST) -> TextCodec:
    """Of one of KINDS."""
    return TextCodec(tokenizer, 20, longest, torch.device("cpu"), decoder_only=kind.startswith("llama"))


@pytest.fixture
def codec(few_words: PreTrainedTokenizerFast) -> TextCodec:
    return codec_of("t5", few_words)


@pytest.fixture
def make_trainer(
    make_model: MakeModel, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> MakeTrainer:
    """`make_trainer("alpha=0.5", reward=stub)`: as `build.py` wires it, with models and prompts of a few words.

    `kind` is the student's, `same=True` makes a teacher that is the student, `samples` are the teacher's.
    """

    def make(
        *overrides: str,
        reward: Callable[..., list[float]] = share_of_a,
        dropout: float = 0.0,
        seed: int = 0,
        kind: str = "t5",
        same: bool = False,
        samples: list[list[int]] | None = None,
    ) -> Trainer:
        config, codec = config_of(*overrides), codec_of(kind, few_words)
        student = make_student(kind, few_words, dropout=dropout)
        teacher = copy.deepcopy(student) if same else None
        if teacher is None:
            base = {"model_type": "llama", "hidden_size": 24} if codec.decoder_only else {"d_model": 24}
            teacher = make_model(few_words, seed=28, lively=True, **base)
        models = models_of(student, teacher.requires_grad_(False).eval(), codec)
        written = None if samples is None else TeacherSamples(teacher, samples)
        models = dataclasses.replace(models, critic=build_critic(config, student), samples=written)
        stream = PromptStream(make_examples(12), config.trainer.prompts_per_step, seed)
        return build_trainer(config, models, Composite({"stub": reward}, {"stub": 1.0}), stream, Accelerator(cpu=True))

    return make


class Recorder(SGD):
    """Takes no step; keeps the gradient that it was given."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        super().__init__(model.parameters(), lr=1.0)

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
        self.gradient = torch.cat([one.flatten().clone() for one in gradients])


def gradient_of(trainer: Trainer, step: int = 0, model: nn.Module | None = None) -> tuple[Tensor, StepRecord]:
    """The gradient of a step that is not taken, of the student unless another module is named."""
    recorder = Recorder(trainer.student if model is None else model)
    trainer.optimizer, trainer.schedule = recorder, LambdaLR(recorder, lambda _: 1.0)
    record = trainer.step(step)
    return recorder.gradient, record


def logits_of(model: HiddenStateModel, rollout: Rollout) -> Tensor:
    """Transformers' own logits before each completion token, (B, T, V): every completion alone, without padding."""
    rows, inner = [], model.model
    for row, index in enumerate(rollout.prompt_index_B.tolist()):
        prompt = rollout.prompts.ids_PS[index][rollout.prompts.mask_PS[index]].unsqueeze(0)
        written = rollout.ids_BT[row][rollout.mask_BT[row]].unsqueeze(0)
        if inner.config.is_encoder_decoder:
            rows.append(inner(input_ids=prompt, labels=written).logits[0])
        else:
            rows.append(inner(torch.cat([prompt, written], 1)).logits[0, -written.shape[1] - 1 : -1])
    return pad_sequence(rows, batch_first=True)


def derivative(loss: Tensor, model: nn.Module) -> Tensor:
    """With respect to all parameters of the model as one vector, 0 of those that are frozen."""
    trained = [one for one in model.parameters() if one.requires_grad]
    found = iter(torch.autograd.grad(loss, trained))
    parts = [next(found) if one.requires_grad else torch.zeros_like(one) for one in model.parameters()]
    return torch.cat([one.flatten() for one in parts])


def assert_close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the other's norm."""
    assert other.norm() > 0
    assert (one - other).norm() / other.norm() < tolerance
