"""The step and what it needs: Algorithm 1 of the paper with the objective of Eq. 5.

Read `trainer.py`, which is the whole step, `step_models.py` (the models' forward passes and the loss), then
`micro_batches.py`, `optimization.py`, `step_metrics.py` (metrics and the guard that checks them), `cost.py` (FLOPs and
seconds), `teacher_data.py` (cached samples and outputs of the teacher), `state.py` (exact resume) and `processes.py`
(several GPUs).
"""

from gkd_rl.training.micro_batches import MicroBatcher
from gkd_rl.training.step_metrics import Guard, GuardLimits
from gkd_rl.training.step_models import StepModels
from gkd_rl.training.teacher_data import TeacherSamples
from gkd_rl.training.trainer import StepRecord, StepSettings, Trainer

__all__ = [
    "Guard",
    "GuardLimits",
    "MicroBatcher",
    "StepModels",
    "StepRecord",
    "StepSettings",
    "TeacherSamples",
    "Trainer",
]
