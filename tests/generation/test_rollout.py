"""Sampler and codec: greedy against transformers' generate, samples against exact probabilities, rollouts and masks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from chi_square import chi_square_p
from conftest import (
    KINDS,
    MakeExamples,
    MakeModel,
    MakePrompts,
    MakeRollout,
    MakeStudent,
    MakeTokenizer,
    codec_of,
    padded,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gkd_rl.generation import sampler as sampler_module
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import DecoderOnlyState, EncoderDecoderState, HiddenStateModel
from gkd_rl.types import (
    Example,
    PromptBatch,
    Rollout,
    Source,
    completion_mask,
    sequence_mean,
    sequence_sum,
    shift_right,
)

END, PAD = 1, 0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def codec(kind: str, few_words: PreTrainedTokenizerFast) -> TextCodec:
    return codec_of(kind, few_words, 12)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows that stayed, each time that finished rows left the batch."""
    sizes: list[int] = []

    def watch(state: type[EncoderDecoderState] | type[DecoderOnlyState]) -> None:
        keep = state.keep

        def spy(self: Any, rows: Tensor) -> None:
            sizes.append(rows.numel())
            keep(self, rows)

        monkeypatch.setattr(state, "keep", spy)

    for state in (EncoderDecoderState, DecoderOnlyState):
        watch(state)
    return sizes


DEEP: dict[str, object] = {"num_layers": 2, "num_decoder_layers": 2}
BART = {"encoder_layers": 2, "decoder_layers": 2}


@pytest.mark.parametrize(
    "changes",
    [
        DEEP,
        pytest.param({"model_type": "mt5", **DEEP}, marks=pytest.mark.exhaustive),
        pytest.param({"model_type": "umt5", **DEEP}, marks=pytest.mark.exhaustive),
        pytest.param({"model_type": "longt5", "local_radius": 4, **DEEP}, marks=pytest.mark.exhaustive),
        {"model_type": "bart", **BART},
        pytest.param({"model_type": "mbart", **BART}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda changes: str(changes.get("model_type", "t5")),
)
def test_greedy_equals_generate(
    changes: dict[str, object],
    make_model: MakeModel,
    make_examples: MakeExamples,
    few_words: PreTrainedTokenizerFast,
    kept: list[int],
) -> None:
    """Encoder-decoders; tests/models/test_decoder_only.py has the decoder-only models."""
    codec = codec_of("t5", few_words, 12)
    ended, truncated = 0, 0
    for seed in (4, 7, 8, 12, 18, 21, 24, 28, 30, 37, 49, 58):
        model = make_model(codec.tokenizer, seed=seed, lively=True, **changes).eval()
        prompts = codec.prompts(make_examples(7, seed))
        assert len(set(prompts.mask_PS.sum(dim=1).tolist())) > 1
        generate: Any = model.model.generate
        expected = generate(
            input_ids=prompts.ids_PS,
            attention_mask=prompts.mask_PS.long(),
            do_sample=False,
            num_beams=1,
            max_new_tokens=codec.max_completion_tokens,
        )
        rollout = Sampler(codec, GREEDY).sample(model, prompts, 1, None)
        assert rollout.ids_BT.tolist() == expected[:, 1:].tolist()
        ended += int((~rollout.truncated_B).sum())
        truncated += int(rollout.truncated_B.sum())
    assert ended > 5
    assert truncated > 5
    assert len(kept) > 1, "finished rows did not leave the batch"


def test_greedy_equals_generate_of_the_merged_model(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    """Prompts one by one, without padding; an adapter merged permanently by peft."""
    student, prompts = make_student(kind, codec.tokenizer).eval(), codec.prompts(make_examples(8, 4))
    rollout = Sampler(codec, GREEDY).sample(student, prompts, 1, None)
    whole = copy.deepcopy(student)
    plain: Any = whole.merge() if isinstance(whole, AdaptedModel) else whole.model
    for row in range(8):
        ids = prompts.ids_PS[row][prompts.mask_PS[row]].unsqueeze(0)
        given = plain.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)[0]
        generated = given[ids.shape[1] :] if codec.decoder_only else given[1:]
        assert rollout.ids_BT[row][rollout.mask_BT[row]].tolist() == generated.tolist()
    assert len({*rollout.texts}) > 2


@pytest.mark.parametrize(("left", "right"), [(0, 3), (3, 0), (2, 4)])
def test_padding_of_prompts_changes_no_sample(
    left: int, right: int, kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    model, prompts = make_student(kind, codec.tokenizer), codec.prompts(make_examples(6))
    for sampling in (GREEDY, Sampling()):
        one, other = (
            Sampler(codec, sampling).sample(model, given, 3, seeded(0))
            for given in (prompts, padded(prompts, left, right))
        )
        assert one.ids_BT.tolist() == other.ids_BT.tolist()


def test_greedy_gives_the_same_completion_for_every_rollout_of_a_prompt(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    model, prompts = make_student(kind, codec.tokenizer, seed=3), codec.prompts(make_examples(4, 2))
    once, thrice = (Sampler(codec, GREEDY).sample(model, prompts, k, None) for k in (1, 3))
    assert thrice.prompt_index_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert thrice.ids_BT.tolist() == once.ids_BT.repeat_interleave(3, 0).tolist()


@torch.no_grad()
def sequence_probabilities(
    model: HiddenStateModel, prompt: Tensor, length: int, vocabulary: int, temperature: float
) -> Tensor:
    """Exact probability of each of the V^length continuations, by transformers' own forward on all of them."""
    grid = torch.cartesian_prod(*[torch.arange(vocabulary)] * length)
    prompts, start = prompt.expand(len(grid), -1), torch.full((len(grid), 1), PAD)
    if model.architecture.decoder_only:
        logits = model.model(input_ids=torch.cat([prompts, grid[:, :-1]], dim=1)).logits[:, -length:]
    else:
        logits = model.model(input_ids=prompts, decoder_input_ids=torch.cat([start, grid[:, :-1]], dim=1)).logits
    logp = (logits / temperature).log_softmax(-1).gather(2, grid.unsqueeze(2)).squeeze(2)
    before_end = (grid == END).long().cumsum(dim=1) - (grid == END).long() == 0  # tokens up to the end are sampled
    certain = torch.where(grid == PAD, 0.0, -torch.inf)  # after the end there is padding
    return torch.where(before_end, logp, certain).sum(dim=1).exp().view([vocabulary] * length)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_samples_follow_the_exact_probabilities(
    temperature: float, kind: str, make_tokenizer: MakeTokenizer, make_student: MakeStudent, kept: list[int]
) -> None:
    """Two prompts of unequal length, four rollouts of each row, with rows that leave before the last token."""
    codec = codec_of(kind, make_tokenizer("a b"), 3)
    model = make_student(kind, codec.tokenizer).eval()
    rows = [Example("a", "", {}), Example("b a b b", "", {})] * 600
    rollout = Sampler(codec, Sampling(temperature)).sample(model, codec.prompts(rows), 4, seeded(1))
    assert kept, "no row left the batch"
    assert kept[0] > 100
    ids = torch.nn.functional.pad(rollout.ids_BT, (0, 3 - rollout.ids_BT.shape[1]))
    for prompt in (0, 1):
        drawn = ids[rollout.prompt_index_B % 2 == prompt]
        assert len(drawn) == 2400
        prompt_ids = rollout.prompts.ids_PS[prompt][rollout.prompts.mask_PS[prompt]].unsqueeze(0)
        exact = sequence_probabilities(model, prompt_ids, 3, 5, temperature)
        assert exact.sum().item() == pytest.approx(1, abs=1e-5)
        counts = torch.zeros(5, 5, 5)
        counts.index_put_(tuple(drawn.T), torch.ones(len(drawn)), accumulate=True)
        assert chi_square_p(counts.sum(dim=2), exact.sum(dim=2)) > 1e-3
        assert chi_square_p(counts, exact) > 1e-3


def test_a_completion_ends_with_the_first_end_of_sequence_token(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    model = make_student(kind, codec.tokenizer)
    rollout = Sampler(codec, Sampling()).sample(model, codec.prompts(make_examples(16)), 4, seeded(0))
    lengths = set()
    for ids, mask, truncated, text in zip(
        rollout.ids_BT.tolist(), rollout.mask_BT.tolist(), rollout.truncated_B.tolist(), rollout.texts, strict=True
    ):
        assert truncated is (END not in ids)
        length = len(ids) if truncated else ids.index(END) + 1
        assert mask == [True] * length + [False] * (len(ids) - length)
        assert ids[length:] == [PAD] * (len(ids) - length)
        tokens = [token for token in ids[:length] if token > 2]
        assert text.split() == [codec.tokenizer.convert_ids_to_tokens(token) for token in tokens]
        lengths.add(length)
    assert rollout.source is Source.student
    assert len(rollout.texts) == rollout.n_sequences == 64
    assert len(lengths) > 4
    assert rollout.truncated_B.any()
    assert 1 in lengths


def test_a_batch_that_ends_early_is_as_wide_as_its_longest_completion(
    make_model: MakeModel,
    make_examples: MakeExamples,
    few_words: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = codec_of("t5", few_words, 200)
    for every in (1, 7):
        monkeypatch.setitem(sampler_module.CHECK_EVERY, "cpu", every)
        rollout = Sampler(codec, Sampling()).sample(
            make_model(few_words), codec.prompts(make_examples(4)), 2, seeded(0)
        )
        assert not rollout.truncated_B.any()
        assert rollout.mask_BT[:, -1].any()
        assert rollout.ids_BT.shape[1] < 200


def test_the_interval_of_checks_for_finished_rows_changes_no_greedy_completion(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = make_student(kind, codec.tokenizer), []
    for every in (1, 3, 1000):
        monkeypatch.setitem(sampler_module.CHECK_EVERY, "cpu", every)
        texts.append(Sampler(codec, GREEDY).sample(model, codec.prompts(make_examples(16)), 1, None).texts)
    assert texts[0] == texts[1] == texts[2]


def test_sampling_is_in_evaluation_mode_and_restores_the_mode(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    prompts = codec.prompts(make_examples(6))
    plain, dropping = (make_student(kind, codec.tokenizer, seed=2, dropout=rate) for rate in (0.0, 0.5))
    expected = Sampler(codec, Sampling()).sample(plain.eval(), prompts, 2, seeded(5))
    for training in (True, False):
        dropping.train(training)
        rollout = Sampler(codec, Sampling()).sample(dropping, prompts, 2, seeded(5))
        assert rollout.ids_BT.tolist() == expected.ids_BT.tolist()
        assert {module.training for module in dropping.modules()} == {training}
    assert not dropping(expected).equal(dropping.train()(expected)), "dropout is off in training mode"


def test_no_gradient_flows_through_sampling(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    grad_enabled: list[bool] = []
    model = make_student(kind, codec.tokenizer)
    inner: Any = model.model.get_decoder()
    inner.register_forward_hook(lambda *_: grad_enabled.append(torch.is_grad_enabled()))
    Sampler(codec, Sampling()).sample(model, codec.prompts(make_examples(2)), 2, seeded(0))
    assert grad_enabled and not any(grad_enabled)


def test_the_seed_decides_the_rollout(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    model, prompts = make_student(kind, codec.tokenizer), codec.prompts(make_examples(8))
    rollouts = []
    for seed, global_seed in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(global_seed)
        rollouts.append(Sampler(codec, Sampling()).sample(model, prompts, 4, seeded(seed)))
    assert rollouts[0].ids_BT.tolist() == rollouts[1].ids_BT.tolist()
    assert rollouts[0].texts == rollouts[1].texts
    assert rollouts[0].texts != rollouts[2].texts
    groups = [rollouts[0].texts[start : start + 4] for start in range(0, 32, 4)]
    assert sum(len(set(group)) > 1 for group in groups) > 4, "the rollouts of a prompt are copies"


def test_the_encoder_computes_each_prompt_once(
    make_model: MakeModel, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    codec = codec_of("t5", few_words)
    rows: list[int] = []
    keys: list[int] = []
    model = make_model(codec.tokenizer)
    model.model.get_encoder().register_forward_hook(lambda *call: rows.append(call[2].last_hidden_state.shape[0]))
    decoder: Any = model.model.get_decoder()
    cross = decoder.block[0].layer[1].EncDecAttention.k
    cross.register_forward_hook(lambda *call: keys.append(call[2].shape[0]))
    Sampler(codec, Sampling()).sample(model, codec.prompts(make_examples(3)), 5, seeded(0))
    assert rows == keys == [3]


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    model, prompts = make_student(kind, codec.tokenizer, seed=6), codec.prompts(make_examples(8))
    greedy = Sampler(codec, GREEDY).sample(model, prompts, 2, None)
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(2.0, 1e-6, 3), Sampling(1e-4)):
        assert Sampler(codec, sampling).sample(model, prompts, 2, seeded(0)).ids_BT.tolist() == greedy.ids_BT.tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), {2: 0.5, 0: 0.3, 3: 0.15, 1: 0.05}),
        (Sampling(top_k=2), {2: 0.625, 0: 0.375}),
        (Sampling(top_k=9), {2: 0.5, 0: 0.3, 3: 0.15, 1: 0.05}),
        (Sampling(top_p=0.45), {2: 1.0}),
        (Sampling(top_p=0.55), {2: 0.625, 0: 0.375}),
        (Sampling(top_p=0.9), {2: 0.5 / 0.95, 0: 0.3 / 0.95, 3: 0.15 / 0.95}),
        # top_p applies to the distribution after top_k: 0.625 and 0.375
        (Sampling(top_p=0.6, top_k=2), {2: 1.0}),
        (Sampling(temperature=0.5), {2: 0.25 / 0.365, 0: 0.09 / 0.365, 3: 0.0225 / 0.365, 1: 0.0025 / 0.365}),
    ],
)
def test_truncated_sampling(sampling: Sampling, expected: dict[int, float]) -> None:
    probabilities = torch.tensor([0.3, 0.05, 0.5, 0.15])
    logits = (probabilities.log() + 3.0).expand(20_000, -1)
    counts = torch.bincount(sampling.draw(logits, seeded(0)), minlength=4)
    wanted = torch.zeros(4)
    wanted[list(expected)] = torch.tensor(list(expected.values()))
    assert not counts[wanted == 0].any()
    if len(expected) > 1:
        assert chi_square_p(counts, wanted) > 1e-3


def test_ids_of_a_padded_embedding_are_never_sampled(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, codec: TextCodec
) -> None:
    model = make_student(kind, codec.tokenizer)
    model.model.resize_token_embeddings(64, mean_resizing=False)
    for sampling, generator in ((Sampling(), seeded(0)), (GREEDY, None)):
        rollout = Sampler(codec, sampling).sample(model, codec.prompts(make_examples(8)), 2, generator)
        assert int(rollout.ids_BT.max()) < len(codec.tokenizer)


def test_completion_mask() -> None:
    ids = torch.tensor([[3, 1, 4, 1], [1, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 1], [3, 2, 1, 3]])
    mask, truncated = completion_mask(ids, (1,))
    assert mask.long().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert truncated.tolist() == [False, False, True, False, False]
    mask, truncated = completion_mask(ids, (1, 2))
    assert mask[4].long().tolist() == [1, 1, 0, 0]


def test_masked_reductions_and_the_shift() -> None:
    values = torch.tensor([[1.0, 2.0, torch.nan], [5.0, torch.nan, torch.inf], [torch.nan] * 3])
    mask = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    assert sequence_sum(values, mask).tolist() == [3.0, 5.0, 0.0]
    assert sequence_mean(values, mask).tolist() == [1.5, 5.0, 0.0]
    assert shift_right(torch.tensor([[5, 6, 1], [7, 1, 0]]), 0).tolist() == [[0, 5, 6], [0, 7, 1]]


def test_references_are_a_rollout_of_the_same_shape(few_words: PreTrainedTokenizerFast) -> None:
    codec = TextCodec(few_words, 3, 4, torch.device("cpu"))
    examples = [Example("a b c d e", "a b", {}), Example("a", "c c c c c c", {})]
    rollout = codec.references(examples)
    assert rollout.ids_BT.tolist() == [[3, 4, 1, 0], [5, 5, 5, 1]]  # a truncated reference has an end as well
    assert rollout.mask_BT.long().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rollout.truncated_B.tolist() == [False, False]
    assert rollout.prompts.ids_PS.tolist() == [[3, 4, 1], [3, 1, 0]]
    assert rollout.prompts.mask_PS.long().tolist() == [[1, 1, 1], [1, 1, 0]]
    assert rollout.texts == ["a b", "c c c c c c"]
    assert rollout.prompt_index_B.tolist() == [0, 1]
    assert rollout.source is Source.dataset
    assert codec.decode(rollout.ids_BT, rollout.mask_BT) == ["a b", "c c c"]


def test_rows_of_a_rollout_keep_their_prompts_without_padding(
    make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    prompts: PromptBatch = make_prompts([[3], [4, 4, 4], [5, 5]], extra=2)
    rollout: Rollout = make_rollout(
        prompts, [[3, 1], [4, 4, 1], [5, 5, 5, 5], [6, 1], [7, 7, 1], [1]], per_prompt=2, extra=1
    )
    part = rollout.rows(torch.arange(3, 6))
    assert part.prompts.ids_PS.tolist() == [[4, 4, 4, 1], [5, 5, 1, 0]]
    assert part.prompts.mask_PS.sum(dim=1).tolist() == [4, 3]
    assert list(part.prompts.examples) == list(prompts.examples[1:])
    assert part.prompt_index_B.tolist() == [0, 1, 1]
    assert part.ids_BT.tolist() == [[6, 1, 0], [7, 7, 1], [1, 0, 0]]
    assert part.mask_BT.sum(dim=1).tolist() == [2, 3, 1]
    assert part.texts == ["6 1", "7 7 1", "1"]
    assert part.truncated_B.tolist() == [False] * 3
    assert part.source is rollout.source
    assert rollout.rows(torch.tensor([2])).truncated_B.tolist() == [True]
