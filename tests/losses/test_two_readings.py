"""The loss's gradient in two readings of the logits: the same numbers as in one pass, and one graph for any chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from test_fused_head import make_case
from test_fused_loss import DIVERGENCES, OBJECTIVES, TOTALS, assert_same, both_ways, random_credits
from torch import Tensor

from gkd_rl.losses import fused_loss
from gkd_rl.losses.compiled_head import Reading, compiled
from gkd_rl.losses.fused_head import CHUNK_TENSORS, CHUNK_TENSORS_COMPILED, FusedHead
from gkd_rl.losses.fused_loss import FusedLoss

CLOSED = {name: one for name, one in DIVERGENCES.items() if name != "top_k"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The readings as they are written; and which of them were used."""
    used: list[str] = []

    def plain(reading: Callable[..., Any]) -> Callable[..., Any]:
        used.append(reading.__name__)
        return reading

    monkeypatch.setattr(fused_loss, "compiled", plain)
    return used


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_autograd(objective: str, kind: str, read: list[str]) -> None:
    case = make_case(scale=0.3)
    for rewarded, credited in ((True, False), (False, False), (True, True)):
        if CLOSED[kind] is None and (not rewarded or credited):
            continue
        head = FusedHead(CLOSED[kind], 0.7, 5, compiled=True)
        credits = random_credits(rewarded=rewarded, credited=credited)
        assert_same(*both_ways(head, case, case.teacher, OBJECTIVES[objective], credits, 0.3))
    assert set(read) == {"sums", "gradient"}


@pytest.mark.parametrize("shape", [{"bias": True}, {"bias": True, "softcap": 1.5}], ids=str)
def test_bias_cap_and_vocabularies_of_two_sizes(shape: dict[str, Any], read: list[str]) -> None:
    case = make_case(**shape, teacher_vocabulary=40)
    head = FusedHead(CLOSED["jsd_0.1"], 0.9, 3, vocabulary=19, compiled=True)
    case.ids.clamp_(max=18)
    credits = random_credits(rewarded=True, credited=False)
    assert_same(*both_ways(head, case, case.teacher, OBJECTIVES["reinforce"], credits, 0.6))
    assert read


def test_what_has_no_closed_form_is_read_once(read: list[str]) -> None:
    case, credits = make_case(), random_credits(rewarded=True, credited=False)
    head = FusedHead(DIVERGENCES["top_k"], 1.0, 5, compiled=True)
    assert_same(*both_ways(head, case, case.teacher, OBJECTIVES["reinforce"], credits, 0.3))
    assert not read


def test_the_gradient_has_the_weights_type(read: list[str]) -> None:
    reading = Reading(CLOSED["jsd_0.9"], 1.0, None, torch.bfloat16)
    logits, told, ids = torch.randn(4, 9), torch.randn(4, 9), torch.arange(4)
    (logp, *_), norms = reading.sums(logits, told, ids)
    rounded = reading.gradient(logits, told, ids, norms, torch.ones(4), torch.ones(4))
    exact = Reading(CLOSED["jsd_0.9"], 1.0, None, torch.float32).gradient(
        logits, told, ids, norms, torch.ones(4), torch.ones(4)
    )
    assert rounded.dtype == torch.bfloat16 and logp.dtype == torch.float32
    torch.testing.assert_close(rounded, exact.bfloat16())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compiled as on a GPU, but by a compiler that leaves every operation as it is; the size of every graph."""
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


@pytest.mark.parametrize("kind", ["none", "jsd_0.9", "reverse_skew_kl", "cross_entropy"])
def test_chunks_of_any_size_are_one_graph_each_reading(kind: str, graphs: list[int]) -> None:
    case, objective = make_case(), OBJECTIVES["reinforce"]
    of_tokens = objective.of(case.mask, random_credits(rewarded=True, credited=False), TOTALS)
    losses = []
    for chunk in (5, 7, 100):
        head = FusedHead(CLOSED[kind], 1.0, chunk, compiled=True)
        fused = FusedLoss(head, lambda *numbers: of_tokens(*numbers).loss(0.5))
        losses.append(float(fused(case.student, case.teacher, case.ids, case.mask)[0].detach()))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert len(graphs) == 2


def test_a_sweep_has_more_divergences_than_torch_compiles_unasked(graphs: list[int]) -> None:
    case, of_tokens = make_case(), OBJECTIVES["reinforce"].of
    credits = random_credits(rewarded=True, credited=False)
    for divergence in CLOSED.values():
        loss = of_tokens(case.mask, credits, TOTALS)
        fused = FusedLoss(FusedHead(divergence, 1.0, 100, compiled=True), lambda *of, loss=loss: loss(*of).loss(0.5))
        assert fused(case.student, case.teacher, case.ids, case.mask)[0].isfinite()
    assert len(graphs) > 2 * 8


def test_a_chunk_holds_more_tokens() -> None:
    ids = torch.zeros(10_000, dtype=torch.long)
    plain, compiled = (len(FusedHead(None, compiled=one).chunks(ids, 50_000)) for one in (False, True))
    assert plain / compiled == pytest.approx(CHUNK_TENSORS / CHUNK_TENSORS_COMPILED, rel=0.1)
