"""What a run needs of its machine besides memory: the Hub, servers, a disk, and numbers of its models' type."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from gkd_rl.config import Config, ModelConfig
from gkd_rl.config.choices import Dtype
from gkd_rl.errors import GkdRlError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.loading import is_on_hub
from gkd_rl.pipeline.build_trainer import build_server
from gkd_rl.pipeline.models import build_endpoint
from gkd_rl.planning.checks import FAILED, OK, UNKNOWN, CheckResult
from gkd_rl.planning.memory_plan import GIB, MemoryPlan
from gkd_rl.types import Example

HUB_SECONDS = 10.0
SLOW = 2.0  # times the seconds of float32: this device has no unit for the type
SIDE = 384  # of the matrices that are multiplied to see


def models_of(config: Config) -> dict[str, ModelConfig]:
    """The student, and the teacher if there is one, by their keys."""
    return {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})


def check_precision(config: Config, device: torch.device) -> CheckResult:
    """The device computes with the models' numbers, and not by emulation."""
    low = [key for key, model in models_of(config).items() if model.dtype is Dtype.bfloat16]
    if not low:
        return CheckResult("precision", OK, "float32")
    named = " and ".join(f"{key}.dtype=bfloat16" for key in low)
    if device.type == "cpu" and config.scale.memory_gib is not None:
        return CheckResult("precision", UNKNOWN, f"{named}: scale.memory_gib plans for another machine than this")
    times = slowdown(device)
    if times > SLOW:
        instead = " ".join(f"{key}.dtype=float32" for key in low)
        words = f"{named}: a product of matrices takes {times:.1f} times as long as in float32 on this {device.type}"
        return CheckResult("precision", FAILED, f"{words}: set {instead}, or take a device that computes in bfloat16.")
    return CheckResult("precision", OK, f"{named}: {times:.2f} times the time of float32 on this {device.type}")


def slowdown(device: torch.device) -> float:
    """Time of a product in bfloat16 over that in float32, the shortest of a few tries each."""
    shortest = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
        seconds = []
        for _ in range(6):
            begun = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for a GPU
            seconds.append(time.perf_counter() - begun)
        shortest[dtype] = min(seconds)
    return shortest[torch.bfloat16] / shortest[torch.float32]


def check_hub(config: Config) -> CheckResult:
    """What comes from the Hub is in its cache, or can be reached."""
    wanted = dict.fromkeys(_on_hub(config), "model")
    if config.task.get("data") == "hub" and not config.task.get("data_files"):
        wanted[str(config.task["hub_id"])] = "dataset"
    if not wanted:
        return CheckResult("hub", OK, "not needed")
    away = [path for path, kind in wanted.items() if not _is_cached(path, kind)]
    if not away:
        return CheckResult("hub", OK, f"not needed: {', '.join(wanted)} is in its cache")
    reasons = {path: _unreachable(path, wanted[path]) for path in away}
    problems = [f"{path} ({reason})" for path, reason in reasons.items() if reason]
    if problems:
        words = f"needed for {', '.join(problems)}: fetch it where there is a network (`hf download`), and set its "
        return CheckResult("hub", FAILED, f"{words}path or task.data_files to the local copy.")
    return CheckResult("hub", OK, f"reachable: {', '.join(away)}")


def _on_hub(config: Config) -> Iterator[str]:
    """Hub ids of models, tokenizers and rewards, each once."""
    paths = [path for model in models_of(config).values() for path in (model.path, model.tokenizer)]
    paths += [str(path) for path in _paths(config.reward.components)]
    yield from dict.fromkeys(path for path in paths if path is not None and is_on_hub(path))


def _paths(node: object) -> Iterator[object]:
    """Every `path` under the settings of the rewards."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == "path" and isinstance(child, str):
            yield child
        else:
            yield from _paths(child)


def _is_cached(path: str, kind: str) -> bool:
    file = "config.json" if kind == "model" else "README.md"
    return isinstance(try_to_load_from_cache(path, file, repo_type=kind), str)


def _unreachable(path: str, kind: str) -> str:
    """Why the Hub does not give it; empty where it does."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1"
    try:
        HfApi().repo_info(path, repo_type=kind, timeout=HUB_SECONDS)
    except (HfHubHTTPError, OSError, ValueError) as error:  # the client's network errors are OSErrors
        return str(error).strip().partition("\n")[0][:150] or type(error).__name__
    except Exception as error:  # or httpx's own
        return f"{type(error).__name__}: {error}"[:150]
    return ""


def check_servers(config: Config, codec: TextCodec, example: Example) -> Iterator[CheckResult]:
    """A teacher behind a server answers as a teacher has to; a server that writes rollouts takes weights."""
    try:
        if config.teacher is not None and config.teacher.endpoint is not None:
            build_endpoint(config.teacher.endpoint, codec, example)
            yield CheckResult("endpoint", OK, f"{config.teacher.endpoint.url} gives the teacher's likeliest words")
        if build_server(config, codec) is not None:
            yield CheckResult("endpoint", OK, f"{config.rollout.vllm.url} writes rollouts")
    except GkdRlError as error:
        yield CheckResult("endpoint", FAILED, str(error))


def check_disk(config: Config, plan: MemoryPlan) -> CheckResult:
    """Room for the models that the run keeps, in folders that take files."""
    held = plan.stages[-1].held
    need = held["student"] if config.save_model else 0
    need += sum(
        held["student"] if key == "student.sft" else stage.held["teacher"]
        for key in plan.micro_batch_sizes
        for stage in plan.stages
        if key != "trainer" and stage.name.startswith(key.partition(".")[0])
    )
    folder = Path(config.cache_dir).expanduser()
    places = [next(one for one in (folder, *folder.parents) if one.exists()), Path.cwd()]
    closed = [place for place in places if not os.access(place, os.W_OK)]
    if closed:
        return CheckResult("disk", FAILED, f"{closed[0]} takes no files: set cache_dir=FOLDER, or start elsewhere")
    free = min(shutil.disk_usage(place).free for place in places)
    words = f"{need / GIB:.2f} GiB of models to write, {free / GIB:.1f} GiB free"
    if need < free:
        return CheckResult("disk", OK, words)
    return CheckResult(
        "disk", FAILED, f"{words} in {' and '.join(map(str, places))}: make room, or set cache_dir=FOLDER."
    )
