"""Who reads a step's text: the student, the teacher that it imitates, and the student as it was before training.

One place knows which of the three a step needs: no teacher forward at alpha = 0, no initial student unless something is
measured against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceName
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.fused_loss import FusedLoss
from gkd_rl.losses.objective import TokenLoss
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.remote_teacher import EndpointTeacher, forward_outputs
from gkd_rl.models.value_head import Critic
from gkd_rl.training.cost import CostMeter, PassKind
from gkd_rl.training.teacher_data import TeacherOutputCache
from gkd_rl.types import PreUpdateTerms, Projection, Rollout, Source, TeacherOutput, TokenTerms


@dataclass
class StepModels:
    """The models of a step and the head that turns their hidden states into numbers.

    Attributes:
        student: is trained.
        teacher: is imitated; None without one, and for one behind a server.
        initial: the student before training, frozen; None where nothing is measured against it.
        head: with the divergence, or without one (alpha = 0 throughout).
        shuffled: the teacher reads another prompt of the step (a control).
        credits: the divergence has its score-function term, so that it is needed before the first update.
        anchored: the reward term has a sampled KL to the initial student.
        endpoint: the server of the teacher that is imitated.
        outputs: what the teacher said of fixed text, on disk.
        meter: counts the FLOPs of every pass.
    """

    student: HiddenStateModel
    teacher: HiddenStateModel | None
    initial: HiddenStateModel | None
    head: FusedHead
    shuffled: bool = False
    credits: bool = False
    anchored: bool = False
    endpoint: EndpointTeacher | None = None
    outputs: TeacherOutputCache | None = None
    meter: CostMeter = field(default_factory=CostMeter)

    def uses_teacher(self, alpha: float) -> bool:
        """The teacher reads the text of a step at this alpha."""
        divergence = self.head.divergence
        present = self.teacher is not None or self.endpoint is not None
        return alpha > 0 and present and divergence is not None and divergence.needs_teacher

    def teacher_forward(self, rollout: Rollout, rows: Tensor, micro: Rollout, alpha: float) -> TeacherOutput | None:
        """The teacher's states on `micro`, the step's completions `rows`; None where nothing reads them."""
        if not self.uses_teacher(alpha):
            return None
        if self.outputs is not None and self.teacher is not None and micro.source is not Source.student:
            return self._cached_teacher_forward(self.outputs, self.teacher, micro)
        text = rollout.with_shuffled_prompts().rows(rows) if self.shuffled else micro
        return self._frozen_forward("teacher", self.teacher or self.endpoint, text)

    @torch.no_grad()
    def _cached_teacher_forward(
        self, outputs: TeacherOutputCache, teacher: HiddenStateModel, micro: Rollout
    ) -> Projection:
        """The teacher's states on fixed text; those that are on disk cost no FLOPs."""

        def compute(missing: Rollout) -> Tensor:
            self.meter.add_flops("teacher", teacher, PassKind.forward, missing)
            return teacher(missing)

        hidden_BTD, hits = outputs(teacher, micro, compute)
        self.meter.add_cache_hits("teacher", hits, micro.n_sequences)
        return Projection(hidden_BTD, teacher.head())

    def token_terms(
        self, hidden_BTD: Tensor, teacher: TeacherOutput | None, micro: Rollout, alpha: float
    ) -> TokenTerms:
        """Per-token terms from the student's states, with gradient; no divergence at alpha = 0."""
        if torch.is_grad_enabled():
            self.meter.add_flops("student", self.student, PassKind.training, micro)
        return self._head(alpha)(Projection(hidden_BTD, self.student.head()), teacher, micro.ids_BT, micro.mask_BT)

    def student_loss(
        self, hidden_BTD: Tensor, teacher: TeacherOutput | None, micro: Rollout, alpha: float, loss: TokenLoss
    ) -> tuple[Tensor, TokenTerms]:
        """The weighted loss of the student's states, ready for backward, and the terms without gradient."""
        self.meter.add_flops("student", self.student, PassKind.training, micro)

        def weighted(logp_N: Tensor, divergence_N: Tensor | None, tokens: slice) -> Tensor:
            return loss(logp_N, divergence_N, tokens).loss(alpha)

        own = Projection(hidden_BTD, self.student.head())
        return FusedLoss(self._head(alpha), weighted)(own, teacher, micro.ids_BT, micro.mask_BT)

    def _head(self, alpha: float) -> FusedHead:
        """No divergence at alpha = 0."""
        return self.head if alpha > 0 else replace(self.head, divergence=None)

    def close(self) -> None:
        """Write what is to be kept."""
        if self.outputs is not None:
            self.outputs.shards.write()

    def kl_to_others(self, hidden_BTD: Tensor, teacher: TeacherOutput | None, micro: Rollout) -> dict[str, Tensor]:
        """KL(student || other) in nats at each position, for the initial student and the teacher; without gradient."""
        others = {"kl_to_initial": self._frozen_forward("initial", self.initial, micro), "kl_to_teacher": teacher}
        head = replace(self.head, divergence=TokenDivergence(DivergenceName.reverse_kl))
        own, found = Projection(hidden_BTD.detach(), self.student.head()), {}
        with torch.no_grad():
            for name, other in others.items():
                if other is not None:
                    found[name] = head(own, other, micro.ids_BT, micro.mask_BT).divergence_BT
        return found

    @torch.no_grad()
    def pre_update_pass(
        self, rollout: Rollout, micro_batches: Sequence[Tensor], *, rewarded: bool, alpha: float, critic: Critic | None
    ) -> tuple[PreUpdateTerms, dict[int, TeacherOutput | None]]:
        """What the models say of the whole step before its first update, a micro-batch at a time.

        Returns:
            The survey, and the teacher's states by micro-batch, to be read again.
        """
        needed = self._needed(rollout, rewarded, alpha, critic)
        teacher_outputs: dict[int, TeacherOutput | None] = {}
        if not needed:
            return PreUpdateTerms(), teacher_outputs
        shape, device = rollout.ids_BT.shape, rollout.ids_BT.device
        found = {name: torch.zeros(shape[0], shape[1] + (name == "values_BT1"), device=device) for name in needed}
        training = self.student.training
        self.student.eval()
        plain = replace(self.head, divergence=None)
        for number, rows in enumerate(micro_batches):
            micro = rollout.rows(rows)
            width = micro.ids_BT.shape[1]
            self.meter.add_flops("pre_update", self.student, PassKind.forward, micro)
            hidden_BTD = self.student(micro.extended() if critic is not None else micro)
            if "divergence_BT" in needed:
                teacher_outputs[number] = self.teacher_forward(rollout, rows, micro, alpha)
            terms = self.token_terms(
                hidden_BTD[:, :width], teacher_outputs.get(number), micro, alpha if "divergence_BT" in needed else 0
            )
            parts = {"logp_BT": terms.logp_BT, "divergence_BT": terms.divergence_BT}
            other = self._frozen_forward("initial", self.initial, micro) if "initial_logp_BT" in needed else None
            if isinstance(other, Projection):
                parts["initial_logp_BT"] = plain(other, None, micro.ids_BT, micro.mask_BT).logp_BT
            if critic is not None:
                parts["values_BT1"] = critic.values(hidden_BTD)
            for name in needed:
                part = parts[name]
                if part is not None:
                    found[name][rows, : part.shape[1]] = part
        self.student.train(training)
        return PreUpdateTerms(**found), teacher_outputs

    @torch.no_grad()
    def sampling_log_probs(self, rollout: Rollout, micro_batches: Sequence[Tensor]) -> Tensor:
        """Log-probabilities (B, T) of the student as it writes: in evaluation mode, with an adapter merged."""
        training, plain = self.student.training, replace(self.head, divergence=None)
        logp_BT = torch.zeros(rollout.ids_BT.shape, device=rollout.ids_BT.device)
        self.student.eval()
        with self.student.generating():
            for rows in micro_batches:
                micro = rollout.rows(rows)
                self.meter.add_flops("pre_update", self.student, PassKind.forward, micro)
                own = Projection(self.student(micro), self.student.head())
                logp_BT[rows, : micro.ids_BT.shape[1]] = plain(own, None, micro.ids_BT, micro.mask_BT).logp_BT
        self.student.train(training)
        return logp_BT

    def _needed(self, rollout: Rollout, rewarded: bool, alpha: float, critic: Critic | None) -> list[str]:
        """Fields of the survey that this step's weights are made from."""
        needed = []
        if rewarded and self.anchored:
            needed += ["logp_BT", "initial_logp_BT"]
        if rewarded and critic is not None:
            needed += ["values_BT1"]
        if self.credits and rollout.source is Source.student and self.uses_teacher(alpha):
            needed += ["divergence_BT"]
        return needed

    @torch.no_grad()
    def _frozen_forward(
        self, phase: str, model: HiddenStateModel | EndpointTeacher | None, micro: Rollout
    ) -> TeacherOutput | None:
        """What a frozen model says; the FLOPs of a server are unknown and not counted."""
        if model is None:
            return None
        if isinstance(model, HiddenStateModel):
            self.meter.add_flops(phase, model, PassKind.forward, micro)
        return forward_outputs(model, micro)
