"""The models of a step: forward passes of student, teacher and initial student, and the student loss.

The methods in the order of `Trainer.step`: the pre-update pass over the whole step; for each micro-batch the teacher
forward pass and the student loss, which computes the per-token terms of paper Eq. 5 and their gradient
(`losses/fused_loss.py`); at diagnosed steps the KLs to teacher and initial student.

Only what a step needs is computed: no teacher forward pass at alpha = 0, and no forward pass of the initial student
without a KL to it.
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

# The teacher's outputs by index of the micro-batch; None where the step needs no teacher.
TeacherOutputs = dict[int, TeacherOutput | None]


@dataclass
class StepModels:
    """The models of a step, and the head that computes per-token terms from their hidden states.

    Attributes:
        student: p_S, the model that is trained.
        teacher: p_T; None without a teacher, or with a remote one.
        initial: the student before training, frozen; None where no KL to it is needed.
        head: with the configured divergence, or None for alpha = 0 throughout.
        shuffled_prompts: the teacher is given another prompt of the step (control experiment).
        kd_credit: L_D has its score-function term, which needs the divergence before the first update.
        sampled_kl: the reward term has a sampled KL to the initial student.
        remote_teacher: p_T behind a server, or None.
        output_cache: the teacher's hidden states on fixed completions, on disk; or None.
        cost_meter: counts the FLOPs of every forward pass.
    """

    student: HiddenStateModel
    teacher: HiddenStateModel | None
    initial: HiddenStateModel | None
    head: FusedHead
    shuffled_prompts: bool = False
    kd_credit: bool = False
    sampled_kl: bool = False
    remote_teacher: EndpointTeacher | None = None
    output_cache: TeacherOutputCache | None = None
    cost_meter: CostMeter = field(default_factory=CostMeter)

    def uses_teacher(self, alpha: float) -> bool:
        """Whether a step with this alpha needs the teacher."""
        divergence = self.head.divergence
        present = self.teacher is not None or self.remote_teacher is not None
        return alpha > 0 and present and divergence is not None and divergence.needs_teacher

    # --- before the first update -------------------------------------------------------------------------------------

    @torch.no_grad()
    def pre_update_pass(
        self, rollout: Rollout, micro_batches: Sequence[Tensor], *, rewarded: bool, alpha: float, critic: Critic | None
    ) -> tuple[PreUpdateTerms, TeacherOutputs]:
        """Forward passes over the whole step before its first update, in evaluation mode and without gradient.

        Args:
            rollout: the step's completions.
            micro_batches: indices of the completions of each micro-batch.
            rewarded: the step has a reward term.
            alpha: of the step.
            critic: the value head, or None.

        Returns:
            The terms that advantages and credits need, and the teacher's outputs as far as they were computed.
        """
        needed = self._needed_terms(rollout, rewarded, alpha, critic)
        teacher_outputs: TeacherOutputs = {}
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
            self.cost_meter.add_flops("pre_update", self.student, PassKind.forward, micro)
            hidden_BTD = self.student(micro.extended() if critic is not None else micro)
            if "divergence_BT" in needed:
                teacher_outputs[number] = self.teacher_forward(rollout, rows, micro, alpha)
            terms = self.token_terms(
                hidden_BTD[:, :width], teacher_outputs.get(number), micro, alpha if "divergence_BT" in needed else 0
            )
            parts = {"logp_BT": terms.logp_BT, "divergence_BT": terms.divergence_BT}
            initial = self._frozen_forward("initial", self.initial, micro) if "initial_logp_BT" in needed else None
            if isinstance(initial, Projection):
                parts["initial_logp_BT"] = plain(initial, None, micro.ids_BT, micro.mask_BT).logp_BT
            if critic is not None:
                parts["values_BT1"] = critic.values(hidden_BTD)
            for name in needed:
                part = parts[name]
                if part is not None:
                    found[name][rows, : part.shape[1]] = part
        self.student.train(training)
        return PreUpdateTerms(**found), teacher_outputs

    def _needed_terms(self, rollout: Rollout, rewarded: bool, alpha: float, critic: Critic | None) -> list[str]:
        """Fields of `PreUpdateTerms` that the step's advantages and credits are computed from."""
        needed = []
        if rewarded and self.sampled_kl:
            needed += ["logp_BT", "initial_logp_BT"]
        if rewarded and critic is not None:
            needed += ["values_BT1"]
        if self.kd_credit and rollout.source is Source.student and self.uses_teacher(alpha):
            needed += ["divergence_BT"]
        return needed

    # --- one micro-batch ---------------------------------------------------------------------------------------------

    def teacher_forward(self, rollout: Rollout, rows: Tensor, micro: Rollout, alpha: float) -> TeacherOutput | None:
        """The teacher's output on a micro-batch, without gradient; None where the step needs no teacher.

        Args:
            rollout: the whole step, whose other prompts `shuffled_prompts` uses.
            rows: indices of the micro-batch's completions.
            micro: the micro-batch, `rollout.rows(rows)`.
            alpha: of the step.
        """
        if not self.uses_teacher(alpha):
            return None
        if self.output_cache is not None and self.teacher is not None and micro.source is not Source.student:
            return self._cached_teacher_forward(self.output_cache, self.teacher, micro)
        conditioned = rollout.with_shuffled_prompts().rows(rows) if self.shuffled_prompts else micro
        return self._frozen_forward("teacher", self.teacher or self.remote_teacher, conditioned)

    @torch.no_grad()
    def _cached_teacher_forward(
        self, output_cache: TeacherOutputCache, teacher: HiddenStateModel, micro: Rollout
    ) -> Projection:
        """The same on fixed completions; stored hidden states cost no FLOPs."""

        def compute(missing: Rollout) -> Tensor:
            self.cost_meter.add_flops("teacher", teacher, PassKind.forward, missing)
            return teacher(missing)

        hidden_BTD, hits = output_cache(teacher, micro, compute)
        self.cost_meter.add_cache_hits("teacher", hits, micro.n_sequences)
        return Projection(hidden_BTD, teacher.head())

    def student_loss(
        self, hidden_BTD: Tensor, teacher: TeacherOutput | None, micro: Rollout, alpha: float, loss: TokenLoss
    ) -> tuple[Tensor, TokenTerms]:
        """(1 - alpha) L_r + alpha L_D of a micro-batch (minus paper Eq. 5), and its per-token terms without gradient.

        Args:
            hidden_BTD: of the student, with gradient.
            teacher: output of `teacher_forward`.
            micro: the micro-batch.
            alpha: of the step.
            loss: the two terms as functions of log-probabilities and divergences.

        Returns:
            A scalar whose backward pass can run once, and the terms.
        """
        self.cost_meter.add_flops("student", self.student, PassKind.training, micro)

        def weighted(logp_N: Tensor, divergence_N: Tensor | None, tokens: slice) -> Tensor:
            return loss(logp_N, divergence_N, tokens).loss(alpha)

        own = Projection(hidden_BTD, self.student.head())
        return FusedLoss(self._head(alpha), weighted)(own, teacher, micro.ids_BT, micro.mask_BT)

    def token_terms(
        self, hidden_BTD: Tensor, teacher: TeacherOutput | None, micro: Rollout, alpha: float
    ) -> TokenTerms:
        """Per-token terms for autograd, which separate gradients of L_r and L_D need; arguments as `student_loss`."""
        if torch.is_grad_enabled():
            self.cost_meter.add_flops("student", self.student, PassKind.training, micro)
        return self._head(alpha)(Projection(hidden_BTD, self.student.head()), teacher, micro.ids_BT, micro.mask_BT)

    def _head(self, alpha: float) -> FusedHead:
        """The head, without a divergence at alpha = 0."""
        return self.head if alpha > 0 else replace(self.head, divergence=None)

    # --- diagnostics -------------------------------------------------------------------------------------------------

    def kl_to_others(self, hidden_BTD: Tensor, teacher: TeacherOutput | None, micro: Rollout) -> dict[str, Tensor]:
        """KL(student || other) in nats at each position, (B, T), without gradient, to initial student and teacher."""
        others = {"kl_to_initial": self._frozen_forward("initial", self.initial, micro), "kl_to_teacher": teacher}
        head = replace(self.head, divergence=TokenDivergence(DivergenceName.reverse_kl))
        own, found = Projection(hidden_BTD.detach(), self.student.head()), {}
        with torch.no_grad():
            for name, other in others.items():
                if other is not None:
                    found[name] = head(own, other, micro.ids_BT, micro.mask_BT).divergence_BT
        return found

    @torch.no_grad()
    def sampling_log_probs(self, rollout: Rollout, micro_batches: Sequence[Tensor]) -> Tensor:
        """Log-probabilities (B, T) as in sampling: in evaluation mode, with an adapter merged."""
        training, plain = self.student.training, replace(self.head, divergence=None)
        logp_BT = torch.zeros(rollout.ids_BT.shape, device=rollout.ids_BT.device)
        self.student.eval()
        with self.student.generating():
            for rows in micro_batches:
                micro = rollout.rows(rows)
                self.cost_meter.add_flops("pre_update", self.student, PassKind.forward, micro)
                own = Projection(self.student(micro), self.student.head())
                logp_BT[rows, : micro.ids_BT.shape[1]] = plain(own, None, micro.ids_BT, micro.mask_BT).logp_BT
        self.student.train(training)
        return logp_BT

    @torch.no_grad()
    def _frozen_forward(
        self, phase: str, model: HiddenStateModel | EndpointTeacher | None, micro: Rollout
    ) -> TeacherOutput | None:
        """Output of a frozen model; the FLOPs of a remote one are unknown and not counted."""
        if model is None:
            return None
        if isinstance(model, HiddenStateModel):
            self.cost_meter.add_flops(phase, model, PassKind.forward, micro)
        return forward_outputs(model, micro)

    def close(self) -> None:
        """Write the buffered outputs of the teacher to the cache."""
        if self.output_cache is not None:
            self.output_cache.shards.write()
