"""All that a trainer has changed since its run began, as tensors and JSON, and back into a trainer that was just built.

Data order, rollouts, mixing and alpha are functions of (seed, step, rank) and need no state. Kept are the weights that
are trained, the value head, optimiser, learning-rate schedule, the random numbers of every rank (dropout draws from
them), rewards that are kept by text (computed again in another batch they round otherwise), and what the guard saw.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.launched import rank
from gkd_rl.ranks import from_all
from gkd_rl.snapshot import Snapshot
from gkd_rl.trainer import Trainer

SCALARS = "scalars"


def state_of(trainer: Trainer) -> Snapshot:
    """The state after a step; every rank has to ask."""
    tensors = {name: parameter.data for name, parameter in trained(trainer)}
    optimizer = trainer.optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    numbers = from_all(_random_numbers())
    for number, (drawn, _) in enumerate(numbers):
        tensors |= {f"random/{number}/{name}": value for name, value in drawn.items()}
    reward = trainer.reward
    facts = {
        "optimizer": {"groups": optimizer["param_groups"], SCALARS: scalars},
        "schedule": trainer.schedule.state_dict(),
        "random": [facts for _, facts in numbers],
        "guard": trainer.guard.state(),
        "rewards": None if reward is None else from_all(reward.remembered()),
    }
    return Snapshot(tensors, facts)


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Put a state into a trainer of the same run that has not taken a step."""
    facts = snapshot.facts
    restore_weights(trainer, snapshot)
    fresh, groups = trainer.optimizer.state_dict(), facts["optimizer"]["groups"]
    for group, kept in zip(fresh["param_groups"], groups, strict=True):
        group |= {name: tuple(value) if isinstance(group.get(name), tuple) else value for name, value in kept.items()}
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in facts["optimizer"][SCALARS].items()
    }
    for name, value in snapshot.tensors.items():
        if name.startswith("optimizer/"):
            _, index, entry = name.split("/", 2)
            state.setdefault(int(index), {})[entry] = value
    trainer.optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})
    trainer.schedule.load_state_dict(facts["schedule"])
    trainer.guard.load(facts["guard"])
    if trainer.reward is not None and facts["rewards"] is not None:
        trainer.reward.remember(facts["rewards"][rank()])
    prefix = f"random/{rank()}/"
    drawn = {name.removeprefix(prefix): value for name, value in snapshot.tensors.items() if name.startswith(prefix)}
    _set_random_numbers(drawn, facts["random"][rank()])


@torch.no_grad()
def restore_weights(trainer: Trainer, snapshot: Snapshot) -> None:
    """The trained weights alone, where they lie: the optimiser and wrappers know them by their place."""
    for name, parameter in trained(trainer):
        parameter.copy_(snapshot.tensors[name])


def trained(trainer: Trainer) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights that the trainer changes, by name."""
    modules: dict[str, nn.Module] = {"student": trainer.student}
    if trainer.critic is not None:
        modules["critic"] = trainer.critic.head
    for key, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{key}/{name}", parameter


def weights_digest(model: HiddenStateModel) -> str:
    """Hash of all weights of a model, by name; what another device or place offloads is named only."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if not value.is_meta:
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _random_numbers() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of torch's generators (CPU and every CUDA device), Python's and numpy's."""
    drawn = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        drawn |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state()
    return drawn, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def _set_random_numbers(drawn: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """The same, back."""
    torch.set_rng_state(drawn["torch"])
    devices = [drawn[name] for name in sorted(drawn, key=lambda key: (len(key), key)) if name.startswith("cuda")]
    if devices:
        torch.cuda.set_rng_state_all(devices)
    version, words, following = facts["python"]
    random.setstate((version, tuple(words), following))
    name, keys, *rest = facts["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
