"""The configuration: typed schema, named choices and ranges, validation, and the rules between settings.

Read in this order: `choices.py`, `model_schema.py`, `schema.py`, `validation.py`, then the rules by topic. Nothing here
imports torch: a wrong setting is refused before anything slow starts.
"""

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
    "SftConfig",
    "SweepConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainerConfig",
    "ValueConfig",
    "VllmConfig",
]
