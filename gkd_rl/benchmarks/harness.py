"""A saved model through lm-evaluation-harness."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers.utils import logging as transformers_logging

from gkd_rl.benchmarks.settings import BenchmarkConfig
from gkd_rl.benchmarks.suites import Suites
from gkd_rl.errors import BenchmarkError, ModelError
from gkd_rl.loading import load_model, load_tokenizer
from gkd_rl.model_files import base_of, read_config

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def load(config: BenchmarkConfig) -> HFLM:
    """The model as this project reads it (an adapter merged into its base), as the harness talks to it.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer ends every prompt.
    """
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that was loaded by somebody else
    path = config.model
    shape = read_config(path, None, "model")
    tokenizer = load_tokenizer(path, None, "model")
    if not shape.is_encoder_decoder and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:  # pyright: ignore
        raise ModelError(
            f"model={path}: its tokenizer puts {tokenizer.eos_token} behind every text, so that prompts would end "
            "before they are answered: save the model with a tokenizer that does not."
        )
    if config.chat and not tokenizer.chat_template:
        raise ModelError(f"chat=true: the tokenizer of model={path} has no chat template. Set chat=false.")
    model = load_model(path, None, _dtype(config, path), "model").to(_device(config))  # pyright: ignore
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size)  # pyright: ignore


def evaluate(lm: HFLM, suites: Suites, config: BenchmarkConfig) -> dict[str, Any]:
    """The harness's own results, samples included, of every suite."""
    seeds = {} if config.seed is None else dict.fromkeys(SEEDS, config.seed)
    through: Any = simple_evaluate  # its decorator hides what it takes
    results = through(
        model=lm,
        tasks=suites.tasks,
        task_manager=suites.manager,
        num_fewshot=config.num_fewshot,
        batch_size=config.batch_size,
        limit=config.limit,
        apply_chat_template=config.chat,
        confirm_run_unsafe_code=suites.runs_code,
        **seeds,
    )
    assert results is not None  # there is one process
    return dict(results)


def _dtype(config: BenchmarkConfig, path: str) -> torch.dtype:
    """The one asked for, else the one that the checkpoint was saved in."""
    if config.dtype is not None:
        return getattr(torch, config.dtype.value)
    saved = read_config(base_of(path, "model") or path, None, "model").dtype
    return saved if isinstance(saved, torch.dtype) else torch.float32


def _device(config: BenchmarkConfig) -> torch.device:
    """Raises BenchmarkError for a device that is not there."""
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BenchmarkError(f"device={name} is not there: device takes cpu, cuda or cuda:N.") from error
