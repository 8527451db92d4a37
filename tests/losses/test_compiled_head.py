"""The compiled head: the values and gradients of the eager head, and one graph for chunks of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from conftest import essential
from test_fused_head import make_case
from test_fused_loss import DIVERGENCES, OBJECTIVES, TOTALS, assert_same, both_ways, random_credits
from torch import Tensor

from gkd_rl.losses import fused_loss
from gkd_rl.losses.compiled_head import CompiledHead, compiled
from gkd_rl.losses.fused_head import CHUNK_TENSORS, CHUNK_TENSORS_COMPILED, FusedHead
from gkd_rl.losses.fused_loss import FusedLoss

CLOSED = {name: one for name, one in DIVERGENCES.items() if name != "top_k"}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces compilation by the functions themselves; names of the functions that were called."""
    names: list[str] = []

    def plain(function: Callable[..., Any]) -> Callable[..., Any]:
        names.append(function.__name__)
        return function

    monkeypatch.setattr(fused_loss, "compiled", plain)
    return names


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equals_autograd(objective: str, kind: str, called: list[str]) -> None:
    case = make_case(scale=0.3)
    for rewarded, credited in ((True, False), (False, False), (True, True)):
        if CLOSED[kind] is None and (not rewarded or credited):
            continue
        head = FusedHead(CLOSED[kind], 0.7, 5, compiled=True)
        credits = random_credits(rewarded=rewarded, credited=credited)
        assert_same(*both_ways(head, case, case.teacher, OBJECTIVES[objective], credits, 0.3))
    assert set(called) == {"values", "gradient"}


@pytest.mark.parametrize("shape", [{"bias": True}, {"bias": True, "softcap": 1.5}], ids=str)
def test_bias_cap_and_vocabularies_of_two_sizes(shape: dict[str, Any], called: list[str]) -> None:
    case = make_case(**shape, teacher_vocabulary=40)
    head = FusedHead(CLOSED["jsd_0.1"], 0.9, 3, vocabulary=19, compiled=True)
    case.ids.clamp_(max=18)
    credits = random_credits(rewarded=True, credited=False)
    assert_same(*both_ways(head, case, case.teacher, OBJECTIVES["reinforce"], credits, 0.6))
    assert called


def test_a_divergence_without_closed_form_is_not_compiled(called: list[str]) -> None:
    case, credits = make_case(), random_credits(rewarded=True, credited=False)
    head = FusedHead(DIVERGENCES["top_k"], 1.0, 5, compiled=True)
    assert_same(*both_ways(head, case, case.teacher, OBJECTIVES["reinforce"], credits, 0.3))
    assert not called


def test_the_gradient_has_the_type_of_the_weights(called: list[str]) -> None:
    head = CompiledHead(CLOSED["jsd_0.9"], 1.0, None, torch.bfloat16)
    logits, teacher_logits, ids = torch.randn(4, 9), torch.randn(4, 9), torch.arange(4)
    (logp, *_), normalisers = head.values(logits, teacher_logits, ids)
    rounded = head.gradient(logits, teacher_logits, ids, normalisers, torch.ones(4), torch.ones(4))
    exact = CompiledHead(CLOSED["jsd_0.9"], 1.0, None, torch.float32).gradient(
        logits, teacher_logits, ids, normalisers, torch.ones(4), torch.ones(4)
    )
    assert rounded.dtype == torch.bfloat16 and logp.dtype == torch.float32
    torch.testing.assert_close(rounded, exact.bfloat16())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compiles as on a GPU, with a backend that runs the operations unchanged; the number of nodes of every graph."""
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        found.append(len(graph.graph.nodes))
        return graph.forward

    before, torch._dynamo.config.recompile_limit = torch._dynamo.config.recompile_limit, 8
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    compiled.cache_clear()
    yield found
    torch.compiler.reset()
    compiled.cache_clear()
    torch._dynamo.config.recompile_limit = before


@pytest.mark.parametrize("kind", essential(["none", "jsd_0.9", "reverse_skew_kl", "cross_entropy"], "none", "jsd_0.9"))
def test_chunks_of_any_size_share_one_graph_per_function(kind: str, graphs: list[int]) -> None:
    case, objective = make_case(), OBJECTIVES["reinforce"]
    token_loss = objective.token_loss(case.mask, random_credits(rewarded=True, credited=False), TOTALS)
    losses = []
    for chunk in (5, 7, 100):
        head = FusedHead(CLOSED[kind], 1.0, chunk, compiled=True)
        fused = FusedLoss(head, lambda *terms: token_loss(*terms).loss(0.5))
        losses.append(float(fused(case.student, case.teacher, case.ids, case.mask)[0].detach()))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_sweep_may_exceed_the_recompile_limit_of_torch(graphs: list[int]) -> None:
    case, token_loss = make_case(), OBJECTIVES["reinforce"].token_loss
    credits = random_credits(rewarded=True, credited=False)
    for divergence in CLOSED.values():
        loss = token_loss(case.mask, credits, TOTALS)
        fused = FusedLoss(
            FusedHead(divergence, 1.0, 100, compiled=True), lambda *terms, loss=loss: loss(*terms).loss(0.5)
        )
        assert fused(case.student, case.teacher, case.ids, case.mask)[0].isfinite()
    assert len(graphs) > 2 * 8


def test_a_compiled_chunk_holds_more_tokens() -> None:
    ids = torch.zeros(10_000, dtype=torch.long)
    plain, compiled = (len(FusedHead(None, compiled=one).chunks(ids, 50_000)) for one in (False, True))
    assert plain / compiled == pytest.approx(CHUNK_TENSORS / CHUNK_TENSORS_COMPILED, rel=0.1)
