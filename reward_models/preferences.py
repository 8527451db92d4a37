"""Training a scalar reward model on preferences with trl.RewardTrainer (Bradley-Terry loss). Imports trl."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from reward_models.checkpoints import Checkpoint
from reward_models.classifier import TrainingSettings

Row = dict[str, Any]


def one_label(checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint with a new head of one number."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint.place, revision=checkpoint.revision, num_labels=1, ignore_mismatched_sizes=True
    )
    return model, AutoTokenizer.from_pretrained(checkpoint.place, revision=checkpoint.revision)


def train_on_preferences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: TrainingSettings,
    longest: int,
) -> None:
    """Train in place, and leave the model in evaluation mode.

    Args:
        model: one label.
        tokenizer: its tokenizer.
        rows: prompt, chosen, rejected; texts, put together as `reward_models.scalar` does with format=text.
        settings: of the optimiser.
        longest: tokens of prompt and completion; rows that are longer are left out by trl.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            output_dir=folder,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            max_length=longest,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            report_to=[],
            logging_steps=50,
        )
        columns = ("prompt", "chosen", "rejected")
        data = Dataset.from_list([{name: row[name] for name in columns} for row in rows])
        RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
    model.eval()
