"""Mutation tests: typical defects of the code, each of which a check of tests/losses/test_gradients.py has to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import test_gradients as gradients
import torch
from conftest import essential
from exact import END
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from gkd_rl import types
from gkd_rl.config.choices import DivergenceName, DivergenceReduction, KdCredit, KlEstimator
from gkd_rl.losses import divergences, objective, policy_gradient
from gkd_rl.losses.objective import StepTotals
from gkd_rl.models import architecture
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.types import LossTerms

Defect = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[str], object]

completion_mask, gae = types.completion_mask, policy_gradient.gae
surrogate, sampled_kl = policy_gradient.surrogate, policy_gradient.sampled_kl
divergence_credit = policy_gradient.divergence_credit


def attribute(owner: object, name: str, value: Any) -> Defect:
    return lambda patch: patch.setattr(owner, name, value)


def masked(change: Callable[[Tensor, Tensor], Tensor]) -> Defect:
    """Replaces the completion mask by `change(mask_BT, ids_BT)`."""

    def defective(ids_BT: Tensor, eos_ids: list[int]) -> tuple[Tensor, Tensor]:
        mask_BT, truncated_B = completion_mask(ids_BT, eos_ids)
        return change(mask_BT, ids_BT), truncated_B

    return attribute(types, "completion_mask", defective)


def named(name: DivergenceName, change: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Defect:
    functions = divergences._FUNCTIONS
    return lambda patch: patch.setitem(functions, name, change(functions[name]))


def swapped_models(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda teacher, student, parameter: function(student, teacher, parameter)


def including_own_position(values_BT: Tensor, mask_BT: Tensor, *rest: Any) -> Tensor:
    """As `divergence_credit`, with the token's own position."""
    return divergence_credit(values_BT, mask_BT, *rest) + torch.where(mask_BT, values_BT, 0.0)


def without_next_position(values_BT: Tensor, mask_BT: Tensor, *rest: Any) -> Tensor:
    """As `divergence_credit`, without the next position."""
    following_BT = torch.nn.functional.pad(torch.where(mask_BT, values_BT, 0.0)[:, 1:], (0, 1))
    return divergence_credit(values_BT, mask_BT, *rest) - following_BT


def including_itself(rewards_PK: Tensor, *_: Any) -> Tensor:
    return rewards_PK - rewards_PK.sum(dim=1, keepdim=True) / (rewards_PK.shape[1] - 1)


def bootstrapping(finished: bool) -> Defect:
    """Bootstraps every completion, or none."""

    def defective(rewards_BT: Tensor, values: Tensor, mask_BT: Tensor, truncated_B: Tensor, *rest: float) -> Tensor:
        return gae(rewards_BT, values, mask_BT, torch.full_like(truncated_B, finished), *rest)

    return attribute(policy_gradient, "gae", defective)


def swapped_loss(self: LossTerms, alpha: float) -> Tensor:
    assert self.reward is not None
    assert self.divergence is not None
    return alpha * self.reward + (1 - alpha) * self.divergence


def divided_by_columns(mask_BT: Tensor, reduction: Any, totals: StepTotals) -> Tensor:
    return torch.full_like(mask_BT, mask_BT.shape[1] * totals.sequences, dtype=torch.long)


def without(name: str, argument: str) -> Defect:
    """The encoder or decoder does not receive `argument`."""
    part = getattr(architecture, name)

    def defective(model: PreTrainedModel) -> Callable[..., Any]:
        return lambda **given: part(model)(**{key: value for key, value in given.items() if key != argument})

    return attribute(architecture, name, defective)


def in_place(ids_BW: Tensor, **_: Any) -> Tensor:
    """Replaces `argsort` by the identity."""
    return torch.arange(ids_BW.shape[1]).expand(ids_BW.shape)


def policy_check(name: str) -> Check:
    return lambda kind: gradients.check_policy_gradient(kind, name)


def divergence_check(name: str, kd: KdCredit, reduction: DivergenceReduction, batch: str = "one") -> Check:
    return lambda kind: gradients.check_divergence(kind, name, kd, reduction, batch)


NONE, TO_GO = KdCredit
MEAN, TOKENS, SUM = DivergenceReduction
DEFECTS: dict[str, tuple[Defect, Check]] = {
    "the surrogate's sign": (
        attribute(objective, "surrogate", lambda *given: -surrogate(*given)),
        policy_check("REINFORCE"),
    ),
    "the sign of the credit": (
        attribute(objective, "surrogate", lambda *given: -surrogate(*given)),
        divergence_check("forward_kl", TO_GO, SUM),
    ),
    "the mask one column to the right": (
        masked(lambda mask, _: torch.nn.functional.pad(mask[:, :-1], (1, 0))),
        policy_check("REINFORCE"),
    ),
    "the mask one column longer": (
        masked(lambda mask, _: torch.nn.functional.pad(mask[:, :-1], (1, 0), value=True)),
        policy_check("REINFORCE"),
    ),
    "the end left out of the mask": (masked(lambda mask, ids: mask & (ids != END)), policy_check("REINFORCE")),
    "the end left out of the mask, divergence": (
        masked(lambda mask, ids: mask & (ids != END)),
        divergence_check("reverse_kl", NONE, SUM),
    ),
    "credit for the token's own position": (
        attribute(policy_gradient, "divergence_credit", including_own_position),
        gradients.check_credit_is_for_later_positions,
    ),
    "credit from the position after next": (
        attribute(policy_gradient, "divergence_credit", without_next_position),
        divergence_check("reverse_kl", TO_GO, SUM),
    ),
    "others that include the completion itself": (
        attribute(policy_gradient, "minus_others", lambda values, _: values - values.mean(dim=0)),
        divergence_check("forward_kl", TO_GO, SUM, "pair"),
    ),
    "leave_one_out that includes itself": (
        attribute(policy_gradient, "advantages", including_itself),
        policy_check("leave_one_out"),
    ),
    "teacher and student swapped": (
        named(DivergenceName.forward_kl, swapped_models),
        divergence_check("forward_kl", NONE, MEAN),
    ),
    "beta and 1 - beta swapped": (
        named(DivergenceName.jsd, lambda function: lambda p, q, beta: function(p, q, 1 - beta)),
        divergence_check("jsd_0.9_raw", NONE, MEAN),
    ),
    "a finished completion that is bootstrapped": (bootstrapping(True), policy_check("learned, gae_lambda 1, any V")),
    "a truncated completion that is not bootstrapped": (
        bootstrapping(False),
        policy_check("learned, gae_lambda 1, any V"),
    ),
    "k3 in place of k2": (
        attribute(objective, "sampled_kl", lambda logp, initial, _: sampled_kl(logp, initial, KlEstimator.k3)),
        policy_check("KL in the loss, c"),
    ),
    "a sampled KL of the token alone": (
        attribute(policy_gradient, "reward_to_go", lambda values, mask: values * mask),
        policy_check("kl_in_reward c"),
    ),
    "alpha and 1 - alpha swapped": (
        attribute(LossTerms, "loss", swapped_loss),
        lambda kind: gradients.check_alpha(kind, NONE),
    ),
    "a mean over all columns, padding included": (
        attribute(objective, "divisors", divided_by_columns),
        divergence_check("tvd", NONE, MEAN),
    ),
}
OF_ONE_KIND: dict[str, tuple[str, Defect, Check]] = {
    "an encoder that attends to padding": ("t5", without("encoder_of", "attention_mask"), policy_check("REINFORCE")),
    "a decoder that attends to padding": (
        "t5",
        without("decoder_of", "encoder_attention_mask"),
        policy_check("REINFORCE"),
    ),
    "padding between prompt and completion": (
        "llama",
        attribute(Tensor, "argsort", in_place),
        policy_check("REINFORCE"),
    ),
    "an initial student with its adapter": (
        "llama with LoRA",
        attribute(AdaptedModel, "_switch", lambda self, off: None),
        policy_check("KL in the loss, c"),
    ),
    "a detached input of the adapter": (
        "t5 with LoRA",
        attribute(LoraLayer, "_cast_input_dtype", lambda self, x, _: x.detach()),
        policy_check("REINFORCE"),
    ),
}
ALL = {f"{name}, {kind}": (kind, *pair) for kind in ("t5", "llama") for name, pair in DEFECTS.items()} | OF_ONE_KIND


@pytest.fixture(autouse=True)
def fresh_spaces() -> Iterator[None]:
    """The cached rollouts hold masks: none computed with a defect may be used by the next test."""
    gradients.space_of.cache_clear()
    yield
    gradients.space_of.cache_clear()


@pytest.mark.parametrize("name", essential(ALL, *(name for name in ALL if not name.endswith(", llama"))))
def test_the_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, defect, check = ALL[name]
    defect(monkeypatch)
    with pytest.raises(AssertionError, match=r"relative distance \d|credit for an earlier position"):
        check(kind)
    monkeypatch.undo()
    gradients.space_of.cache_clear()
    check(kind)  # it passes without the defect
