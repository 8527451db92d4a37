"""Decoder-only models: log-probabilities and greedy decoding against transformers' own, and their texts as ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeExamples, MakeModel, MakePrompts, MakeRollout, MakeTokenizer, essential
from decoder_only_kinds import ESSENTIAL, KINDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gkd_rl.config.choices import DivergenceName
from gkd_rl.errors import DataError, ModelError
from gkd_rl.generation import sampler as rollout_module
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import DECODER_ONLY, DecoderOnlyState, HiddenStateModel
from gkd_rl.models.checkpoint import locate
from gkd_rl.models.loading import load_model, model_class, save_model
from gkd_rl.types import Example, Projection, PromptBatch, Rollout, Source, TokenTerms

PROMPTS = [[3, 4, 5, 6, 7], [5], [7, 7, 3]]  # one of them far shorter than the longest: a gap if it is padded
COMPLETIONS = [[4, 5, 1], [3, 3, 3, 3, 6, 1], [1], [2, 0, 4, 4], [6, 1], [5, 7, 0, 0, 1]]
HEADS = {  # the factor and the cap of each head that has one
    "gemma2, window": (1.0, 2.0),
    "gemma3_text, capped": (1.0, 1.5),
    "granite": (1 / 3, None),
    "granite, tied": (1 / 3, None),
    "cohere": (0.3, None),
    "cohere, untied": (0.3, None),
    "cohere2, window": (0.3, None),
}


def test_every_admitted_type_is_verified() -> None:
    assert {kind.partition(",")[0] for kind in KINDS} == set(DECODER_ONLY)


@pytest.fixture(params=essential(KINDS, *ESSENTIAL))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=1, model_type=kind.partition(",")[0], **KINDS[kind]).eval()


@pytest.fixture
def llama(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=3, model_type="llama")


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    return make_rollout(make_prompts(PROMPTS), COMPLETIONS, per_prompt=2)


@pytest.fixture
def codec(few_words: PreTrainedTokenizerFast) -> TextCodec:
    return TextCodec(few_words, 20, 12, torch.device("cpu"), decoder_only=True)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows stayed, each time that finished rows left the batch."""
    sizes: list[int] = []
    keep = DecoderOnlyState.keep

    def spy(state: DecoderOnlyState, rows: Tensor) -> None:
        sizes.append(rows.numel())
        keep(state, rows)

    monkeypatch.setattr(DecoderOnlyState, "keep", spy)
    return sizes


def logp_of(model: HiddenStateModel, rollout: Rollout) -> Tensor:
    terms = FusedHead(None)(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
    return terms.logp_BT.sum(dim=1)


def left_padded(prompts: PromptBatch, width: int) -> PromptBatch:
    ids = torch.zeros(len(prompts.ids_PS), width, dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (words, used) in enumerate(zip(prompts.ids_PS, prompts.mask_PS, strict=True)):
        count = int(used.sum())
        ids[row, width - count :], mask[row, width - count :] = words[used], True
    return replace(prompts, ids_PS=ids, mask_PS=mask)


def test_log_probability_equals_transformers_cross_entropy(model: HiddenStateModel, rollout: Rollout) -> None:
    """Each sequence alone, without padding, by the library's own loss on its own logits."""
    expected = []
    for i, completion in enumerate(COMPLETIONS):
        prompt = [*PROMPTS[i // 2], 1]
        row = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        expected.append(-model.model(input_ids=row, labels=labels).loss * len(completion))
    torch.testing.assert_close(logp_of(model, rollout), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_the_head_gives_the_logits_of_transformers(kind: str, model: HiddenStateModel, rollout: Rollout) -> None:
    """Every word of every position, in bounds that a wrong scale or cap would leave."""
    head = model.head()
    scale, softcap = HEADS.get(kind, (1.0, None))
    assert (head.scale, head.softcap) == (pytest.approx(scale), softcap)
    hidden = model(rollout)
    for i, completion in enumerate(COMPLETIONS):
        row = torch.tensor([[*PROMPTS[i // 2], 1, *completion]])
        logits = model.model(input_ids=row).logits[0, -len(completion) - 1 : -1]
        torch.testing.assert_close(head.logits(hidden[i, : len(completion)], 8), logits, rtol=1e-4, atol=1e-4)


def test_padding_changes_neither_values_nor_gradients(
    model: HiddenStateModel, rollout: Rollout, make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    right = make_rollout(make_prompts(PROMPTS, extra=4), COMPLETIONS, per_prompt=2, extra=3)
    left = replace(right, prompts=left_padded(right.prompts, 9))
    garbage = replace(right, ids_BT=right.ids_BT.masked_fill(~right.mask_BT, 7))
    gradients = []
    for one in (rollout, right, left, garbage):
        model.zero_grad()
        torch.testing.assert_close(logp_of(model, one), logp_of(model, rollout), rtol=1e-5, atol=1e-5)
        logp_of(model, one).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        assert len(gradients[-1]) == len(list(model.parameters()))
        torch.testing.assert_close(gradients[-1], gradients[0], rtol=1e-4, atol=1e-4)


def test_a_column_more_sees_the_whole_completion(model: HiddenStateModel, rollout: Rollout) -> None:
    hidden = model(rollout.extended())
    assert hidden.shape[1] == rollout.ids_BT.shape[1] + 1
    base: Any = model.model.get_decoder()
    for i, completion in enumerate(COMPLETIONS):
        row = torch.tensor([[*PROMPTS[i // 2], 1, *completion]])
        whole = base(input_ids=row).last_hidden_state[0, -len(completion) - 1 :]
        torch.testing.assert_close(hidden[i, : len(completion) + 1], whole, rtol=1e-4, atol=1e-5)


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


def test_greedy_equals_generate(
    kind: str, make_model: MakeModel, make_examples: MakeExamples, codec: TextCodec, kept: list[int]
) -> None:
    ended, cut = 0, 0
    for seed in range(4):
        changes = {"model_type": kind.partition(",")[0], **KINDS[kind]}
        model = make_model(codec.tokenizer, seed=seed, lively=True, **changes).eval()
        prompts = codec.prompts(make_examples(7, seed))
        assert len(set(prompts.mask_PS.sum(dim=1).tolist())) > 1
        left = left_padded(prompts, prompts.ids_PS.shape[1])
        generate: Any = model.model.generate
        expected = generate(
            input_ids=left.ids_PS,
            attention_mask=left.mask_PS.long(),
            do_sample=False,
            num_beams=1,
            max_new_tokens=codec.max_completion_tokens,
        )[:, left.ids_PS.shape[1] :]
        for per_prompt in (1, 3):
            rollout = Sampler(codec, GREEDY).sample(model, prompts, per_prompt, None)
            assert rollout.ids_BT.tolist() == expected.repeat_interleave(per_prompt, 0).tolist()
            assert rollout.prompt_index_B.tolist() == [i for i in range(7) for _ in range(per_prompt)]
        ended += int((~rollout.truncated_B).sum())
        cut += int(rollout.truncated_B.sum())
    assert ended > 3
    assert cut > 3
    assert kept, "finished rows did not leave the batch"


@pytest.mark.parametrize("kind", ["llama", "gemma2, window"])
def test_greedy_equals_generate_with_two_ends_one_of_which_pads(
    kind: str, make_model: MakeModel, make_examples: MakeExamples
) -> None:
    tokenizer = tokenizer_of("$A", pad_token="</s>")
    codec = TextCodec(tokenizer, 20, 12, torch.device("cpu"), decoder_only=True, eos_ids=(7, END))
    assert (codec.eos_ids, codec.pad_id) == ((END, 7), END)
    ends: set[int] = set()
    for seed in range(10):
        changes = {"model_type": kind.partition(",")[0], **KINDS[kind]}
        model = make_model(tokenizer, seed=seed, lively=True, **changes).eval()
        prompts = codec.prompts(make_examples(7, seed))
        left = left_padded(prompts, prompts.ids_PS.shape[1])
        generate: Any = model.model.generate
        expected = generate(
            input_ids=left.ids_PS,
            attention_mask=left.mask_PS.long(),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(codec.eos_ids),
            pad_token_id=END,
        )[:, left.ids_PS.shape[1] :]
        rollout = Sampler(codec, GREEDY).sample(model, prompts, 1, None)
        assert rollout.ids_BT.tolist() == expected.tolist()
        ends |= {int(row[mask][-1]) for row, mask in zip(rollout.ids_BT, rollout.mask_BT, strict=True)}
        for row, mask, cut in zip(rollout.ids_BT, rollout.mask_BT, rollout.truncated_B, strict=True):
            assert [word in codec.eos_ids for word in row[mask].tolist()] == [False] * (int(mask.sum()) - 1) + [not cut]
    assert ends >= {END, 7}


def test_padded_heads_of_two_sizes_share_the_vocabulary(
    make_model: MakeModel, make_examples: MakeExamples, codec: TextCodec
) -> None:
    """As of Qwen models: words beyond the tokenizer are never drawn and have no probability."""
    student, teacher = (make_model(codec.tokenizer, seed, model_type="qwen2") for seed in (1, 2))
    own, other = student.head().weight_VD.shape[0], teacher.head().weight_VD.shape[0]
    divergence = TokenDivergence(DivergenceName.reverse_kl)
    rollout = Sampler(codec, GREEDY).sample(student, codec.prompts(make_examples(6)), 2, None)

    def terms(vocabulary: int | None) -> TokenTerms:
        own_side, other_side = (Projection(one(rollout), one.head()) for one in (student, teacher))
        return FusedHead(divergence, vocabulary=vocabulary)(own_side, other_side, rollout.ids_BT, rollout.mask_BT)

    expected = terms(None)
    student.model.resize_token_embeddings(own + 16, mean_resizing=False)
    teacher.model.resize_token_embeddings(other + 40, mean_resizing=False)
    for model in (student, teacher):
        weight: Any = model.head().weight_VD
        weight.data[own:] = 9 * weight.data[:1]  # likelier than any word
    assert (student.head().weight_VD.shape[0], teacher.head().weight_VD.shape[0]) == (own + 16, other + 40)
    again = Sampler(codec, GREEDY).sample(student, codec.prompts(make_examples(6)), 2, None)
    assert again.ids_BT.tolist() == rollout.ids_BT.tolist()
    found = terms(codec.vocabulary)
    assert expected.divergence_BT is not None
    torch.testing.assert_close(found.logp_BT, expected.logp_BT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.divergence_BT, expected.divergence_BT, rtol=1e-5, atol=1e-5)
    assert (terms(None).logp_BT - expected.logp_BT).abs().max() > 0.1


def test_finished_rows_that_leave_change_nothing(
    llama: HiddenStateModel,
    make_examples: MakeExamples,
    codec: TextCodec,
    kept: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = codec.prompts(make_examples(24, 5))
    left = Sampler(codec, GREEDY).sample(llama, prompts, 2, None)
    assert kept
    kept.clear()
    monkeypatch.setattr(rollout_module, "COMPACT_SHARE", 2.0)
    stayed = Sampler(codec, GREEDY).sample(llama, prompts, 2, None)
    assert not kept
    assert left.ids_BT.tolist() == stayed.ids_BT.tolist()
    assert len({tuple(row) for row in left.ids_BT.tolist()}) > 3


def test_the_seed_decides_the_rollout(llama: HiddenStateModel, make_examples: MakeExamples, codec: TextCodec) -> None:
    prompts, sampler = codec.prompts(make_examples(8)), Sampler(codec, Sampling())
    one, again, other = (
        sampler.sample(llama, prompts, 4, torch.Generator().manual_seed(seed)).ids_BT.tolist() for seed in (3, 3, 4)
    )
    assert one == again != other
    assert sum(len({tuple(row) for row in one[start : start + 4]}) > 1 for start in range(0, 32, 4)) > 4
    assert llama.training


def test_each_prompt_is_read_once(llama: HiddenStateModel, make_examples: MakeExamples, codec: TextCodec) -> None:
    shapes: list[tuple[int, ...]] = []
    base: Any = llama.model.get_decoder()
    base.register_forward_hook(lambda *call: shapes.append(tuple(call[2].last_hidden_state.shape[:2])))
    prompts = codec.prompts(make_examples(3))
    rollout = Sampler(codec, Sampling()).sample(llama, prompts, 5, torch.Generator().manual_seed(0))
    assert shapes[:2] == [tuple(prompts.ids_PS.shape), (15, 1)]
    assert len(shapes) == rollout.ids_BT.shape[1]  # the last token is drawn and not read
    assert all(rows <= 15 and columns == 1 for rows, columns in shapes[1:])


def test_a_saved_model_comes_back_the_same(
    model: HiddenStateModel, rollout: Rollout, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with torch.no_grad():  # as after training: no weight is what a configuration would make of it
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_model(tmp_path / "model", model.model, few_words, "a card\n")
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        load_model(locate(str(tmp_path / "model"), None, "student.path"), torch.float32),
    ):
        again = HiddenStateModel(loaded).eval()
        torch.testing.assert_close(logp_of(again, rollout), logp_of(model, rollout), rtol=0, atol=0)


def test_the_configuration_decides_the_class(
    make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    llama, t5 = make_model(few_words, model_type="llama"), make_model(few_words)
    assert (llama.architecture.decoder_only, t5.architecture.decoder_only) == (True, False)
    assert model_class(llama.model.config) == "AutoModelForCausalLM"
    assert model_class(t5.model.config) == "AutoModelForSeq2SeqLM"
    config = llama.model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (8, 0, 1, None)
    assert getattr(config, "decoder_start_token_id", None) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}))
    with pytest.raises(ModelError, match=r"student\.path=.*no model could be loaded"):
        load_model(locate(str(tmp_path), None, "student.path"), torch.float32)


BOS, END = 0, 1


def tokenizer_of(template: str, **special: str) -> PreTrainedTokenizerFast:
    """Words a..e have the ids 3..7; `<s>` is 0, `</s>` 1, `<pad>` 2."""
    ids = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", *"abcde"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=template, special_tokens=[("<s>", BOS), ("</s>", END)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


@pytest.mark.parametrize("pad", [None, "<pad>"])
@pytest.mark.parametrize(
    ("template", "start"), [("$A", []), ("$A </s>", []), ("<s> $A", [0]), ("<s> $A </s>", [0]), ("</s> $A", [1])]
)
def test_a_prompt_has_no_end_and_a_completion_nothing_but_an_end(
    template: str, start: list[int], pad: str | None
) -> None:
    tokenizer = tokenizer_of(template, **({} if pad is None else {"pad_token": pad}))
    fill = END if pad is None else 2
    codec = TextCodec(tokenizer, 3, 4, torch.device("cpu"), decoder_only=True)
    assert codec.pad_id == fill
    rollout = codec.references([Example("a b c d e", "a b", {}), Example("a", "c c c c c c", {})])
    whole, short = [*start, 3, 4, 5][:3], [*start, 3]
    assert rollout.prompts.ids_PS.tolist() == [whole, short + [fill] * (3 - len(short))]
    assert rollout.prompts.mask_PS.sum(dim=1).tolist() == [3, len(short)]
    assert rollout.prompts.mask_PS[1].tolist() == sorted(rollout.prompts.mask_PS[1].tolist(), reverse=True)
    assert rollout.ids_BT.tolist() == [[3, 4, 1, fill], [5, 5, 5, 1]]
    assert rollout.mask_BT.long().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rollout.truncated_B.tolist() == [False, False]
    assert rollout.texts == ["a b", "c c c c c c"]
    assert rollout.source is Source.dataset
    assert codec.decode(rollout.ids_BT, rollout.mask_BT) == ["a b", "c c c"]


def test_the_text_of_an_end_ends_a_completion_and_stays_in_a_prompt() -> None:
    codec = TextCodec(tokenizer_of("<s> $A"), 8, 4, torch.device("cpu"), decoder_only=True)
    rollout = codec.references([Example("a </s>", "b </s> c", {})])
    assert rollout.prompts.ids_PS.tolist() == [[0, 3, 1]]
    assert rollout.ids_BT.tolist() == [[4, 1]]


def test_a_limit_of_one_token_leaves_the_end_and_a_start() -> None:
    codec = TextCodec(tokenizer_of("<s> $A </s>"), 1, 1, torch.device("cpu"), decoder_only=True)
    rollout = codec.references([Example("a b", "a", {}), Example("", "", {})])
    assert rollout.prompts.ids_PS.tolist() == [[0], [0]]
    assert rollout.ids_BT.tolist() == [[1], [1]]


@pytest.mark.parametrize("template", ["$A", "$A </s>"])
def test_a_prompt_without_tokens_is_refused(template: str) -> None:
    codec = TextCodec(tokenizer_of(template), 4, 4, torch.device("cpu"), decoder_only=True)
    with pytest.raises(DataError, match="prompt '' has no tokens"):
        codec.prompts([Example("a", "", {}), Example("", "", {})])


@pytest.mark.parametrize("decoder_only", [True, False])
def test_completions_given_as_ids(decoder_only: bool, make_examples: MakeExamples) -> None:
    """Padding that is the end-of-sequence id ends nothing."""
    codec = TextCodec(tokenizer_of("$A </s>"), 8, 4, torch.device("cpu"), decoder_only=decoder_only)
    examples = make_examples(3)
    rollout = codec.completions(examples, [[3, 1, 4, 4, 4], [5, 5, 5], [1]], Source.teacher)
    assert rollout.ids_BT.tolist() == [[3, 1, 1], [5, 5, 5], [1, 1, 1]]
    assert rollout.mask_BT.long().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert rollout.truncated_B.tolist() == [False, True, False]
    assert rollout.texts == ["a", "c c c", ""]
    assert rollout.prompt_index_B.tolist() == [0, 1, 2]
    assert rollout.source is Source.teacher
    assert rollout.prompts.ids_PS.tolist() == codec.prompts(examples).ids_PS.tolist()


def test_the_kind_of_model_decides_the_prompt(make_tokenizer: MakeTokenizer) -> None:
    for decoder_only, ids in ((False, [[3, 4, 1]]), (True, [[3, 4]])):
        codec = TextCodec(make_tokenizer("a b"), 4, 4, torch.device("cpu"), decoder_only=decoder_only)
        assert codec.prompts([Example("a b", "", {})]).ids_PS.tolist() == ids
