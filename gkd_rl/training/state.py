"""Tensors and facts in a folder of their own: written beside and renamed, with a checksum of every file.

A folder that exists is whole; one that was damaged since is told by its checksums. safetensors and JSON, no pickle.

All that a trainer has changed since its run began, as tensors and JSON, and back into a trainer that was just built.

Data order, rollouts, mixing and alpha are functions of (seed, step, rank) and need no state. Kept are the weights that
are trained, the value head, optimiser, learning-rate schedule, the random numbers of every rank (dropout draws from
them), rewards that are kept by text (computed again in another batch they round otherwise), and what the guard saw.

What is left of a run that stopped on numbers that are not finite: the last batch, its numbers, the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gkd_rl.config.launch import rank
from gkd_rl.errors import CheckpointError
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.outputs.json_files import plain, write_json
from gkd_rl.training.processes import gather_objects
from gkd_rl.training.trainer import StepRecord, Trainer

TENSORS, FACTS, INDEX = "tensors.safetensors", "facts.json", "index.json"
BESIDE = ".writing-"


@dataclass(frozen=True)
class Snapshot:
    """What one folder holds.

    Attributes:
        tensors: by name, on the CPU.
        facts: JSON; floats come back bit for bit.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_snapshot(folder: Path, snapshot: Snapshot, label: Mapping[str, Any]) -> None:
    """Write `snapshot` to `folder`; what was there is replaced.

    Args:
        folder: its parent is made.
        snapshot: what to write.
        label: JSON that `read_label` gives back without reading the rest.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=BESIDE, dir=folder.parent))
    try:
        save_file({name: one.detach().cpu().contiguous() for name, one in snapshot.tensors.items()}, beside / TENSORS)
        (beside / FACTS).write_text(json.dumps(snapshot.facts), encoding="utf-8")  # NaN stays NaN between us
        sums = {name: _checksum(beside / name) for name in (TENSORS, FACTS)}
        write_json(beside / INDEX, {"label": dict(label), "sha256": sums})
        for name in (TENSORS, FACTS, INDEX, "."):
            _to_disk(beside / name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
        _to_disk(folder.parent)
    except SafetensorError as error:  # it has a full disk in its text only
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_label(folder: Path) -> dict[str, Any]:
    """The label that `folder` was written with.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    return _index(folder)["label"]


def read_snapshot(folder: Path) -> Snapshot:
    """What was written to `folder`.

    Raises:
        CheckpointError: a file is missing, or is not as it was written.
    """
    for name, wanted in _index(folder)["sha256"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        if _checksum(folder / name) != wanted:
            raise CheckpointError(f"{folder / name} is damaged: its checksum is another one")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return Snapshot(load_file(folder / TENSORS), facts)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def remove_unfinished(parent: Path) -> None:
    """Remove what a process that died while writing left in `parent`."""
    for beside in parent.glob(f"{BESIDE}*"):
        shutil.rmtree(beside, ignore_errors=True)


def _index(folder: Path) -> dict[str, Any]:
    """Label and checksums."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX} cannot be read: {error}") from error
    if not isinstance(index, dict) or not {"label", "sha256"} <= index.keys():
        raise CheckpointError(f"{folder / INDEX} is damaged: it lacks label or sha256")
    return index


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, would outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    numbers = gather_objects(_random_numbers())
    for number, (drawn, _) in enumerate(numbers):
        tensors |= {f"random/{number}/{name}": value for name, value in drawn.items()}
    reward = trainer.reward
    facts = {
        "optimizer": {"groups": optimizer["param_groups"], SCALARS: scalars},
        "schedule": trainer.schedule.state_dict(),
        "random": [facts for _, facts in numbers],
        "guard": trainer.guard.state(),
        "rewards": None if reward is None else gather_objects(reward.cached_rewards()),
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
        trainer.reward.restore_cache(facts["rewards"][rank()])
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


FOLDER = "post_mortem"


def write_post_mortem(run_folder: Path, step: int, record: StepRecord, trainer: Trainer) -> Path:
    """Write the step's ids, masks, texts, rewards and numbers, and the weights that it was taken with.

    Returns:
        The folder: tensors.safetensors and facts.json.
    """
    rollout, prompts = record.rollout, record.rollout.prompts
    tensors = {
        "ids_BT": rollout.ids_BT,
        "mask_BT": rollout.mask_BT,
        "prompt_index_B": rollout.prompt_index_B,
        "prompts.ids_PS": prompts.ids_PS,
        "prompts.mask_PS": prompts.mask_PS,
        **{f"weights/{name}": parameter.data for name, parameter in trained(trainer)},
    }
    facts = {
        "step": step,
        "source": rollout.source.value,
        "metrics": record.metrics,
        "prompts": [example.prompt for example in prompts.examples],
        "references": [example.reference for example in prompts.examples],
        "completions": list(rollout.texts),
        "rewards": None if record.scores is None else record.scores.components,
    }
    write_snapshot(run_folder / FOLDER, Snapshot(tensors, plain(facts)), {"step": step})
    return run_folder / FOLDER
