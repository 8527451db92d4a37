"""Several processes of one run (`accelerate launch`): start, shares of rows, and reductions over ranks.

Data parallelism: every rank holds all models and an equal share of each step's prompts and of the evaluated rows. A run
with N ranks computes the same as a run with one and the same settings, except for its random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed
from tqdm.auto import tqdm

from gkd_rl.config.launch import is_main_process, local_rank_and_size, processes, rank
from gkd_rl.errors import ConfigError

Row = TypeVar("Row")


def start_processes() -> Accelerator:
    """The accelerator of this process, after a barrier of all ranks; the backend is gloo without a GPU.

    Raises:
        ConfigError: there are more processes than devices, or accelerate does not know all of them.
    """
    on_cpu = not torch.accelerator.is_available()
    local_rank, count = local_rank_and_size()
    # only rank 0 of the machine raises: the launcher ends the others when it exits
    if not on_cpu and local_rank == 0 and count > torch.accelerator.device_count():
        raise ConfigError([
            f"{count} processes on a machine with {torch.accelerator.device_count()} devices: each process needs one. "
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


def stop_processes() -> None:
    """Destroy the process group of `start_processes`."""
    distributed.destroy_process_group()


def is_first_failure() -> bool:
    """True for the first rank that calls it: this rank reports the error."""
    return distributed.distributed_c10d._get_default_store().add("failed", 1) == 1


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, in rank order, on every rank."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, value)
    return found


def rank_seed(seed: int) -> int:
    """A different seed on each rank; on rank 0, and in a single process, it is `seed`."""
    return seed if is_main_process() else random.Random(f"rank {rank()} {seed}").getrandbits(63)


def rank_share(rows: Sequence[Row]) -> list[Row]:
    """Every N-th row, for this rank. The first rows are repeated so that all ranks have equally many."""
    each = -(-len(rows) // processes())
    return [rows[(rank() + i * processes()) % len(rows)] for i in range(each)]


def merge_rank_shares(parts: Sequence[Sequence[Row]], count: int) -> list[Row]:
    """The inverse of `rank_share`: the first `count` rows from the shares of all ranks."""
    return [row for rows in zip(*parts, strict=True) for row in rows][:count]


def reduce_metrics(accelerator: Accelerator, metrics: dict[str, float]) -> dict[str, float]:
    """A step's metrics over all ranks: FLOPs are summed, reward/std pooled, others averaged; seconds are rank 0's.

    Every rank has equally many completions. Metrics of the whole step are equal on all ranks and do not change.
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
