"""Completions that share a row with their prompt: the layout by hand, and the same numbers as in rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import (
    MakeExamples,
    MakeModel,
    MakePrompts,
    MakeRollout,
    MakeTrainer,
    assert_close,
    essential,
    gradient_of,
)
from decoder_only_kinds import ESSENTIAL, KINDS
from enumeration import CompletionSpace
from peft import LoraConfig
from test_decoder_only import left_padded, logp_of
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import DecoderOnly, EncoderDecoder, HiddenStateModel
from gkd_rl.models.row_layout import Rows, StackCost, row_lengths, shares_prompts
from gkd_rl.training.cost import ModelCost
from gkd_rl.types import Rollout

PROMPTS = [[3, 4, 5, 6, 7], [5], [7, 7, 3]]
COMPLETIONS = [[4, 5, 1], [3, 3, 3, 3, 6, 1], [1], [2, 0, 4, 4], [6, 1], [5, 7, 0, 0, 1], [3, 4]]
GROUPS = [0, 0, 0, 1, 2, 2, 2]  # three completions, one, three
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {"num_layers": 2, "num_decoder_layers": 2},
    "mt5": {"model_type": "mt5"},
    "umt5": {"model_type": "umt5", "num_layers": 2, "num_decoder_layers": 2},
    "longt5": {"model_type": "longt5", "local_radius": 4},
}
Lay = Callable[[bool], None]


@pytest.fixture
def lay(monkeypatch: pytest.MonkeyPatch) -> Lay:
    """`lay(True)`: every row is shared from now on; `lay(False)`: none is."""

    def set_all(shared: bool) -> None:
        for kind in (DecoderOnly, EncoderDecoder):
            monkeypatch.setattr(kind, "shares_prompts", lambda *_: shared)

    return set_all


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    """Groups of different sizes, completions of different lengths, some cut off."""
    rollout = make_rollout(make_prompts(PROMPTS, extra=2), COMPLETIONS, extra=2)
    return replace(rollout, prompt_index_B=torch.tensor(GROUPS))


def predicting(hidden: Tensor, rollout: Rollout) -> Tensor:
    """The states that a loss or a value reads: before each token and after the last."""
    return hidden[torch.nn.functional.pad(rollout.mask_BT, (1, 0), value=True)]


def states_and_gradients(model: HiddenStateModel, rollout: Rollout) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    states = predicting(model(rollout.extended()), rollout)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    ((states * weights).sum() + logp_of(model, rollout).sum()).backward()
    found = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    assert len(found) == sum(one.requires_grad for one in model.parameters())
    return states.detach(), found


def assert_same_both_ways(model: HiddenStateModel, rollout: Rollout, lay: Lay) -> None:
    lay(False)
    states, gradients = states_and_gradients(model, rollout)
    lay(True)
    found_states, found = states_and_gradients(model, rollout)
    torch.testing.assert_close(found_states, states, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) + 1e-6)


def test_the_rows_by_hand(make_prompts: MakePrompts, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(make_prompts([[5, 6], [7]]), [[3, 4, 1], [2, 1], [1], [4, 4, 4]], per_prompt=2)
    for prompts in (rollout.prompts, left_padded(rollout.prompts, 6)):
        rows = Rows.of(replace(rollout, prompts=prompts), shared=True)
        assert rows.ids_RW.tolist() == [[5, 6, 1, 3, 4, 2, 1], [7, 1, 1, 4, 4, 0, 0]]
        assert rows.position_RW.tolist() == [[0, 1, 2, 3, 4, 3, 4], [0, 1, 2, 2, 3, 0, 0]]
        assert rows.part_RW.tolist() == [[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, -1, -1]]
        assert rows.row_B.tolist() == [0, 0, 1, 1]
        assert [columns[mask].tolist() for columns, mask in zip(rows.columns_BT, rollout.mask_BT, strict=True)] == [
            [2, 3, 4],
            [2, 5],
            [1],
            [1, 3, 4],
        ]
        assert [["".join("x" if one else "." for one in line) for line in row[0]] for row in rows.seen(3).tolist()] == [
            ["x......", "xx.....", "xxx....", ".xxx...", "..xxx..", ".xx..x.", "..x..xx"],
            ["x......", "xx.....", "xxx....", "xx.x...", ".x.xx..", "x....xx", "x....xx"],
        ]
        assert bool((rows.seen(3) <= rows.seen(None)).all())
        assert rows.seen(None)[0, 0, 4].tolist() == [True] * 5 + [False] * 2


def test_rows_apart_by_hand(make_prompts: MakePrompts, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(make_prompts([[5, 6], [7]]), [[3, 4, 1], [2, 1], [1]])
    rollout = replace(rollout, prompt_index_B=torch.tensor([0, 0, 1]))
    rows = Rows.of(rollout, shared=False)
    used = rows.part_RW >= 0
    assert [ids[one].tolist() for ids, one in zip(rows.ids_RW, used, strict=True)] == [
        [5, 6, 1, 3, 4], [5, 6, 1, 2, 1], [7, 1, 1]
    ]  # fmt: skip
    assert used.tolist() == [[True] * 5, [True] * 5, [True] * 3 + [False] * 2]
    assert [columns[mask].tolist() for columns, mask in zip(rows.columns_BT, rollout.mask_BT, strict=True)] == [
        [2, 3, 4], [2, 3], [1]
    ]  # fmt: skip


# transformers gives Gemma 2 no sdpa
ATTENTIONS = [(kind, one) for kind in KINDS for one in ("sdpa", "eager") if (kind[:6], one) != ("gemma2", "sdpa")]


@pytest.mark.parametrize(
    ("kind", "attention"),
    essential(ATTENTIONS, *((kind, one) for kind, one in ATTENTIONS if kind in ESSENTIAL)),
)
def test_the_same_numbers_and_gradients(
    kind: str, attention: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    model = make_model(few_words, seed=1, model_type=kind.partition(",")[0], **KINDS[kind])
    model.model.set_attn_implementation(attention)
    for prompts in (rollout.prompts, left_padded(rollout.prompts, 9)):
        assert_same_both_ways(model, replace(rollout, prompts=prompts), lay)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, one) for kind in ENCODER_DECODERS for one in ("sdpa", "eager") if (kind[:6], one) != ("longt5", "sdpa")],
)
def test_completions_in_one_row_of_a_decoder(
    kind: str, attention: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    model = make_model(few_words, seed=1, **ENCODER_DECODERS[kind])
    model.model.set_attn_implementation(attention)
    assert_same_both_ways(model, rollout, lay)


def test_what_an_encoder_decoder_computes(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    """A prompt's keys and values once; no padding between completions, which all have their start token."""
    model = make_model(few_words)
    shapes: list[tuple[int, ...]] = []
    for part in (model.model.get_encoder(), model.model.get_decoder()):
        part.register_forward_hook(lambda *call: shapes.append(tuple(call[2].last_hidden_state.shape[:2])))
    cross: Any = model.model.get_submodule("decoder.block.0.layer.1.EncDecAttention.k")
    cross.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[:2])))
    lay(True)
    model(rollout)
    lay(False)
    model(rollout)
    S = rollout.prompts.ids_PS.shape[1]
    assert shapes == [(3, S), (3, S), (3, 13), (3, S), (7, S), (7, 8)]
    assert row_lengths(rollout, shared=True, encoded=True).tolist() == [10, 4, 9]
    assert row_lengths(rollout, shared=False, encoded=True).tolist() == [3, 6, 1, 4, 2, 5, 2]


def test_the_rows_of_a_decoder_by_hand(make_prompts: MakePrompts, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(make_prompts([[5, 6], [7]]), [[3, 4, 1], [2, 1], [1], [4, 4, 4]], per_prompt=2)
    rows = Rows.for_decoding(rollout, 9, shared=True)
    assert rows.ids_RW.tolist() == [[9, 3, 4, 9, 2, 1], [9, 1, 9, 4, 4, 0]]
    assert rows.part_RW.tolist() == [[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, -1]]
    assert [columns[mask].tolist() for columns, mask in zip(rows.columns_BT, rollout.mask_BT, strict=True)] == [
        [0, 1, 2], [3, 4], [0], [2, 3, 4]
    ]  # fmt: skip
    assert [["".join("x" if one else "." for one in line) for line in row[0]] for row in rows.seen(None).tolist()] == [
        ["x.....", "xx....", "xxx...", "...x..", "...xx.", "...xxx"],
        ["x.....", "xx....", "..x...", "..xx..", "..xxx.", ".....x"],
    ]


def test_learned_positions_keep_their_rows(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    rollout = make_rollout(make_prompts([[3] * 30]), [[3, 4]] * 4, per_prompt=4)
    for kind, rows in (("t5", 1), ("bart", 4)):
        model = make_model(few_words, model_type=kind)
        shapes: list[int] = []
        decoder: Any = model.model.get_decoder()
        decoder.register_forward_hook(lambda *call, seen=shapes: seen.append(len(call[2].last_hidden_state)))
        model(rollout)
        assert shapes == [rows]


def test_a_window_counts_positions_and_not_columns(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    """Else the last completion of a row would be out of its prompt's reach; the window is narrow enough to matter."""
    lay(True)
    part_W = Rows.of(rollout, shared=True).part_RW[2].tolist()
    assert part_W.index(3) - part_W.index(1) > 3
    whole, narrow = (
        make_model(few_words, seed=1, model_type="mistral", sliding_window=window, num_hidden_layers=2)
        for window in (None, 3)
    )
    assert not torch.allclose(whole(rollout)[6], narrow(rollout)[6], atol=1e-2)


def test_what_a_row_computes(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    """A prompt once, and neither padding between nor after its completions."""
    model = make_model(few_words, model_type="llama")
    shapes: list[tuple[int, ...]] = []
    base: Any = model.model.get_decoder()
    base.register_forward_hook(lambda *call: shapes.append(tuple(call[2].last_hidden_state.shape[:2])))
    lay(True)
    model(rollout)
    lay(False)
    model(rollout)
    assert shapes == [(3, 6 + 3 + 6 + 1), (7, 8 + 7)]
    assert row_lengths(rollout, shared=True).tolist() == [6 + 2 + 5 + 0, 2 + 3, 4 + 1 + 4 + 1]
    assert row_lengths(rollout, shared=False).tolist() == [8, 11, 6, 5, 5, 8, 5]


def test_the_cheaper_form_is_taken(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    """12 weights and 1 of attention: shared where 2 · 12 · S > 4 · (K (T - 1)² - S²), for then K - 1 cancels."""
    cost = StackCost(weights=12, attention=1)

    def shared(S: int, T: int, K: int) -> bool:
        return shares_prompts(cost, make_rollout(make_prompts([[3] * (S - 1)]), [[3] * T] * K, per_prompt=K))

    assert shared(10, 8, 3)  # 240 > 4 · (147 - 100)
    assert not shared(10, 9, 3)  # 240 < 4 · (192 - 100)
    assert not shared(10, 8, 4)  # 240 < 4 · (196 - 100)
    assert shared(12, 8, 4)
    assert not shared(10, 1, 1)
    model = make_model(few_words, model_type="llama")
    shapes: list[int] = []
    base: Any = model.model.get_decoder()
    base.register_forward_hook(lambda *call: shapes.append(len(call[2].last_hidden_state)))
    for S, T in ((20, 3), (1, 60)):
        model(make_rollout(make_prompts([[3] * (S - 1)]), [[3] * T] * 4, per_prompt=4))
    assert shapes == [1, 4]


def test_attention_that_takes_no_mask_reads_rows_apart(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    model = make_model(few_words, model_type="llama")
    shapes: list[int] = []
    base: Any = model.model.get_decoder()
    base.register_forward_hook(lambda *call: shapes.append(len(call[2].last_hidden_state)))
    expected = predicting(model(rollout.extended()), rollout)
    cheap = ModelCost.of(model).forward(rollout)
    AttentionInterface.register("another", sdpa_attention_forward)
    AttentionMaskInterface.register("another", sdpa_mask)
    model.model.set_attn_implementation("another")
    torch.testing.assert_close(predicting(model(rollout.extended()), rollout), expected, rtol=1e-4, atol=1e-5)
    assert shapes == [3, 7]
    assert ModelCost.of(model).forward(rollout) > cheap


def test_who_shares_no_rows_is_named(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make_trainer("alpha=0.5", "rollout.per_prompt=4", kind="llama")
    assert "computes a prompt again" not in caplog.text
    monkeypatch.setattr("gkd_rl.pipeline.build_trainer.can_share", lambda _: False)
    make_trainer("alpha=0.5", "rollout.per_prompt=4", kind="llama")
    assert "student: llama with sdpa attention computes a prompt again for each of its 4 completions" in caplog.text
    assert "teacher: llama with sdpa" in caplog.text


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(
    attention: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    lay(True)
    model = make_model(few_words, seed=1, model_type="gemma3_text", **KINDS["gemma3_text, window"])
    expected = predicting(model(rollout.extended()), rollout)
    model.model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.model.set_attn_implementation(attention)
    states = predicting(model(rollout.extended()), rollout)
    assert states.dtype is torch.bfloat16
    assert_close(states.float(), expected, 0.05)


def test_an_adapter_and_the_view_without_it(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, rollout: Rollout, lay: Lay
) -> None:
    base = make_model(few_words, seed=3, model_type="llama", num_hidden_layers=2).model
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    student = AdaptedModel(base, settings, seed=0)
    assert_same_both_ways(student, rollout, lay)
    initial = predicting(InitialView(student)(rollout.extended()), rollout)
    lay(False)
    torch.testing.assert_close(predicting(InitialView(student)(rollout.extended()), rollout), initial)
    assert not torch.allclose(predicting(student(rollout.extended()), rollout), initial, atol=1e-2)


def test_prompts_as_another_model_reads_them(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast, lay: Lay
) -> None:
    """A teacher with a codec of its own: other prompts before the same completions."""
    short, whole = (TextCodec(few_words, limit, 8, torch.device("cpu"), decoder_only=True) for limit in (2, 20))
    model = make_model(few_words, seed=3, model_type="llama")
    alone = whole.references(make_examples(4))
    index = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    fields = {name: getattr(alone, name)[index] for name in ("ids_BT", "mask_BT", "truncated_B")}
    rollout = replace(alone, prompt_index_B=index, texts=[""] * 7, **fields)
    lay(True)
    found = predicting(HiddenStateModel(model.model, short)(rollout.extended()), rollout)
    lay(False)
    cut = replace(rollout, prompts=short.prompts(rollout.prompts.examples))
    torch.testing.assert_close(found, predicting(model(cut.extended()), rollout), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, predicting(model(rollout.extended()), rollout), atol=1e-2)


@pytest.mark.parametrize(
    "extra",
    [
        ["trainer.gradient_checkpointing=true"],
        ["trainer.micro_batch_size=3", "trainer.diagnose_every=1"],  # cuts groups of two
        ["teacher.prompts=shuffled", "divergence.kd_credit=reward_to_go"],
        ["policy_gradient=ppo", "policy_gradient.epochs=1"],
        ["policy_gradient=grpo", "policy_gradient.sampled_kl.coefficient=0.1"],
    ],
    ids=lambda extra: extra[0],
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_step_has_the_same_gradient(kind: str, extra: list[str], make_trainer: MakeTrainer, lay: Lay) -> None:
    gradients, records = [], []
    for shared in (True, False):
        lay(shared)
        gradient, record = gradient_of(make_trainer("alpha=0.5", "rollout.per_prompt=4", *extra, kind=kind))
        gradients.append(gradient)
        records.append(record)
    assert_close(*gradients)
    names = [name for name in records[0].metrics if not name.startswith(("time/", "flops/"))]
    assert {name: records[0].metrics[name] for name in names} == pytest.approx(
        {name: records[1].metrics[name] for name in names}, rel=1e-4, abs=1e-5
    )


def test_gradients_by_enumeration_are_those_of_shared_rows() -> None:
    """tests/losses/test_gradients.py proves them for rows in which all completions of a prompt stand."""
    place = CompletionSpace("llama")
    for model in (place.student, place.teacher):
        architecture = model.architecture
        assert isinstance(architecture, DecoderOnly)
        assert architecture.shares_prompts(model.model, place.rollout)
