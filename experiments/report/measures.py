"""What a metric is called, its unit and which way is better. A metric that is not named here gets its key as words."""

from __future__ import annotations

NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "self_bleu": "Self-BLEU",
    "reward": "reward",
    "reward/mean": "reward, mean of a step",
    "reward/std": "reward, standard deviation of a step",
    "judge_minus_reward": "judge − reward",
    "completion_tokens": "length of completions",
    "copy_rate": "copied bigrams",
    "copied_bigrams": "copied bigrams",
    "divergence": "divergence D",
    "cross_entropy": "cross-entropy of the text",
    "reverse_kl": "reverse KL to the teacher",
    "forward_kl": "forward KL to the teacher",
    "kl_to_teacher": "KL to the teacher",
    "kl_to_initial": "KL to the student before",
    "gradient/divergence_share": "divergence's share of the gradient, 0 to 1",
    "gradient/cosine": "cosine of the two gradients, −1 to 1",
    "gradient/divergence_norm": "gradient norm of the divergence",
    "gradient/reward_norm": "gradient norm of the reward",
    "alpha_effective": "alpha in effect",
    "student_data": "steps on student data",
}
UNITS = {
    "rouge1": "0 to 100",
    "rouge2": "0 to 100",
    "rougeL": "0 to 100",
    "bleu": "0 to 100",
    "chrf": "0 to 100",
    "self_bleu": "0 to 100",
    "completion_tokens": "tokens",
    "copy_rate": "share",
    "copied_bigrams": "share",
    "repetition": "share",
    "truncated_share": "share",
    "padding_share": "share",
    "clipped_share": "share",
    "student_data": "share",
    "entropy": "nats per token",
}
UNIT_OF_PREFIX = {"time/": "seconds", "flops/": "FLOPs", "tokens/": "tokens"}
NATS = ("divergence", "cross_entropy", "kl", "kl_to_teacher", "kl_to_initial", "forward_kl", "reverse_kl")
LOWER = (
    "divergence",
    "cross_entropy",
    "kl",
    "repetition",
    "truncated",
    "self_bleu",
    "copy_rate",
    "copied",
    "loss",
    "failed",
    "time/",
)


def measure(key: str) -> dict[str, str]:
    """Label, unit ("" where none is known) and the better direction of a metric."""
    where, base = ("sampled", key.removeprefix("sampled/")) if key.startswith("sampled/") else ("", key)
    label = NAMES.get(base) or base.replace("/", ": ").replace("_", " ")
    unit = UNITS.get(base) or next((unit for prefix, unit in UNIT_OF_PREFIX.items() if base.startswith(prefix)), "")
    if not unit and base in NATS:
        unit = "nats per token"
    lower = any(word in base for word in LOWER)
    return {"label": f"{label}, {where}" if where else label, "unit": unit, "better": "lower" if lower else "higher"}
