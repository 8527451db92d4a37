"""Checkpoints as people have them: folders, pickles, GGUF files, pruned depths; and a sentence for each that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeExamples, MakeModel, MakePrompts, MakeRollout, config_of, essential
from gguf_writer import GGUF_SIZE, write_gguf
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast

from gkd_rl.config import ModelConfig
from gkd_rl.config.choices import Dtype
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models import checkpoint as model_files
from gkd_rl.models import loading
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import LoadOptions, end_ids, folder_digest, locate, read_config
from gkd_rl.models.loading import load_checkpoint, load_model, load_tokenizer, save_model
from gkd_rl.pipeline.build import build_task, codec_of, resolve_checkpoint, resolve_models
from gkd_rl.pipeline.cache import model_key
from gkd_rl.pipeline.preflight import check_checkpoints
from gkd_rl.types import Projection, Rollout

CPU = torch.device("cpu")
COMPLETIONS = [[4, 5, 1], [3, 3, 3, 6, 1], [1], [2, 0, 4, 4]]
DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 4},
    "gemma2": {"num_hidden_layers": 4, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 3},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]},
    "t5": {"num_layers": 4, "num_decoder_layers": 3},
    "umt5": {"num_layers": 3, "num_decoder_layers": 3},
    "longt5": {"num_layers": 3, "num_decoder_layers": 3, "encoder_attention_type": "transient-global",
               "local_radius": 4, "global_block_size": 2},
    "bart": {"encoder_layers": 3, "decoder_layers": 4},
}  # fmt: skip


def logp_of(model: HiddenStateModel, rollout: Rollout) -> Tensor:
    terms = FusedHead(None)(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
    return terms.logp_BT


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    return make_rollout(make_prompts([[3, 4, 5, 6], [5]]), COMPLETIONS, per_prompt=2)


@pytest.fixture
def llama(make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A saved Llama of two layers with its tokenizer."""
    save_model(tmp_path / "llama", make_model(few_words, model_type="llama", num_hidden_layers=2).model, few_words, "")
    return tmp_path / "llama"


def load(folder: Path, **options: Any) -> HiddenStateModel:
    loaded = load_model(locate(str(folder), None, "student.path", LoadOptions(**options)), torch.float32)
    return HiddenStateModel(loaded).eval()


def refused(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(locate(str(folder), None, "student.path", LoadOptions(**options)), torch.float32)
    return str(caught.value)


# Depth pruning


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("keep", essential([[0, 2], [1, 2]], [0, 2]))
def test_a_pruned_model_computes_with_the_kept_layers_and_saves_as_itself(
    kind: str, keep: list[int], make_model: MakeModel, make_examples: MakeExamples, rollout: Rollout,
    few_words: PreTrainedTokenizerFast, tmp_path: Path,
) -> None:  # fmt: skip
    """Against the whole model whose other layers are passed over in its own forward."""
    whole = make_model(few_words, seed=2, lively=True, model_type=kind, **DEEP[kind]).eval()
    save_model(tmp_path / "whole", whole.model, few_words, "")
    pruned = load(tmp_path / "whole", keep_layers=keep)
    save_model(tmp_path / "pruned", pruned.model, few_words, "")
    again = load(tmp_path / "pruned")
    for stack in [*_stacks(whole)]:
        _pass_over_all_but(stack, keep)
    expected = logp_of(whole, rollout)
    torch.testing.assert_close(logp_of(pruned, rollout), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logp_of(again, rollout), logp_of(pruned, rollout), rtol=0, atol=0)
    codec = TextCodec(few_words, 20, 8, CPU, decoder_only=pruned.architecture.decoder_only)
    prompts = codec.prompts(make_examples(5))
    one, two = (Sampler(codec, GREEDY).sample(model, prompts, 1, None) for model in (pruned, again))
    assert one.ids_BT.tolist() == two.ids_BT.tolist()
    free = replace(one, prompts=prompts)  # the cache has one row for each layer, in order
    assert (logp_of(pruned, free).exp()[one.mask_BT] > 1 / 8).all()
    auto = AutoModelForCausalLM if pruned.architecture.decoder_only else AutoModelForSeq2SeqLM
    answer: Any = auto.from_pretrained(tmp_path / "pruned", output_loading_info=True)
    loaded, info = answer
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(one.numel() for one in loaded.parameters()) < sum(one.numel() for one in whole.model.parameters())


def _stacks(model: HiddenStateModel) -> list[Any]:
    inner = model.model
    return [inner.get_decoder(), *([] if model.architecture.decoder_only else [inner.get_encoder()])]


def _pass_over_all_but(stack: Any, keep: list[int]) -> None:
    """Layers that give their input back; a first one of T5 gives its position bias on."""
    for i, layer in enumerate(stack.block if hasattr(stack, "block") else stack.layers):
        if i in keep:
            continue
        forward = layer.forward

        def skip(hidden: Tensor, *rest: Any, forward: Any = forward, **named: Any) -> Any:
            given = forward(hidden, *rest, **named)
            return (hidden, *given[1:]) if isinstance(given, tuple) else hidden

        layer.forward = skip


@pytest.mark.parametrize("keep", [[], [2], [-1, 0], [0, 0], [1, 0], [0, 5]])
def test_layers_that_the_model_does_not_have_are_refused_before_the_weights(keep: list[int], llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    message = refused(llama, keep_layers=keep)
    assert message.startswith(f"student.keep_layers={keep}: the model has 2 layers")
    assert "0 to 1" in message


def test_both_stacks_must_have_the_kept_layers(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tmp_path / "t5", make_model(few_words, num_layers=3, num_decoder_layers=2).model, few_words, "")
    assert "the model has 2 layers in each stack" in refused(tmp_path / "t5", keep_layers=[0, 2])
    pruned = load(tmp_path / "t5", keep_layers=[1]).model.config
    assert (pruned.num_layers, pruned.num_decoder_layers) == (1, 1)


# What cannot be loaded


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/none", "./none", "~/none/none"):
        assert f"student.path={path}: there is no folder" in refused(path)


def test_a_corrupt_safetensors_file(llama: Path) -> None:
    weights = (llama / "model.safetensors").read_bytes()
    for broken in (b"not a header at all", weights[: len(weights) // 2], b""):
        (llama / "model.safetensors").write_bytes(broken)
        assert refused(llama).startswith(f"student.path={llama}: model.safetensors is damaged (")


def test_weights_of_another_shape_or_not_all_of_them(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "lacks 9 weights of its configuration, the first is model.layers.2." in refused(llama)
    (llama / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    assert "no model could be loaded" in refused(llama)


def test_pickled_weights_are_read_only_when_asked(llama: Path, rollout: Rollout) -> None:
    expected = load(llama)
    state = expected.model.state_dict()
    (llama / "model.safetensors").unlink()
    torch.save(state, llama / "pytorch_model.bin")
    message = refused(llama)
    assert "student.use_safetensors=false" in message
    torch.testing.assert_close(logp_of(load(llama, use_safetensors=False), rollout), logp_of(expected, rollout))


def test_remote_code_runs_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from transformers import LlamaConfig\n\nclass Mine(LlamaConfig):\n    model_type = 'mine'\n"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}))
    assert "set student.trust_remote_code=true" in refused(tmp_path)
    assert "has model_type=mine, which cannot be trained here" in refused(tmp_path, trust_remote_code=True)


def test_a_type_that_cannot_be_trained_is_refused_before_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "has model_type=bert, which cannot be trained here" in refused(tmp_path)


def test_a_folder_without_a_tokenizer(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_model(few_words, model_type="llama").model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"student\.path=.*no tokenizer could be loaded.*Set student\.tokenizer"):
        load_tokenizer(locate(str(tmp_path), None, "student.path"))


# GGUF


@pytest.fixture
def gguf_file(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> tuple[Path, HiddenStateModel]:
    """A GGUF file and the model that it was written from."""
    model = make_model(few_words, seed=4, lively=True, model_type="llama", **GGUF_SIZE).eval()
    write_gguf(tmp_path / "tiny.gguf", model.model)
    return tmp_path / "tiny.gguf", model


def test_a_gguf_file_by_its_folder_and_by_itself(
    gguf_file: tuple[Path, HiddenStateModel], rollout: Rollout, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path, model = gguf_file
    for loaded in (load(path), load(path.parent, gguf_file=path.name)):
        torch.testing.assert_close(logp_of(loaded, rollout), logp_of(model, rollout), rtol=1e-5, atol=1e-5)
    pruned = load(path, keep_layers=[1])
    assert pruned.model.config.num_hidden_layers == 1
    save_model(tmp_path / "saved", pruned.model, few_words, "")
    torch.testing.assert_close(logp_of(load(tmp_path / "saved"), rollout), logp_of(pruned, rollout), rtol=0, atol=0)
    assert end_ids(locate(str(path), None, "student.path")) == (1,)


def test_a_gguf_file_that_is_missing_broken_or_unreadable(
    gguf_file: tuple[Path, HiddenStateModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = gguf_file
    message = refused(path.parent, gguf_file="other.gguf")
    assert message.startswith("student.gguf_file=other.gguf: ") and "it has tiny.gguf" in message
    assert refused(path.with_name("other.gguf")).startswith("student.path=other.gguf: ")
    (path.parent / "broken.gguf").write_bytes(b"GGUF and no more")
    assert "no model could be loaded" in refused(path.parent, gguf_file="broken.gguf")
    monkeypatch.setattr(model_files, "is_gguf_available", lambda: False)
    assert "needs the package gguf; type `pip install gguf`" in refused(path)


# Ends, kinds and keys


def settings(path: Path | None, **changes: Any) -> ModelConfig:
    given = {"path": None if path is None else str(path), "architecture": None, "sft": None, "dtype": Dtype.float32}
    return replace(config_of().student, **{**given, **changes})


def test_ends_come_from_the_tokenizer_then_from_the_configuration(
    llama: Path, few_words: PreTrainedTokenizerFast
) -> None:
    task = build_task(config_of())
    few_words.save_pretrained(llama)

    def ends() -> tuple[int, ...]:
        return codec_of(resolve_checkpoint(settings(llama), "student", task), CPU).eos_ids

    (llama / "generation_config.json").unlink(missing_ok=True)
    (llama / "model.safetensors").unlink()  # no weights are read
    assert ends() == (1,)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "eos_token_id": [6, 1]}))
    assert ends() == (1, 6)
    GenerationConfig(eos_token_id=[5, 4]).save_pretrained(llama)
    assert ends() == (1, 5, 4)
    few_words_without_end = PreTrainedTokenizerFast(tokenizer_object=few_words.backend_tokenizer)
    with pytest.raises(ModelError, match="names an end-of-sequence token"):
        TextCodec(few_words_without_end, 4, 4, CPU)
    assert TextCodec(few_words_without_end, 4, 4, CPU, eos_ids=(1,)).pad_id == 1


def test_a_teacher_of_another_kind_is_refused_and_one_of_the_same_shares_its_ends(
    llama: Path, make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tmp_path / "t5", make_model(few_words).model, few_words, "")
    config, task = config_of(), build_task(config_of())

    def codecs(student: Path, teacher: Path) -> tuple[TextCodec, TextCodec | None]:
        assert config.teacher is not None
        run = replace(config, student=settings(student))
        other = replace(config.teacher, path=str(teacher), architecture=None, sft=None)
        found = resolve_models(replace(run, teacher=other), task, CPU)
        return found.codec, found.teacher_codec

    for student, teacher, message in (
        (llama, tmp_path / "t5", "is decoder-only and teacher.*is an encoder-decoder"),
        (tmp_path / "t5", llama, "is an encoder-decoder and teacher.*is decoder-only"),
    ):
        with pytest.raises(ModelError, match=message):
            codecs(student, teacher)
    GenerationConfig(eos_token_id=[5, 1]).save_pretrained(llama)
    codec, own = codecs(llama, llama)
    assert (codec.eos_ids, own) == ((1, 5), None)


def test_a_model_has_a_key_of_its_own_for_how_it_is_loaded(
    llama: Path, few_words: PreTrainedTokenizerFast, make_examples: MakeExamples
) -> None:
    codec = TextCodec(few_words, 20, 8, CPU, decoder_only=True)
    changes: list[dict[str, Any]] = [
        {}, {"keep_layers": [0]}, {"keep_layers": [1]}, {"gguf_file": "a.gguf"}, {"use_safetensors": False},
        {"trust_remote_code": True}, {"chat": True},
    ]  # fmt: skip
    keys = [model_key(settings(llama, **one), codec, make_examples(3)) for one in changes]
    codec.eos_ids = (5, 1)
    keys.append(model_key(settings(llama), codec, make_examples(3)))
    assert len(set(keys)) == len(keys)


def test_the_digest_of_a_gguf_file_is_that_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert folder_digest(str(path)) is None
    path.write_bytes(b"one")
    first = folder_digest(str(path))
    path.write_bytes(b"two")
    assert None is not first != folder_digest(str(path)) is not None


def test_the_settings_reach_the_loader(
    llama: Path, few_words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_words.save_pretrained(llama)
    task = build_task(config_of())
    resolved = resolve_checkpoint(settings(llama, keep_layers=[1]), "student", task)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "read_config", None)  # the configuration was read when the checkpoint was resolved
        assert load_checkpoint(resolved).config.num_hidden_layers == 1
    assert resolved.configuration.num_hidden_layers == 2  # pruning is of the loaded model
    with pytest.raises(ModelError, match=r"student\.gguf_file=none\.gguf"):
        resolve_checkpoint(settings(llama, gguf_file="none.gguf"), "student", task)
    assert read_config(locate(str(llama), None, "student.path")).num_hidden_layers == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.keep_layers=[]", r"student\.keep_layers=\[\]: .* takes one or more layers"),
        ("student.keep_layers=[2,1]", r"student\.keep_layers=\[2, 1\]: .* rising order"),
        ("student.keep_layers=[1,1]", r"student\.keep_layers=\[1, 1\]: .* each once"),
        ("student.keep_layers=[0,1]", r"student\.keep_layers=\[0, 1\] with student\.path=null has no effect"),
        ("teacher.gguf_file=a.gguf", r"teacher\.gguf_file=a\.gguf with teacher\.path=null has no effect"),
    ],
)
def test_settings_that_contradict_one_another(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config_of(override))


def test_preflight_checks_how_every_job_generates_also_of_models_that_it_knows(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tmp_path / "t5", make_model(few_words).model, few_words, "")
    jobs = [
        replace(config_of(f"rollout.engine={engine}"), student=settings(tmp_path / "t5"), teacher=None)
        for engine in ("transformers", "vllm")
    ]
    check_checkpoints(jobs[:1])
    with pytest.raises(ModelError, match=r"rollout\.engine=vllm with a student of model_type=t5"):
        check_checkpoints(jobs)
