"""Optimisers descend, and the learning rate follows the configured schedule."""

from __future__ import annotations

import pytest
import torch

from gkd_rl.config.choices import Decay, OptimizerName
from gkd_rl.training.optimization import OptimizerSettings


def rates(decay: Decay, warmup: int, steps: int, cooldown: int = 0) -> list[float]:
    """The learning rate of each step."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    settings = OptimizerSettings(steps, OptimizerName.adamw, 0.1, 0.0, warmup, decay, cooldown)
    optimizer, schedule = settings.build([parameter])
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_schedules() -> None:
    assert rates(Decay.linear, 2, 6) == pytest.approx([0.0, 0.05, 0.1, 0.075, 0.05, 0.025])
    assert rates(Decay.constant, 2, 4) == pytest.approx([0.0, 0.05, 0.1, 0.1])
    assert rates(Decay.cooldown, 2, 8, 4) == pytest.approx([0.0, 0.05, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025])
    assert rates(Decay.cosine, 0, 4) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-6)


@pytest.mark.parametrize("name", list(OptimizerName))
def test_optimizers_descend(name: OptimizerName) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(8, 8))
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer, schedule = OptimizerSettings(200, name, 0.05, 0.0, 0, Decay.constant).build([parameter, frozen])
    start = parameter.square().sum().item()
    for _ in range(200):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
        schedule.step()
    assert parameter.square().sum().item() < 0.2 * start
    assert frozen.item() == 1


@pytest.mark.parametrize("name", list(OptimizerName))
def test_extra_parameters_have_their_own_rate_on_the_same_schedule(name: OptimizerName) -> None:
    student, head = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    settings = OptimizerSettings(6, name, 0.1, 0.0, 2, Decay.linear)
    optimizer, schedule = settings.build([student, frozen], [([head], 0.02)])
    assert [group["params"] for group in optimizer.param_groups] == [[student], [head]]
    for shape in (0.0, 0.5, 1.0, 0.75, 0.5, 0.25):
        assert schedule.get_last_lr() == pytest.approx([0.1 * shape, 0.02 * shape])
        before = head.detach().clone()
        student.square().sum().backward()
        head.square().sum().backward()
        optimizer.step()
        schedule.step()
        assert torch.equal(before, head) is (shape == 0)


def test_the_rate_of_extra_parameters_does_not_affect_the_others() -> None:
    def trained(*extra: float) -> torch.Tensor:
        parameter, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
        settings = OptimizerSettings(4, OptimizerName.adamw, 0.1, 0.01, 0, Decay.cosine)
        optimizer, schedule = settings.build([parameter], [([other], rate) for rate in extra])
        for _ in range(4):
            (parameter.square().sum() + other.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return parameter.detach()

    assert torch.equal(trained(), trained(0.5))
    assert torch.equal(trained(0.001), trained(0.5))
