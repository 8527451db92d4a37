"""What is left of a run that stopped on numbers that are not finite: the last batch, its numbers, the weights."""

from __future__ import annotations

from pathlib import Path

from gkd_rl.json_files import plain
from gkd_rl.snapshot import Snapshot, write_snapshot
from gkd_rl.trainer import StepRecord, Trainer
from gkd_rl.training_state import trained

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
