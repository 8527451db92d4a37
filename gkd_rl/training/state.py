"""A trainer's state on disk: snapshots for an exact resume, and the last batch of a run that diverged.

A resumed run continues bit-identically. Data order, rollouts, mixing and alpha are functions of (seed, step, rank) and
need no state. The snapshot has the trained weights, the value head, optimiser and learning-rate schedule, the random
states of every rank (dropout uses them), cached rewards (computed again in another batch they are rounded
differently), and the guard's state.

A snapshot is a folder with safetensors, JSON and a checksum of every file; no pickle. It is written under a temporary
name and renamed: a folder that exists is complete, and later damage is detected by the checksums.
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
TEMPORARY = ".writing-"  # prefix of folders that are not complete
POST_MORTEM = "post_mortem"
SCALARS = "scalars"


@dataclass(frozen=True)
class Snapshot:
    """The content of one folder.

    Attributes:
        tensors: by name, on the CPU.
        facts: JSON; floats are restored bit for bit.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_snapshot(folder: Path, snapshot: Snapshot, label: Mapping[str, Any]) -> None:
    """Write a snapshot, replacing an existing one.

    Args:
        folder: of the snapshot; its parent is created.
        snapshot: to be written.
        label: JSON for `read_label`, which does not read the rest.

    Raises:
        OSError: it cannot be written; no partial folder is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    try:
        tensors = {name: one.detach().cpu().contiguous() for name, one in snapshot.tensors.items()}
        save_file(tensors, temporary / TENSORS)
        (temporary / FACTS).write_text(json.dumps(snapshot.facts), encoding="utf-8")  # with NaN, which json reads
        checksums = {name: _checksum(temporary / name) for name in (TENSORS, FACTS)}
        write_json(temporary / INDEX, {"label": dict(label), "sha256": checksums})
        for name in (TENSORS, FACTS, INDEX, "."):
            _fsync(temporary / name)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _fsync(folder.parent)
    except SafetensorError as error:  # safetensors reports a full disk in the message only
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_label(folder: Path) -> dict[str, Any]:
    """The label of a snapshot.

    Raises:
        CheckpointError: the index is missing or damaged.
    """
    return _index(folder)["label"]


def read_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot and verify its checksums.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    for name, wanted in _index(folder)["sha256"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        if _checksum(folder / name) != wanted:
            raise CheckpointError(f"{folder / name} is damaged: its checksum does not match")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return Snapshot(load_file(folder / TENSORS), facts)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def remove_unfinished(parent: Path) -> None:
    """Remove the incomplete folders of interrupted processes from `parent`."""
    for temporary in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(temporary, ignore_errors=True)


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


def _fsync(path: Path) -> None:
    """Flush a file or folder to the device, so that it survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def trainer_state(trainer: Trainer) -> Snapshot:
    """The state after a step; a collective call of all ranks."""
    tensors = {name: parameter.data for name, parameter in trained_parameters(trainer)}
    optimizer = trainer.optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    states = gather_objects(_random_states())
    for number, (generators, _) in enumerate(states):
        tensors |= {f"random/{number}/{name}": value for name, value in generators.items()}
    reward = trainer.reward
    facts = {
        "optimizer": {"groups": optimizer["param_groups"], SCALARS: scalars},
        "schedule": trainer.schedule.state_dict(),
        "random": [facts for _, facts in states],
        "guard": trainer.guard.state(),
        "rewards": None if reward is None else gather_objects(reward.cached_rewards()),
    }
    return Snapshot(tensors, facts)


def restore_trainer(trainer: Trainer, snapshot: Snapshot) -> None:
    """Restore a `trainer_state` in a new trainer of the same run."""
    facts = snapshot.facts
    restore_weights(trainer, snapshot)
    fresh, groups = trainer.optimizer.state_dict(), facts["optimizer"]["groups"]
    for group, saved in zip(fresh["param_groups"], groups, strict=True):  # JSON has lists in place of tuples
        group |= {name: tuple(value) if isinstance(group.get(name), tuple) else value for name, value in saved.items()}
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
    generators = {
        name.removeprefix(prefix): value for name, value in snapshot.tensors.items() if name.startswith(prefix)
    }
    _set_random_states(generators, facts["random"][rank()])


@torch.no_grad()
def restore_weights(trainer: Trainer, snapshot: Snapshot) -> None:
    """Restore the trained weights only, in place: optimiser and wrappers refer to the same tensors."""
    for name, parameter in trained_parameters(trainer):
        parameter.copy_(snapshot.tensors[name])


def trained_parameters(trainer: Trainer) -> Iterator[tuple[str, nn.Parameter]]:
    """The trained parameters of student and value head, by name."""
    modules: dict[str, nn.Module] = {"student": trainer.student}
    if trainer.critic is not None:
        modules["critic"] = trainer.critic.head
    for key, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{key}/{name}", parameter


def weights_digest(model: HiddenStateModel) -> str:
    """SHA-256 of all weights of a model, by name; of offloaded weights only name, shape and type are included."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if not value.is_meta:
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of torch's generators (CPU and every CUDA device) as tensors, and of Python's and numpy's as JSON."""
    generators = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state()
    return generators, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def _set_random_states(generators: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Restore `_random_states`."""
    torch.set_rng_state(generators["torch"])
    names = [name for name in sorted(generators, key=lambda key: (len(key), key)) if name.startswith("cuda")]
    if names:
        torch.cuda.set_rng_state_all([generators[name] for name in names])
    version, state, gauss_next = facts["python"]
    random.setstate((version, tuple(state), gauss_next))
    name, keys, *rest = facts["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def write_post_mortem(run_folder: Path, step: int, record: StepRecord, trainer: Trainer) -> Path:
    """Write the last step of a diverged run: ids, masks, texts, rewards, metrics and the weights of the step.

    Returns:
        The folder, a snapshot: tensors.safetensors and facts.json.
    """
    rollout, prompts = record.rollout, record.rollout.prompts
    tensors = {
        "ids_BT": rollout.ids_BT,
        "mask_BT": rollout.mask_BT,
        "prompt_index_B": rollout.prompt_index_B,
        "prompts.ids_PS": prompts.ids_PS,
        "prompts.mask_PS": prompts.mask_PS,
        **{f"weights/{name}": parameter.data for name, parameter in trained_parameters(trainer)},
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
    write_snapshot(run_folder / POST_MORTEM, Snapshot(tensors, plain(facts)), {"step": step})
    return run_folder / POST_MORTEM
