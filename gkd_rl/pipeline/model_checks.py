"""Checks that need weights: the teacher is better than the student, ends where references end, and reads their form.

All are about the log-probability of held-out references, in nats a token, on ROWS rows. No model is trained: what the
run trains first, and what lies elsewhere or is large, is left alone and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gkd_rl.config import Config, ModelConfig
from gkd_rl.data.task import Task
from gkd_rl.errors import GkdRlError, ModelError
from gkd_rl.evaluation.uncertainty import paired_difference
from gkd_rl.generation.codec import TextCodec
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import is_on_hub, load_model
from gkd_rl.pipeline import build
from gkd_rl.pipeline.models import has_weights
from gkd_rl.planning.checks import FAILED, OK, UNKNOWN, CheckResult
from gkd_rl.planning.memory_plan import GIB
from gkd_rl.types import Example, Projection, sequence_mean

ROWS = 16
LEAST_END = 0.05  # of the teacher's probability that a text ends where the reference does
SMALL_BYTES = GIB  # of weights that are read without being asked for
RESAMPLES = 1000


@dataclass(frozen=True)
class Read:
    """What a model says of references, each number of shape (rows,).

    Attributes:
        logp: mean log-probability of their tokens, in nats.
        end: probability of their end.
    """

    logp: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class ModelChecks:
    """Looks at the weights of a run.

    Attributes:
        config: of the run.
        task: its data.
        train: rows that decide which supervised model is the run's.
        held_out: rows whose references are read.
        large: read weights of any size.
    """

    config: Config
    task: Task
    train: list[Example]
    held_out: Sequence[Example]
    large: bool

    def findings(self) -> Iterator[CheckResult]:
        """Every check that the weights which are there allow."""
        settings = self.config.teacher
        student = self._weights(self.config.student, "student")
        yield from self._template(student, self.config.student, "student")
        if settings is None or not has_weights(settings):
            return
        teacher = self._weights(settings, "teacher")
        yield from self._template(teacher, settings, "teacher")
        if isinstance(teacher, str):
            yield CheckResult("ends", UNKNOWN, teacher)
            yield CheckResult("teacher", UNKNOWN, teacher)
            return
        read = self._read(teacher, self._codec(settings, "teacher"))
        yield _ends(read)
        if isinstance(student, str):
            yield CheckResult("teacher", UNKNOWN, student)
        else:
            yield _better(read, self._read(student, self._codec(self.config.student, "student")))

    def _weights(self, model: ModelConfig, key: str) -> HiddenStateModel | str:
        """The model as the run takes it, or why it is left alone."""
        try:
            codec = self._codec(model, key)
            if model.sft is None:
                if model.path is None:
                    return f"{key}: its weights are drawn at random"
                left = _left_alone(model.path, key, large=self.large)
                return left or HiddenStateModel(build.fresh_model(model, codec.tokenizer, key))
            adapter = self.config.adapter if key == "student" else None
            folder = build.supervised_cache(self.config, build.model_key(model, codec, self.train, adapter))
            if not folder.is_dir():
                return f"{key}: the run trains it first"
            left = _left_alone(str(folder), key, large=self.large)
            return left or HiddenStateModel(load_model(str(folder), None, getattr(torch, model.dtype.value), key))
        except GkdRlError as error:
            return f"{key}: {error}"

    def _codec(self, model: ModelConfig, key: str) -> TextCodec:
        tokenizer = build.build_tokenizer(model, self.task, key)
        return build.build_codec(model, tokenizer, self.task, torch.device("cpu"), key)

    def _read(self, model: HiddenStateModel, codec: TextCodec) -> Read:
        rollout = codec.references(self.held_out[:ROWS])
        head = FusedHead(None, 1.0, self.config.trainer.head_chunk_tokens, codec.vocabulary)
        with torch.no_grad():
            model.eval()
            terms = head(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
        last_B1 = rollout.mask_BT.sum(dim=1, keepdim=True) - 1
        mean_B = sequence_mean(terms.logp_BT, rollout.mask_BT)
        end_B = terms.logp_BT.gather(1, last_B1).squeeze(1).exp()
        return Read(mean_B.double().numpy(), end_B.double().numpy())

    def _template(self, model: HiddenStateModel | str, settings: ModelConfig, key: str) -> Iterator[CheckResult]:
        """References are likelier behind prompts in the configured form than in the other, of a chat or of plain text.

        Left out where the tokenizer has no chat template; `unknown` where there are no weights to ask.
        """
        codec = self._codec(settings, key)
        if not (codec.decoder_only and codec.tokenizer.chat_template):
            return
        if isinstance(model, str):
            yield CheckResult("template", UNKNOWN, model)
            return
        try:
            other = self._codec(replace(settings, chat=not settings.chat), key)
        except ModelError:  # the template does not serve a prompt and its answer
            return
        lead = paired_difference(self._read(model, other).logp, self._read(model, codec).logp, RESAMPLES, seed=0)
        words = f"{key}.chat={str(settings.chat).lower()}: references are {-lead.mean:.2f} nats a token likelier than "
        words += f"with {str(not settings.chat).lower()}"
        if lead.low > 0:
            yield CheckResult("template", FAILED, f"{words}: set {key}.chat={str(not settings.chat).lower()}.")
        else:
            yield CheckResult("template", OK, words)


def _left_alone(path: str, key: str, *, large: bool) -> str:
    """Why weights are not read; empty where they are."""
    if is_on_hub(path):
        return f"{key}: {path} is on the Hub"
    place = Path(path).expanduser()
    files = [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]
    size = sum(one.stat().st_size for one in files)
    if size > SMALL_BYTES and not large:
        return f"{key}: {size / GIB:.1f} GiB of weights are left alone, --weights reads them"
    return ""


def _ends(read: Read) -> CheckResult:
    chance = float(read.end.mean())
    words = f"the teacher ends with probability {chance:.3f} where a reference does"
    if chance >= LEAST_END:
        return CheckResult("ends", OK, words)
    return CheckResult(
        "ends", FAILED, f"{words}: its texts end otherwise, check teacher.chat, teacher.tokenizer and its end token."
    )


def _better(teacher: Read, student: Read) -> CheckResult:
    """References are likelier to the teacher; a difference within the noise is no failure."""
    lead = paired_difference(teacher.logp, student.logp, RESAMPLES, seed=0)
    words = f"references are {lead.mean:.2f} [{lead.low:.2f}, {lead.high:.2f}] nats a token likelier to the teacher "
    words += f"than to the student ({lead.n} rows)"
    if lead.high >= 0:
        return CheckResult("teacher", OK, words)
    return CheckResult(
        "teacher", FAILED, f"{words}: it has less to teach than the student knows, choose another teacher."
    )
