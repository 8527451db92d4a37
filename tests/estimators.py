"""The six uses of a one-sample KL estimate, their expected gradients, and the tables of docs/estimators.md."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from enumeration import CompletionSpace
from torch import Tensor

from gkd_rl.config.choices import DivergenceName, KlEstimator
from gkd_rl.losses.objective import StepTotals
from gkd_rl.losses.policy_gradient import reward_to_go, sampled_kl, surrogate
from gkd_rl.types import sequence_sum

PAGE = Path(__file__).resolve().parents[1] / "docs" / "estimators.md"


# The gradient that each use of a sampled KL descends in expectation, as named in docs/estimators.md.
DESCENDS = {
    "k1 in the loss": "0",
    "k2 in the loss": "R",
    "k3 in the loss": "F",
    "k1 in the reward": "R*",
    "k2 in the reward": "M* - R",
    "k3 in the reward": "R* - F",
}


def sampled_gradients(space: CompletionSpace) -> dict[str, Tensor]:
    """Expected gradient of a step, for every estimator in the loss and in the reward."""
    terms, pre_update = space.terms_of(None)
    assert pre_update.initial_logp_BT is not None
    draws, mask_BT = space.draws("one"), space.rollout.mask_BT
    probability = space.expectations(draws).probability.detach()

    def mean(loss_BT: Tensor) -> Tensor:
        losses = []
        for row in draws.indices:
            totals = StepTotals(1, int(mask_BT[row].sum()))
            losses.append(sequence_sum(loss_BT[row], mask_BT[row]).sum() / totals.sequences)
        return space.gradient((probability * torch.stack(losses)).sum())

    found = {}
    for estimator in KlEstimator:
        kl_BT = sampled_kl(terms.logp_BT, pre_update.initial_logp_BT, estimator)
        found[f"{estimator.value} in the loss"] = mean(kl_BT)
        weights_BT = -reward_to_go(kl_BT.detach(), mask_BT)
        found[f"{estimator.value} in the reward"] = mean(surrogate(terms.logp_BT, None, weights_BT, None))
    return found


def named_gradients(space: CompletionSpace) -> dict[str, Tensor]:
    """Gradients of the exact objectives that docs/estimators.md defines, and differences of them."""
    expectations = space.expectations(space.draws("one"))
    exact = {
        "R": expectations.position_kl(DivergenceName.reverse_kl),
        "R*": expectations.kl(),
        "F": expectations.position_kl(DivergenceName.forward_kl),
        "F*": expectations.forward_kl(),
        "M*": expectations.half_square(),
    }
    one = {name: space.gradient(value) for name, value in exact.items()}
    differences = {f"{a} - {b}": one[a] - one[b] for a, b in (("R*", "F"), ("R*", "F*"), ("M*", "R"))}
    return {"0": torch.zeros_like(one["R"])} | one | differences


def estimator_table(places: dict[int, CompletionSpace]) -> str:
    """Distance of each mean gradient to each candidate, in units of |∇R*|, by the maximal number of tokens."""
    rows, names = [], []
    for max_tokens, space in places.items():
        exact = named_gradients(space)
        names = list(exact)
        size = exact["R*"].norm()
        for use, gradient in sorted(sampled_gradients(space).items(), key=lambda item: item[0][2:]):
            rows.append([use, str(max_tokens), *(_number((gradient - one).norm() / size) for one in exact.values())])
    return _markdown(["estimator", "tokens", *names], rows)


def policy_table(ascends: dict[str, str], gradients: dict[str, tuple[Tensor, Tensor]]) -> str:
    """What each policy gradient ascends, and its length and cosine relative to ∇E[r]."""
    rows = []
    for name, (gradient, reward) in gradients.items():
        size = float(gradient.norm() / reward.norm())
        cosine = _number(torch.cosine_similarity(gradient, reward, dim=0)) if size > 1e-9 else ""
        rows.append([name, ascends[name], _number(size), cosine])
    return _markdown(["setting", "ascends the gradient of", "length in units of ∇E[r]", "cosine with ∇E[r]"], rows)


def with_tables(page: str, tables: dict[str, str]) -> str:
    """The page with the table below each `<!-- table: NAME -->` replaced."""
    for name, table in tables.items():
        mark = f"<!-- table: {name} -->"
        assert mark in page, f"{PAGE} has no {mark}"
        page = re.sub(re.escape(mark) + r"\n\n?(\|.*\n)*", lambda _, text=f"{mark}\n\n{table}": text, page)
    return page


def _number(value: Tensor | float) -> str:
    return f"{abs(float(value)) if abs(float(value)) < 5e-3 else float(value):.2f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
