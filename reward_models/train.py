"""Train a reward model: `python -m reward_models.train reward=entailment|scalar files=[rows.jsonl] out=FOLDER`.

- `reward=entailment`: a classifier of pairs (`reward_models.models.classifier`).
- `reward=scalar`: a scalar reward model on preferences, with the Bradley-Terry loss of trl.RewardTrainer.

Further arguments are KEY=VALUE over the settings of conf/reward_training/REWARD.yaml. The command writes the model to
OUT and a quality report on held-out documents to OUT.json, and prints the report.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from reward_models.models.checkpoint import Checkpoint, device_of, longest_input, save
from reward_models.models.classifier import NewClassifier, TrainingSettings, from_checkpoint, train_classifier
from reward_models.models.entailment import Entailment
from reward_models.models.scalar import ScalarReward
from reward_models.models.training_rows import MEASURES, Row, checked, quality_report, read_files, split
from reward_models.score import reward_files

COLUMNS = {"entailment": ("premise", "hypothesis", "label"), "scalar": ("prompt", "chosen", "rejected")}
Progress = Callable[[int, float], None]  # step, loss


def settings_of(arguments: Sequence[str]) -> tuple[str, DictConfig]:
    """The reward's name and its settings: the YAML file, with `key=value` arguments over it.

    Raises:
        ValueError: `reward` or `out` is missing, or keys are unknown; the message names all unknown keys.
    """
    given = {key: value for key, _, value in (one.partition("=") for one in arguments)}
    reward = given.pop("reward", "")
    if reward not in COLUMNS:
        raise ValueError(f"reward={reward}: takes {' or '.join(COLUMNS)}, as in `reward_models.train reward=scalar`.")
    config = OmegaConf.load(reward_files().with_name("reward_training") / f"{reward}.yaml")
    assert isinstance(config, DictConfig)
    unknown = [key for key in given if not _known(config, key)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown. reward={reward} takes {', '.join(_keys(config))}.")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}" for key, value in given.items()]))
    except OmegaConfBaseException as error:
        raise ValueError(f"{', '.join(given)}: {str(error).partition(chr(10))[0]}.") from error
    assert isinstance(merged, DictConfig)
    if not merged.out:
        raise ValueError("out: set it to the folder that the model is written to, as in out=runs/nli.")
    return reward, merged


def _keys(node: DictConfig, above: str = "") -> list[str]:
    """Dotted names of all settings."""
    keys: list[str] = []
    for name, value in node.items():
        keys += _keys(value, f"{above}{name}.") if isinstance(value, DictConfig) else [f"{above}{name}"]
    return keys


def _known(config: DictConfig, key: str) -> bool:
    """Whether the file has this key, or has null for a key above it, which then takes any mapping."""
    allowed = {name: OmegaConf.select(config, name) for name in _keys(config)}
    return key in allowed or any(value is None and key.startswith(f"{name}.") for name, value in allowed.items())


def rows_of(config: DictConfig, columns: Sequence[str]) -> list[Row]:
    """Rows of the files or of the generator, checked.

    Raises:
        ValueError: both or neither of `files` and `rows` are set, or a row lacks a column.
    """
    if (config.files is None) == (config.rows is None):
        raise ValueError("files and rows: set one of them, files=[rows.jsonl] or rows._target_=my_package.my_rows.")
    return checked(_build(config.rows, "rows") if config.files is None else read_files(config.files), columns)


def _build(node: Any, key: str) -> Any:
    """The object that a node with `_target_` describes.

    Raises:
        ValueError: it cannot be built; `key` is the setting.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{key}: {error.__cause__ or error}") from error


def train_entailment(config: DictConfig, rows: list[Row], progress: Progress) -> dict[str, Any]:
    """Train and save a classifier of pairs; its quality report on held-out documents."""
    settings = TrainingSettings(**config.training)
    train, held_out = split(rows, lambda row: row["premise"], config.held_out, settings.seed)
    new: NewClassifier | None = _build(config.new, "new")
    model, tokenizer = new.build(settings.seed) if new else from_checkpoint(Checkpoint(**config.checkpoint))
    model.to(device_of(config.checkpoint.device))  # pyright: ignore[reportArgumentType]
    longest = longest_input(model, tokenizer, config.checkpoint.max_tokens)
    train_classifier(model, tokenizer, train, settings, longest, progress)
    save(model, tokenizer, config.out)
    reward = Entailment(Checkpoint(**{**config.checkpoint, "path": config.out, "revision": None}))
    premises, hypotheses = ([row[name] for row in held_out] for name in ("premise", "hypothesis"))
    return quality_report([row["label"] for row in held_out], reward(premises, hypotheses), premises)


def train_scalar(config: DictConfig, rows: list[Row], _: Progress) -> dict[str, Any]:
    """Train and save a scalar reward model; its quality report on held-out prompts.

    Each pair is measured in both orders: P(first is better) = sigmoid(difference of rewards) (Bradley & Terry 1952).
    """
    settings, checkpoint = TrainingSettings(**config.training), Checkpoint(**config.checkpoint)
    train, held_out = split(rows, lambda row: row["prompt"], config.held_out, settings.seed)
    model, tokenizer = with_scalar_head(checkpoint)
    model.to(device_of(config.checkpoint.device))  # pyright: ignore[reportArgumentType]
    longest = longest_input(model, tokenizer, config.checkpoint.max_tokens)
    train_on_preferences(model, tokenizer, train, settings, longest)
    save(model, tokenizer, config.out)
    reward = ScalarReward(Checkpoint(**{**config.checkpoint, "path": config.out, "revision": None}), "text")
    prompts, chosen, rejected = ([row[name] for row in held_out] for name in COLUMNS["scalar"])
    gaps = [a - b for a, b in zip(reward(prompts, chosen), reward(prompts, rejected), strict=True)]
    probabilities = [0.5 + math.tanh(gap / 2) / 2 for gap in (*gaps, *(-gap for gap in gaps))]
    return quality_report([1] * len(gaps) + [0] * len(gaps), probabilities, prompts * 2)


def with_scalar_head(checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint, with a new head of one output if its own has another shape."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint.source, revision=checkpoint.revision, num_labels=1, ignore_mismatched_sizes=True
    )
    return model, AutoTokenizer.from_pretrained(checkpoint.source, revision=checkpoint.revision)


def train_on_preferences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: TrainingSettings,
    longest: int,
) -> None:
    """Train in place with the Bradley-Terry loss; the model is in evaluation mode afterwards.

    Args:
        model: a classifier with one output.
        tokenizer: its tokenizer.
        rows: prompt, chosen, rejected; texts, encoded as `reward_models.models.scalar` does with format=text.
        settings: of the optimisation.
        longest: tokens of prompt and completion; trl omits rows that are longer.
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
        data = Dataset.from_list([{name: row[name] for name in COLUMNS["scalar"]} for row in rows])
        RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
    model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one reward model; returns the exit status."""
    try:
        reward, config = settings_of(sys.argv[1:] if arguments is None else arguments)
        rows = rows_of(config, COLUMNS[reward])
        found = (train_entailment if reward == "entailment" else train_scalar)(config, rows, _print_progress)
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    folder = Path(config.out)
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{folder}: {found['rows']} held-out rows of {found['documents']} documents")  # noqa: T201
    for name in MEASURES:
        print(f"{name:<28}{found[name]['mean']:.4f} [{found[name]['low']:.4f}, {found[name]['high']:.4f}]")  # noqa: T201
    return 0


def _print_progress(step: int, loss: float) -> None:
    if step % 50 == 0:
        print(f"step {step}: loss {loss:.3f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
