"""The doctor's checks, as functions of values: the machine, the Hub, the disk, and what weights score references.

Scores of references are log-probabilities in nats a token on `SCORED_ROWS` held-out rows. No model is trained; what the
run trains first, and what is on the Hub or large, is skipped and reported.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from gkd_rl.evaluation.uncertainty import paired_difference
from gkd_rl.generation.codec import TextCodec
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import is_on_hub
from gkd_rl.planning.memory_plan import GIB
from gkd_rl.types import Example, Projection, sequence_mean

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: its name.
        state: `ok`, `failed`, or `unknown` where what it needs cannot be reached from here.
        words: the result in words.
    """

    check: str
    state: str
    words: str

    def __str__(self) -> str:
        return f"{self.state:<9}{self.check:<12}{self.words}"


def summary(findings: Sequence[CheckResult]) -> str:
    """The last line of the table: how many checks failed, and which could not be made."""
    failed, unknown = ([one.check for one in findings if one.state == state] for state in (FAILED, UNKNOWN))
    words = f"{len(findings)} checks, {len(failed)} failed" + (f" ({', '.join(failed)})" if failed else "")
    return words + (f", {len(unknown)} not made ({', '.join(unknown)})" if unknown else "")


HUB_SECONDS = 10.0
SLOW = 2.0  # times the seconds of float32: this device emulates the type
SIDE = 384  # of the matrices that are multiplied to measure it


def check_precision(low: Sequence[str], device: torch.device, *, other_machine: bool = False) -> CheckResult:
    """The device computes in the models' type without emulation.

    Args:
        low: settings owners whose dtype is bfloat16, e.g. student.
        device: of the run.
        other_machine: the run is planned for another machine than this.
    """
    if not low:
        return CheckResult("precision", OK, "float32")
    named = " and ".join(f"{key}.dtype=bfloat16" for key in low)
    if device.type == "cpu" and other_machine:
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


def check_hub(needed: Mapping[str, str]) -> CheckResult:
    """What comes from the Hub is in its cache, or can be reached.

    Args:
        needed: Hub id -> model or dataset.
    """
    if not needed:
        return CheckResult("hub", OK, "not needed")
    away = [path for path, kind in needed.items() if not _is_cached(path, kind)]
    if not away:
        return CheckResult("hub", OK, f"not needed: {', '.join(needed)} is in its cache")
    reasons = {path: _unreachable(path, needed[path]) for path in away}
    problems = [f"{path} ({reason})" for path, reason in reasons.items() if reason]
    if problems:
        words = f"needed for {', '.join(problems)}: fetch it where there is a network (`hf download`), and set its "
        return CheckResult("hub", FAILED, f"{words}path or task.data_files to the local copy.")
    return CheckResult("hub", OK, f"reachable: {', '.join(away)}")


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


def check_disk(need: int, cache_dir: Path) -> CheckResult:
    """Room for the models that the run keeps, in folders that take files.

    Args:
        need: bytes of these models.
        cache_dir: of supervised models.
    """
    places = [next(one for one in (cache_dir, *cache_dir.parents) if one.exists()), Path.cwd()]
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


SCORED_ROWS = 16
LEAST_END = 0.05  # of the teacher's probability that a text ends where the reference does
SMALL_BYTES = GIB  # of weights that are loaded without being asked for
RESAMPLES = 1000


@dataclass(frozen=True)
class ReferenceScores:
    """A model's scores of references, each of shape (rows,).

    Attributes:
        logp: mean log-probability of their tokens, in nats.
        end: probability of their end.
    """

    logp: np.ndarray
    end: np.ndarray


def score_references(
    model: HiddenStateModel, codec: TextCodec, examples: Sequence[Example], chunk_tokens: int | None
) -> ReferenceScores:
    """Score the references of the first `SCORED_ROWS` examples.

    Args:
        model: on the CPU.
        codec: its text <-> ids.
        examples: held-out rows.
        chunk_tokens: of the output head; None: by memory.
    """
    rollout = codec.references(examples[:SCORED_ROWS])
    head = FusedHead(None, 1.0, chunk_tokens, codec.vocabulary)
    with torch.no_grad():
        model.eval()
        terms = head(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
    last_B1 = rollout.mask_BT.sum(dim=1, keepdim=True) - 1
    mean_B = sequence_mean(terms.logp_BT, rollout.mask_BT)
    end_B = terms.logp_BT.gather(1, last_B1).squeeze(1).exp()
    return ReferenceScores(mean_B.double().numpy(), end_B.double().numpy())


def check_template(configured: ReferenceScores, other: ReferenceScores, key: str, *, chat: bool) -> CheckResult:
    """References are likelier behind prompts in the configured form than in the other, of a chat or of plain text.

    Args:
        configured: scores with prompts as configured.
        other: scores with prompts in the other form.
        key: student or teacher.
        chat: prompts are configured as turns of a chat.
    """
    lead = paired_difference(other.logp, configured.logp, RESAMPLES, seed=0)
    words = f"{key}.chat={str(chat).lower()}: references are {-lead.mean:.2f} nats a token likelier than "
    words += f"with {str(not chat).lower()}"
    if lead.low > 0:
        return CheckResult("template", FAILED, f"{words}: set {key}.chat={str(not chat).lower()}.")
    return CheckResult("template", OK, words)


def why_not_loaded(path: str, key: str, *, large: bool) -> str:
    """Why weights are not loaded for a check; empty where they are."""
    if is_on_hub(path):
        return f"{key}: {path} is on the Hub"
    place = Path(path).expanduser()
    files = [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]
    size = sum(one.stat().st_size for one in files)
    if size > SMALL_BYTES and not large:
        return f"{key}: {size / GIB:.1f} GiB of weights are left alone, --weights reads them"
    return ""


def check_ends(teacher: ReferenceScores) -> CheckResult:
    """The teacher ends where references do."""
    chance = float(teacher.end.mean())
    words = f"the teacher ends with probability {chance:.3f} where a reference does"
    if chance >= LEAST_END:
        return CheckResult("ends", OK, words)
    return CheckResult(
        "ends", FAILED, f"{words}: its texts end otherwise, check teacher.chat, teacher.tokenizer and its end token."
    )


def check_teacher_is_better(teacher: ReferenceScores, student: ReferenceScores) -> CheckResult:
    """References are likelier to the teacher; a difference within the noise is no failure."""
    lead = paired_difference(teacher.logp, student.logp, RESAMPLES, seed=0)
    words = f"references are {lead.mean:.2f} [{lead.low:.2f}, {lead.high:.2f}] nats a token likelier to the teacher "
    words += f"than to the student ({lead.n} rows)"
    if lead.high >= 0:
        return CheckResult("teacher", OK, words)
    return CheckResult(
        "teacher", FAILED, f"{words}: it has less to teach than the student knows, choose another teacher."
    )
