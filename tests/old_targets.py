"""Names of the classes and functions that conf/ named before they moved, and settings as such a run stored them."""

from __future__ import annotations

import re

from gkd_rl.config.moved_targets import moved_target

OLD_TARGETS = (
    "gkd_rl.embedded.checker.NewsChecker",
    "gkd_rl.embedded.claims.claim_rows",
    "gkd_rl.embedded.tokenizer.pair_tokenizer",
    "gkd_rl.embedded.walk.WalkChecker",
    "gkd_rl.sweep_folder.SweepRecord",
    "gkd_rl.tasks.gsm8k.Gsm8k",
    "gkd_rl.tasks.instruct.Instruct",
    "gkd_rl.tasks.walk.Walk",
    "gkd_rl.tasks.wmt.Wmt",
    "gkd_rl.tasks.xsum.Xsum",
    "reward_models.accepted.Accepted",
    "reward_models.by_kind.ByKind",
    "reward_models.checked.Checked",
    "reward_models.checkpoints.Checkpoint",
    "reward_models.classifier.NewClassifier",
    "reward_models.classifier.TrainingSettings",
    "reward_models.code_execution.CodeExecution",
    "reward_models.entailment.Entailment",
    "reward_models.exact_match.ExactMatch",
    "reward_models.judge.ChatServer",
    "reward_models.judge.Judge",
    "reward_models.maths.Maths",
    "reward_models.overlap.Overlap",
    "reward_models.rouge.Rouge",
    "reward_models.scalar.ScalarReward",
    "reward_models.shaping.LengthPenalty",
    "reward_models.shaping.RepetitionPenalty",
    "reward_models.trained_entailment.TrainedEntailment",
    "reward_models.verifiable.Verifiable",
)


def with_old_targets(text: str) -> str:
    """The same text with the old name of every target in it."""
    old = {moved_target(name): name for name in OLD_TARGETS}
    return re.sub(r"[\w.]+", lambda match: old.get(match[0], match[0]), text)
