"""The configuration: typed schema, named choices and ranges, validation, and the rules between settings.

Read `choices.py`, `model_schema.py`, `schema.py`, `validation.py`, the rules between settings (`rules.py`,
`model_rules.py`, `run_rules.py`), then `alpha_schedule.py`, `launch.py` (process environment and signals) and
`moved_targets.py` (code that settings of older runs name). Nothing here imports torch: a wrong setting is refused
before anything slow starts.
"""

from gkd_rl.config.alpha_schedule import Schedule
from gkd_rl.config.choices import AlphaSchedule
from gkd_rl.config.model_schema import (
    AdapterConfig,
    EndpointConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
    TeacherConfig,
    VllmConfig,
)
from gkd_rl.config.schema import (
    AlphaScheduleConfig,
    CheckpointConfig,
    Config,
    DivergenceConfig,
    EvaluationConfig,
    FixedDataConfig,
    GuardConfig,
    PolicyGradientConfig,
    RewardConfig,
    SampledKlConfig,
    ScaleConfig,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
    ValueConfig,
)

__all__ = [
    "AdapterConfig",
    "AlphaSchedule",
    "AlphaScheduleConfig",
    "CheckpointConfig",
    "Config",
    "DivergenceConfig",
    "EndpointConfig",
    "EvaluationConfig",
    "FixedDataConfig",
    "GuardConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PolicyGradientConfig",
    "RewardConfig",
    "RolloutConfig",
    "SampledKlConfig",
    "ScaleConfig",
    "Schedule",
    "SftConfig",
    "SweepConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainerConfig",
    "ValueConfig",
    "VllmConfig",
]
