"""Tiny models in float64, every completion that they can generate, and the expected loss of a training step.

`expected_losses` computes a step's loss for every batch of completions, with the package's own functions and in the
order of `Trainer.step`, and weighs it with the probability of the batch. tests/losses/test_gradients.py compares the
gradient with the exact objectives of tests/exact.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from conftest import ARCHITECTURES, with_adapter
from exact import END, PROMPTS, Draws, Expectations, Oracle
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from gkd_rl import types
from gkd_rl.losses import policy_gradient
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.objective import Objective, StepTotals
from gkd_rl.losses.policy_gradient import CreditSettings
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.value_head import Critic, ValueHead
from gkd_rl.training.step_models import StepModels
from gkd_rl.types import Credits, Example, LossTerms, PreUpdateTerms, PromptBatch, Rollout, Source, TokenTerms

EMBEDDINGS = 5  # rows of the embedding; only the first `vocabulary` of them are sampled


@contextmanager
def in_float64() -> Iterator[None]:
    """`.float()` and new tensors are float64: the package computes logits, norms and pre-update terms in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def tiny_model(kind: str, seed: int) -> HiddenStateModel:
    """A model whose weights are uniform random numbers, so that they are the same on every machine."""
    fields = {**ARCHITECTURES[kind]}
    config = AutoConfig.for_model(str(fields.pop("model_type")), vocab_size=EMBEDDINGS, pad_token_id=0, **fields)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, attn_implementation="sdpa").double().eval()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("T5LayerNorm", "LlamaRMSNorm"):  # these compute in float32 for any input
                width = next(child.parameters()).shape[0]
                setattr(module, name, nn.RMSNorm(width, eps=1e-6, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, one in sorted(model.named_parameters()):
            if one.dim() > 1:
                one.copy_(torch.rand(one.shape, generator=generator, dtype=torch.float64) * 1.6 - 0.8)
    return HiddenStateModel(model)


def merge_by_hand(adapted: AdaptedModel, plain: PreTrainedModel) -> None:
    """Replace every adapted W of `plain` by W + (alpha / r) B A, with gradients to A and B."""
    for name, layer in adapted.model.named_modules():
        if isinstance(layer, LoraLayer):
            matrices: Any = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            inner, outer = matrices
            module: Any = plain.get_submodule(name)
            weight = module.weight.detach() + 1.5 * outer @ inner
            del module.weight
            module.weight = weight


def all_completions(vocabulary: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Every completion over `vocabulary` ids that ends with END or has `max_tokens` tokens."""
    rows = itertools.product(range(vocabulary), repeat=max_tokens)
    return sorted({row[: row.index(END) + 1] if END in row else row for row in rows})


class CompletionSpace:
    """A student, its teacher, the initial student, and all completions of two prompts as one rollout.

    One prompt is padded on the right, the other on the left. With LoRA only the adapter has gradients, and the initial
    student is the student without its adapter.
    """

    def __init__(self, kind: str, vocabulary: int = 3, max_tokens: int = 3) -> None:
        base, _, adapter = kind.partition(" with ")
        student, self.teacher, initial = (tiny_model(base, seed) for seed in (1, 2, 3))
        models = {"student": student.model, "teacher": self.teacher.model, "initial": initial.model}
        if adapter:
            models["student"], models["initial"] = (tiny_model(base, 1).model for _ in range(2))
            student = with_adapter(student, seed=7)
            initial = InitialView(student)
            merge_by_hand(student, models["student"])
        self.student, self.initial = student, initial
        for name in ("teacher", "initial"):
            models[name].requires_grad_(False)
        self.parameters = [one for one in self.student.parameters() if one.requires_grad]
        self.completions = all_completions(vocabulary, max_tokens)
        self.vocabulary, self.size = vocabulary, len(self.completions)
        self.rollout = self._all_completions_rollout(max_tokens)
        self.rewards_B = torch.rand(2 * self.size, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 4
        self._terms: dict[object, tuple[TokenTerms, PreUpdateTerms]] = {}
        with in_float64():
            self.value_head = ValueHead(self.student.head().weight_VD.shape[1], 4, seed=5)
            nn.init.uniform_(self.value_head.outer.weight, -3, 3, generator=torch.Generator().manual_seed(6))
            self._hidden_BTD = self.student(self.rollout)
            self.oracle = Oracle(models, self.completions, vocabulary, max_tokens)

    def _all_completions_rollout(self, max_tokens: int) -> Rollout:
        """As `Sampler` does: rows are padded with END, then masked."""
        ids_BT = torch.tensor([[*row, *[END] * (max_tokens - len(row))] for row in self.completions] * len(PROMPTS))
        mask_BT, truncated_B = types.completion_mask(ids_BT, [END])
        right, left = PROMPTS
        prompts_PS = torch.tensor([[*right, 0, 0], [0] * (len(right) + 2 - len(left)) + [*left]])
        prompts = PromptBatch([Example("", "", {})] * len(PROMPTS), prompts_PS, prompts_PS != 0)
        return Rollout(
            prompts=prompts,
            prompt_index_B=torch.arange(len(PROMPTS)).repeat_interleave(self.size),
            ids_BT=ids_BT.masked_fill(~mask_BT, 0),
            mask_BT=mask_BT,
            truncated_B=truncated_B,
            texts=[""] * len(ids_BT),
            source=Source.student,
        )

    def draws(self, kind: str) -> Draws:
        """All batches of a kind.

        Args:
            kind: `one` completion of either prompt; a `pair` of the first prompt; one for each of both `prompts`.
        """
        first, second = range(self.size), range(self.size, 2 * self.size)
        if kind == "one":
            return Draws(torch.arange(2 * self.size).unsqueeze(1), 1, 0.5)
        pairs = torch.tensor(list(itertools.product(first, first if kind == "pair" else second)))
        return Draws(pairs, 2 if kind == "pair" else 1, 1.0)

    def expectations(self, draws: Draws, temperature: float = 1.0) -> Expectations:
        """The exact objectives over these batches."""
        return Expectations(self.oracle, draws, self.rewards_B, temperature)

    def rollout_of(self, rows: Tensor) -> Rollout:
        """The rollout of one step: some of all completions."""
        whole = self.rollout
        fields = ("prompt_index_B", "ids_BT", "mask_BT", "truncated_B")
        return replace(whole, texts=[""] * len(rows), **{name: getattr(whole, name)[rows] for name in fields})

    def terms_of(
        self,
        divergence: TokenDivergence | None,
        temperature: float = 1.0,
        *,
        learned: bool = False,
        fresh_forward: bool = False,
    ) -> tuple[TokenTerms, PreUpdateTerms]:
        """Terms of all completions with gradient, and the pre-update terms.

        Args:
            divergence: None at alpha = 0.
            temperature: of the sampling.
            learned: values of the value head are needed.
            fresh_forward: compute the student's hidden states again, for a graph of its own.
        """
        if fresh_forward:
            with in_float64():
                return self._forward(divergence, temperature, learned, self.student(self.rollout))
        key = (divergence, temperature, learned)
        if key not in self._terms:
            self._terms[key] = self._forward(*key, self._hidden_BTD)
        return self._terms[key]

    def _forward(
        self, divergence: TokenDivergence | None, temperature: float, learned: bool, hidden_BTD: Tensor
    ) -> tuple[TokenTerms, PreUpdateTerms]:
        head = FusedHead(divergence, temperature, chunk_tokens=1000, vocabulary=self.vocabulary)
        models = StepModels(self.student, self.teacher, self.initial, head, kd_credit=True, sampled_kl=True)
        alpha = 0.0 if divergence is None else 1.0
        with in_float64():
            critic = Critic(self.value_head, None) if learned else None
            whole = [torch.arange(self.rollout.n_sequences)]
            pre_update, teacher_outputs = models.pre_update_pass(
                self.rollout, whole, rewarded=True, alpha=alpha, critic=critic
            )
            terms = models.token_terms(hidden_BTD, teacher_outputs.get(0), self.rollout, alpha)
        return terms, pre_update

    def gradient(self, loss: Tensor | None) -> Tensor:
        """The gradient by all trained weights of the student, as one vector."""
        assert loss is not None, "the step has no such term"
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(self.parameters, found, strict=True)]
        )


@dataclass(frozen=True)
class StepRecipe:
    """The settings of a step.

    Attributes:
        objective: see `Objective`.
        credit: see `CreditSettings`; per_prompt is replaced by that of the draws.
        divergence: None at alpha = 0.
        rewarded: the step has a reward.
        values: V in the pre-update terms: none, of a random value head (any), or the true value function.
        temperature: of the sampling.
        second_epoch: the completions were sampled from the initial student, the old policy of the ratio.
    """

    objective: Objective
    credit: CreditSettings
    divergence: TokenDivergence | None = None
    rewarded: bool = True
    values: str = "none"
    temperature: float = 1.0
    second_epoch: bool = False


def batch_losses(
    space: CompletionSpace, recipe: StepRecipe, terms: TokenTerms, pre_update: PreUpdateTerms, rows: Tensor
) -> LossTerms:
    """The loss terms of one step on one batch, in the order of `Trainer.step`."""
    rollout = space.rollout_of(rows)
    mask_BT = rollout.mask_BT
    known = PreUpdateTerms(**{name: None if value is None else value[rows] for name, value in vars(pre_update).items()})
    totals = StepTotals(len(rows), int(mask_BT.sum()))
    weights_BT = credit_BT = None
    if recipe.rewarded:
        weights_BT = policy_gradient.token_advantages(recipe.credit, space.rewards_B[rows], rollout, known)
        if recipe.credit.whiten:
            weights_BT = policy_gradient.whiten(weights_BT, mask_BT, policy_gradient.moments(weights_BT, mask_BT))
    if known.divergence_BT is not None:
        total = float(known.divergence_BT.sum())
        credit_BT = policy_gradient.token_divergence_credit(recipe.credit, rollout, known, (total, totals.tokens))
    divergence_BT = None if terms.divergence_BT is None else terms.divergence_BT[rows]
    part = TokenTerms(terms.logp_BT[rows], divergence_BT, terms.entropy_BT[rows])
    old_BT = known.initial_logp_BT if recipe.second_epoch else None
    return recipe.objective(part, mask_BT, Credits(weights_BT, credit_BT, old_BT, known.initial_logp_BT), totals)


def expected_losses(
    space: CompletionSpace, draws: Draws, recipe: StepRecipe, *, fresh_forward: bool = False
) -> LossTerms:
    """E over all batches of the step's loss terms; no gradient flows through the probabilities."""
    recipe = replace(recipe, credit=replace(recipe.credit, per_prompt=draws.per_prompt))
    terms, pre_update = space.terms_of(
        recipe.divergence, recipe.temperature, learned=recipe.values == "any", fresh_forward=fresh_forward
    )
    expectations = space.expectations(draws, recipe.temperature)
    if recipe.values == "true":
        pre_update = replace(pre_update, values_BT1=expectations.true_values(expectations.end_values(space.value_head)))
    probability = (expectations.initial_probability if recipe.second_epoch else expectations.probability).detach()
    losses = [batch_losses(space, recipe, terms, pre_update, rows) for rows in draws.indices]

    def mean(values: list[Tensor | None]) -> Tensor | None:
        present = [one for one in values if one is not None]
        return (probability * torch.stack(present)).sum() if present else None

    return LossTerms(
        mean([one.reward for one in losses]), mean([one.divergence for one in losses]), None, torch.zeros(())
    )
