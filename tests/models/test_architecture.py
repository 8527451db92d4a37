"""Hidden states and head against transformers' own loss, through a saved folder and back; and how models are built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel, MakePrompts, MakeRollout, MakeTokenizer, assert_close, padded
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gkd_rl.errors import ModelError
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import ENCODER_DECODERS, HiddenStateModel
from gkd_rl.models.checkpoint import locate
from gkd_rl.models.loading import (
    build_model,
    check_same_ends,
    check_same_vocabulary,
    load_model,
    load_tokenizer,
    save_model,
)
from gkd_rl.types import Projection, Rollout, shift_right

PROMPTS = [[3, 4, 5, 6, 7], [5], [7, 7, 3]]
COMPLETIONS = [
    [4, 5, 1],
    [3, 3, 3, 3, 6, 1],
    [1],
    [2, 0, 4, 4],
    [6, 1],
    [5, 7, 0, 0, 1],
]  # pad and unknown are words too
KINDS: dict[str, dict[str, Any]] = {
    "v1.0": {"feed_forward_proj": "relu"},
    "v1.0 said aloud": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"tie_word_embeddings": False},
    "mt5": {"model_type": "mt5"},
    "umt5": {"model_type": "umt5", "num_layers": 2, "num_decoder_layers": 2},
    "longt5": {"model_type": "longt5", "local_radius": 4},
    "longt5 global": {
        "model_type": "longt5",
        "local_radius": 4,
        "global_block_size": 2,
        "encoder_attention_type": "transient-global",
        "tie_word_embeddings": False,
    },
    "bart": {"model_type": "bart", "scale_embedding": True},
    "mbart": {"model_type": "mbart"},
}
T5_SCALE = 16**-0.5
SCALES = {"v1.0": T5_SCALE, "v1.0 said aloud": T5_SCALE, "umt5": T5_SCALE, "longt5": T5_SCALE}  # others: 1


def test_every_admitted_type_is_verified() -> None:
    types = {str(changes.get("model_type", "t5")) for changes in KINDS.values()}
    assert types == set(ENCODER_DECODERS)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    model = make_model(few_words, seed=1, **KINDS[kind]).eval()
    if "bart" in kind:  # a published one is not 0 everywhere
        model.model.final_logits_bias = nn.Buffer(torch.linspace(-1, 1, 8).unsqueeze(0))
    return model


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    return make_rollout(make_prompts(PROMPTS), COMPLETIONS, per_prompt=2)


def logp_of(model: HiddenStateModel, rollout: Rollout) -> Tensor:
    terms = FusedHead(None)(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
    return terms.logp_BT.sum(dim=1)


def test_log_probability_equals_transformers_cross_entropy(
    model: HiddenStateModel, rollout: Rollout, kind: str
) -> None:
    """Each sequence alone, without padding, by the library's own loss on its own logits."""
    expected = []
    for i, completion in enumerate(COMPLETIONS):
        prompt = torch.tensor([[*PROMPTS[i // 2], 1]])
        labels = torch.tensor([completion])
        # mBART's own shift begins with the last label, a language code in its data; its generate begins as we do
        begun = {"decoder_input_ids": shift_right(labels, 0)} if kind == "mbart" else {}
        loss = model.model(input_ids=prompt, attention_mask=torch.ones_like(prompt), labels=labels, **begun).loss
        expected.append(-loss * len(completion))
    torch.testing.assert_close(logp_of(model, rollout), torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert model.head().scale == pytest.approx(SCALES.get(kind, 1.0))


def test_a_saved_model_comes_back_the_same(
    model: HiddenStateModel, rollout: Rollout, few_words: PreTrainedTokenizerFast, kind: str, tmp_path: Path
) -> None:
    with torch.no_grad():  # as after training: no weight is what a configuration would make of it
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_model(tmp_path / "model", model.model, few_words, "a card\n")
    for loaded in (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model"),
        load_model(locate(str(tmp_path / "model"), None, "student.path"), torch.float32),
    ):
        again = HiddenStateModel(loaded).eval()
        assert again.head().scale == pytest.approx(SCALES.get(kind, 1.0))
        torch.testing.assert_close(logp_of(again, rollout), logp_of(model, rollout), rtol=0, atol=0)
        prompts = rollout.prompts
        arguments = {
            "input_ids": prompts.ids_PS,
            "attention_mask": prompts.mask_PS.long(),
            "labels": rollout.ids_BT[::2].contiguous(),
        }
        torch.testing.assert_close(loaded(**arguments).logits, model.model(**arguments).logits, rtol=0, atol=0)
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "a card\n"
    assert load_tokenizer(locate(str(tmp_path / "model"), None, "student.path")).get_vocab() == few_words.get_vocab()


def test_a_head_of_its_own_survives_the_folder(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, tmp_path: Path
) -> None:
    """Published v1.1 checkpoints have an output embedding that is not the input embedding."""
    model = make_model(few_words, tie_word_embeddings=False).eval()
    tied: Any = model.model
    tied.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().flip(0).clone())
    save_model(tmp_path / "model", model.model, few_words, "")
    again = HiddenStateModel(load_model(locate(str(tmp_path / "model"), None, "student.path"), torch.float32)).eval()
    torch.testing.assert_close(again.head().weight_VD, tied.lm_head.weight, rtol=0, atol=0)
    torch.testing.assert_close(logp_of(again, rollout), logp_of(model, rollout), rtol=0, atol=0)


def test_padding_changes_neither_values_nor_gradients(
    model: HiddenStateModel, kind: str, rollout: Rollout, make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    """On the left, T5's distances between words stay; BART counts columns, and LongT5 cuts them in blocks."""
    right = make_rollout(make_prompts(PROMPTS, extra=4), COMPLETIONS, per_prompt=2, extra=3)
    garbage = replace(right, ids_BT=right.ids_BT.masked_fill(~right.mask_BT, 7))
    left = replace(rollout, prompts=padded(rollout.prompts, 3, 1))
    one_order = "bart" in kind or "global" in kind
    gradients = []
    for one in (rollout, right, garbage, *([] if one_order else [left])):
        model.zero_grad()
        torch.testing.assert_close(logp_of(model, one), logp_of(model, rollout), rtol=1e-5, atol=1e-5)
        logp_of(model, one).sum().backward()
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]))
        assert_close(gradients[-1], gradients[0])


def test_the_encoder_reads_each_prompt_once(model: HiddenStateModel, rollout: Rollout) -> None:
    rows: list[int] = []
    model.model.get_encoder().register_forward_hook(lambda *call: rows.append(call[2].last_hidden_state.shape[0]))
    model(rollout)
    assert rows == [len(PROMPTS)]


def test_decoding_gives_the_hidden_states_of_teacher_forcing(model: HiddenStateModel, rollout: Rollout) -> None:
    """Token by token, with rows that leave on the way."""
    expected = model(rollout)
    state = model.start(rollout.prompts, per_prompt=2)
    live = torch.arange(len(COMPLETIONS))
    for position in range(rollout.ids_BT.shape[1]):
        valid = rollout.mask_BT[live, position]
        torch.testing.assert_close(state.hidden_BD[valid], expected[live[valid], position], rtol=1e-4, atol=1e-5)
        if position in (0, 2):
            rows = (rollout.mask_BT[live, position + 1]).nonzero().squeeze(1)
            assert 0 < rows.numel() < live.numel()
            state.keep(rows)
            live = live[rows]
            torch.testing.assert_close(state.hidden_BD, expected[live, position], rtol=1e-4, atol=1e-5)
        assert state.step(rollout.ids_BT[live, position]) is state.hidden_BD


def test_models_that_cannot_be_trained_are_refused(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout
) -> None:
    decoder_only = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8))
    with pytest.raises(ModelError, match="model_type=gpt2 cannot be trained"):
        HiddenStateModel(decoder_only)
    model = make_model(few_words)
    model.model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        model(rollout)


def test_weights_are_decided_by_the_seed_alone(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(1)
    first = make_model(few_words, seed=7)
    outside = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == outside  # building a model draws nothing from the global generator
    again, other = make_model(few_words, seed=7), make_model(few_words, seed=8)
    weights = [list(one.state_dict().values()) for one in (first, again, other)]
    assert all(torch.equal(one, two) for one, two in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(weights[0], weights[2], strict=True))
    config = first.model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (8, 0, 1, 0)


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"model_type": "no_such_model"},
        {"model_type": "gpt2"},
        {"model_type": "t5", "vocab_size": 7},
        {"model_type": "t5", "d_model": "wide"},
        {"model_type": "t5", "feed_forward_proj": "a-b-c"},
        {"model_type": "t5", "d_modl": 4},
        {"model_type": "t5", "num_heads": 0},
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "llama", "num_heads": 2},
        {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 0},
    ],
    ids=str,
)
def test_an_architecture_that_cannot_be_built_is_refused_by_its_setting(
    architecture: dict[str, Any], few_words: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ModelError, match=r"teacher\.architecture[.=]"):
        build_model(architecture, few_words, 0, torch.float32, "teacher")


def test_a_folder_without_a_model_is_refused_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"student\.path="):
        load_model(locate(str(tmp_path), None, "student.path"), torch.float32)
    with pytest.raises(ModelError, match=r"student\.tokenizer="):
        load_tokenizer(locate(str(tmp_path), None, "student.tokenizer"))


def test_models_that_mean_different_things_by_an_id_are_refused(make_tokenizer: MakeTokenizer) -> None:
    check_same_vocabulary(make_tokenizer("a b"), make_tokenizer("a b"))
    for words, difference in {
        "a c": r"'b' is id 4 of the student and no token of the teacher \(5 and 5 tokens, 2 differ\)",
        "b a": r"'a' is id 3 of the student and id 4 of the teacher \(5 and 5 tokens, 2 differ\)",
        "a b c": r"'c' is no token of the student and id 5 of the teacher \(5 and 6 tokens, 1 differ\)",
        "a": r"'b' is id 4 of the student and no token of the teacher \(5 and 4 tokens, 1 differ\)",
    }.items():
        with pytest.raises(ModelError, match=f"different tokenizers: {difference}"):
            check_same_vocabulary(make_tokenizer("a b"), make_tokenizer(words))


def test_a_teacher_that_goes_on_after_the_students_end_is_refused() -> None:
    check_same_ends((1, 7), (5, 1))
    with pytest.raises(ModelError, match="ends sequences with id 1, teacher with 5 or 7"):
        check_same_ends((1, 7), (5, 7))
