"""Beam search: with enough beams the best of all completions, with one beam greedy, independent of padding."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import KINDS, MakePrompts, MakeRollout, MakeStudent, codec_of, padded
from transformers import PreTrainedTokenizerFast

from gkd_rl.generation.sampler import GREEDY, Beams, Sampler
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.types import Projection

END, MAX_TOKENS, VOCABULARY = 1, 3, 8


def every_completion() -> list[list[int]]:
    """All sequences that stop at END, or after MAX_TOKENS ids."""
    found = []
    for length in range(1, MAX_TOKENS + 1):
        for ids in itertools.product(range(VOCABULARY), repeat=length):
            stops = END not in ids[:-1] and (ids[-1] == END or length == MAX_TOKENS)
            found += [list(ids)] if stops else []
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_enough_beams_find_the_best_of_all_completions(
    kind: str, penalty: float, few_words: PreTrainedTokenizerFast, make_student: MakeStudent,
    make_prompts: MakePrompts, make_rollout: MakeRollout,
) -> None:  # fmt: skip
    model, codec = make_student(kind, few_words), codec_of(kind, few_words, MAX_TOKENS)
    model.eval()
    prompts = make_prompts([[3, 4, 5, 6], [7, 3]])
    answers = every_completion()
    found = Sampler(codec, Beams(VOCABULARY ** (MAX_TOKENS - 1), penalty)).sample(
        model, padded(prompts, right=2), 1, None
    )
    for i, own in enumerate(([3, 4, 5, 6], [7, 3])):
        rollout = make_rollout(make_prompts([own]), answers, per_prompt=len(answers))
        with torch.no_grad():
            own_side = Projection(model(rollout), model.head())
            terms = FusedHead(None, 1.0, 4096, VOCABULARY)(own_side, None, rollout.ids_BT, rollout.mask_BT)
        scores = (terms.logp_BT * rollout.mask_BT).sum(dim=1) / rollout.mask_BT.sum(dim=1) ** penalty
        best = answers[int(scores.argmax())]
        assert found.ids_BT[i][found.mask_BT[i]].tolist() == best
        assert bool(found.truncated_B[i]) == (END not in best)


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy(
    kind: str, few_words: PreTrainedTokenizerFast, make_student: MakeStudent, make_prompts: MakePrompts
) -> None:
    model, codec = make_student(kind, few_words), codec_of(kind, few_words, 9)
    prompts = make_prompts([[3, 4, 5, 6], [7], [4, 4, 4]])
    model.train()
    one = Sampler(codec, Beams(1, 0.6)).sample(model, prompts, 1, None)
    greedy = Sampler(codec, GREEDY).sample(model, prompts, 1, None)
    assert one.texts == greedy.texts
    assert one.ids_BT[one.mask_BT].tolist() == greedy.ids_BT[greedy.mask_BT].tolist()
    assert model.training


def test_a_longer_completion_wins_as_the_penalty_grows(
    few_words: PreTrainedTokenizerFast, make_student: MakeStudent, make_prompts: MakePrompts
) -> None:
    model, codec = make_student("t5", few_words, seed=3), codec_of("t5", few_words, 9)
    prompts = make_prompts([[3, 4, 5, 6], [7], [4, 4, 4], [5, 3]])
    lengths = [
        int(Sampler(codec, Beams(6, penalty)).sample(model, prompts, 1, None).mask_BT.sum())
        for penalty in (0.0, 1.0, 4.0)
    ]
    assert lengths[0] < lengths[1] <= lengths[2]


def test_ids_beyond_the_tokenizer_are_never_generated(
    few_words: PreTrainedTokenizerFast, make_student: MakeStudent, make_prompts: MakePrompts
) -> None:
    model, codec = make_student("t5", few_words), codec_of("t5", few_words, 6)
    codec.vocabulary = 5
    found = Sampler(codec, Beams(4, 0.6)).sample(model, make_prompts([[3, 4], [7]]), 1, None)
    assert int(found.ids_BT.max()) < 5
