"""Several processes of one run (`accelerate launch`): how they meet, share rows out, and put numbers together.

Data parallelism: every rank holds all models and takes an equal share of each step's prompts and of what is evaluated,
so a run of N ranks is the run of one with the same settings, but for its random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed
from tqdm.auto import tqdm

from gkd_rl.config.launch import is_main_process, place_here, processes, rank
from gkd_rl.errors import ConfigError

Row = TypeVar("Row")


def meet() -> Accelerator:
    """The engine of this process, once all ranks are here. Without a GPU they talk through gloo.

    Raises:
        ConfigError: there are more processes than devices, or they do not see each other.
    """
    on_cpu = not torch.accelerator.is_available()
    here, count = place_here()
    if not on_cpu and here == 0 and count > torch.accelerator.device_count():  # the others wait for this one's end
        raise ConfigError([
            f"{count} processes on a machine of {torch.accelerator.device_count()} devices: each takes one of its own. "
            f"Set --num_processes to {torch.accelerator.device_count()} or less, or hide the devices "
            "(CUDA_VISIBLE_DEVICES=) to run on the CPU."
        ])  # fmt: skip
    accelerator = Accelerator(cpu=on_cpu)
    if accelerator.num_processes != processes():
        raise ConfigError([
            f"accelerate sees {accelerator.num_processes} of {processes()} processes "
            f"(distributed_type={accelerator.distributed_type.value}): launch with "
            "accelerate launch --config_file conf/accelerate/ddp.yaml, or with --num_processes 1."
        ])  # fmt: skip
    accelerator.wait_for_everyone()
    return accelerator


def part() -> None:
    """The end of `meet`."""
    distributed.destroy_process_group()


def first_to_fail() -> bool:
    """Whether no other rank has asked before: the one that is to say what went wrong."""
    return distributed.distributed_c10d._get_default_store().add("failed", 1) == 1


def from_all(value: Any) -> list[Any]:
    """What each rank passed, in their order, on every rank."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, value)
    return found


def own_seed(seed: int) -> int:
    """A seed for each rank; that of rank 0, and of a process alone, is `seed`."""
    return seed if is_main_process() else random.Random(f"rank {rank()} {seed}").getrandbits(63)


def share(rows: Sequence[Row]) -> list[Row]:
    """This rank's rows, every N-th; the first come again where there are too few, so that all have equally many."""
    each = -(-len(rows) // processes())
    return [rows[(rank() + i * processes()) % len(rows)] for i in range(each)]


def interleaved(parts: Sequence[Sequence[Row]], count: int) -> list[Row]:
    """The `count` rows behind the ranks' `share`s."""
    return [row for rows in zip(*parts, strict=True) for row in rows][:count]


def over_ranks(accelerator: Accelerator, metrics: dict[str, float]) -> dict[str, float]:
    """A step's numbers over all ranks: FLOPs summed, reward/std pooled, means averaged; seconds are rank 0's.

    Every rank has equally many completions; numbers that count the whole step already are equal and stay.
    """
    if accelerator.num_processes == 1:
        return metrics
    values = dict(metrics)
    if "reward/std" in values:
        values["reward/std"] = values["reward/std"] ** 2 + values["reward/mean"] ** 2
    names = sorted(name for name in values if not name.startswith("time/"))
    vector = torch.tensor([values[name] for name in names], dtype=torch.float64, device=accelerator.device)
    sums: torch.Tensor = accelerator.reduce(vector, "sum")  # pyright: ignore[reportAssignmentType]
    for name, total in zip(names, sums.tolist(), strict=True):
        values[name] = total if name.startswith("flops/") else total / accelerator.num_processes
    if "reward/std" in values:
        values["reward/std"] = max(values["reward/std"] - values["reward/mean"] ** 2, 0.0) ** 0.5
    return values


def progress(total: int, what: str, unit: str) -> tqdm:
    """A progress bar, shown by the main process."""
    return tqdm(total=total, desc=what, unit=unit, mininterval=1.0, disable=not is_main_process())
