"""Tiny models in float64, every completion that they can write, and the mean of a training step over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from conftest import ARCHITECTURES, with_adapter
from exact import END, PROMPTS, Draws, Facts, Oracle
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from gkd_rl import types as masking
from gkd_rl.losses import policy_gradient as credit
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.objective import Objective, StepTotals
from gkd_rl.losses.policy_gradient import CreditSettings
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.value_head import Critic, ValueHead
from gkd_rl.training.step_models import StepModels
from gkd_rl.types import Credits, Example, LossTerms, PreUpdateTerms, PromptBatch, Rollout, Source, TokenTerms

EMBEDDINGS = 5  # of which a world samples the first few


@contextmanager
def doubled() -> Iterator[None]:
    """`.float()` and new tensors are float64: the package computes logits, norms and pre-update terms in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def tiny_model(kind: str, seed: int) -> HiddenStateModel:
    """A model whose weights come from uniform numbers alone, so that they are the same on every machine."""
    fields = {**ARCHITECTURES[kind]}
    config = AutoConfig.for_model(str(fields.pop("model_type")), vocab_size=EMBEDDINGS, pad_token_id=0, **fields)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, attn_implementation="sdpa").double().eval()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("T5LayerNorm", "LlamaRMSNorm"):  # they compute in float32, whatever comes in
                width = next(child.parameters()).shape[0]
                setattr(module, name, nn.RMSNorm(width, eps=1e-6, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, one in sorted(model.named_parameters()):
            if one.dim() > 1:
                one.copy_(torch.rand(one.shape, generator=generator, dtype=torch.float64) * 1.6 - 0.8)
    return HiddenStateModel(model)


def put_by_hand(adapted: AdaptedModel, plain: PreTrainedModel) -> None:
    """W + (alpha / r) B A in place of every adapted W of `plain`, in the graph of A and B."""
    for name, layer in adapted.model.named_modules():
        if isinstance(layer, LoraLayer):
            matrices: Any = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            inner, outer = matrices
            module: Any = plain.get_submodule(name)
            weight = module.weight.detach() + 1.5 * outer @ inner
            del module.weight
            module.weight = weight


def all_completions(words: int, longest: int) -> list[tuple[int, ...]]:
    """Every completion over `words` ids that ends with END or has `longest` tokens."""
    rows = itertools.product(range(words), repeat=longest)
    return sorted({row[: row.index(END) + 1] if END in row else row for row in rows})


class World:
    """A student, its teacher, its initial weights, and all completions of two prompts.

    One prompt is padded on the right, the other on the left. With LoRA the adapter alone has gradients, and the initial
    student is the student without it.
    """

    def __init__(self, kind: str, words: int = 3, longest: int = 3) -> None:
        base, _, adapter = kind.partition(" with ")
        student, self.teacher, initial = (tiny_model(base, seed) for seed in (1, 2, 3))
        models = {"student": student.model, "teacher": self.teacher.model, "initial": initial.model}
        if adapter:
            models["student"], models["initial"] = (tiny_model(base, 1).model for _ in range(2))
            student = with_adapter(student, seed=7)
            initial = InitialView(student)
            put_by_hand(student, models["student"])
        self.student, self.initial = student, initial
        for name in ("teacher", "initial"):
            models[name].requires_grad_(False)
        self.parameters = [one for one in self.student.parameters() if one.requires_grad]
        self.completions = all_completions(words, longest)
        self.words, self.size = words, len(self.completions)
        self.rollout = self._roll_out(longest)
        self.rewards_B = torch.rand(2 * self.size, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 4
        self._readings: dict[object, tuple[TokenTerms, PreUpdateTerms]] = {}
        with doubled():
            self.value_head = ValueHead(self.student.head().weight_VD.shape[1], 4, seed=5)
            nn.init.uniform_(self.value_head.outer.weight, -3, 3, generator=torch.Generator().manual_seed(6))
            self._hidden_BTD = self.student(self.rollout)
            self.oracle = Oracle(models, self.completions, words, longest)

    def _roll_out(self, longest: int) -> Rollout:
        """As `Sampler` does it: rows are padded with END, then masked."""
        ids_BT = torch.tensor([[*row, *[END] * (longest - len(row))] for row in self.completions] * len(PROMPTS))
        mask_BT, truncated_B = masking.completion_mask(ids_BT, [END])
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
        """`one` completion of either prompt; a `pair` for the first prompt; one for each of both `prompts`."""
        first, second = range(self.size), range(self.size, 2 * self.size)
        if kind == "one":
            return Draws(torch.arange(2 * self.size).unsqueeze(1), 1, 0.5)
        pairs = torch.tensor(list(itertools.product(first, first if kind == "pair" else second)))
        return Draws(pairs, 2 if kind == "pair" else 1, 1.0)

    def facts(self, draws: Draws, temperature: float = 1.0) -> Facts:
        """The exact side."""
        return Facts(self.oracle, draws, self.rewards_B, temperature)

    def pick(self, rows: Tensor) -> Rollout:
        """Some completions as the rollout of one step."""
        whole = self.rollout
        fields = ("prompt_index_B", "ids_BT", "mask_BT", "truncated_B")
        return replace(whole, texts=[""] * len(rows), **{name: getattr(whole, name)[rows] for name in fields})

    def read(
        self,
        divergence: TokenDivergence | None,
        temperature: float = 1.0,
        *,
        learned: bool = False,
        again: bool = False,
    ) -> tuple[TokenTerms, PreUpdateTerms]:
        """Every completion's terms with gradient, and the pre-update terms; `again` with a forward pass of its own."""
        if again:
            with doubled():
                return self._read(divergence, temperature, learned, self.student(self.rollout))
        asked = (divergence, temperature, learned)
        if asked not in self._readings:
            self._readings[asked] = self._read(*asked, self._hidden_BTD)
        return self._readings[asked]

    def _read(
        self, divergence: TokenDivergence | None, temperature: float, learned: bool, hidden_BTD: Tensor
    ) -> tuple[TokenTerms, PreUpdateTerms]:
        head = FusedHead(divergence, temperature, chunk_tokens=1000, vocabulary=self.words)
        models = StepModels(self.student, self.teacher, self.initial, head, credits=True, anchored=True)
        alpha = 0.0 if divergence is None else 1.0
        with doubled():
            critic = Critic(self.value_head, None) if learned else None
            whole = [torch.arange(self.rollout.n_sequences)]
            pre_update, taught = models.pre_update_pass(self.rollout, whole, rewarded=True, alpha=alpha, critic=critic)
            terms = models.token_terms(hidden_BTD, taught.get(0), self.rollout, alpha)
        return terms, pre_update

    def gradient(self, of: Tensor | None) -> Tensor:
        """With respect to all weights of the student, as one vector."""
        assert of is not None, "the step has no such term"
        found = torch.autograd.grad(of, self.parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(self.parameters, found, strict=True)]
        )


@dataclass(frozen=True)
class Recipe:
    """What a step is told.

    Attributes:
        objective: see the class.
        credit: see the class; per_prompt is that of the draws.
        divergence: None at alpha = 0.
        rewarded: the step has a reward.
        values: of the pre-update terms: none, of a random value head (any), or the true ones.
        temperature: of the sampling.
        second_epoch: the completions were sampled from the initial student, which is what the ratio is taken to.
    """

    objective: Objective
    credit: CreditSettings
    divergence: TokenDivergence | None = None
    rewarded: bool = True
    values: str = "none"
    temperature: float = 1.0
    second_epoch: bool = False


def batch_losses(
    place: World, recipe: Recipe, terms: TokenTerms, pre_update: PreUpdateTerms, rows: Tensor
) -> LossTerms:
    """One step on some completions, as `Trainer` takes it."""
    rollout = place.pick(rows)
    mask_BT = rollout.mask_BT
    known = PreUpdateTerms(**{name: None if value is None else value[rows] for name, value in vars(pre_update).items()})
    totals = StepTotals(len(rows), int(mask_BT.sum()))
    weights_BT = credit_BT = None
    if recipe.rewarded:
        weights_BT = credit.reward_weights(recipe.credit, place.rewards_B[rows], rollout, known)
        if recipe.credit.whiten:
            weights_BT = credit.whitened(weights_BT, mask_BT, credit.moments(weights_BT, mask_BT))
    if known.divergence_BT is not None:
        total = float(known.divergence_BT.sum())
        credit_BT = credit.divergence_weights(recipe.credit, rollout, known, (total, totals.tokens))
    divergence_BT = None if terms.divergence_BT is None else terms.divergence_BT[rows]
    part = TokenTerms(terms.logp_BT[rows], divergence_BT, terms.entropy_BT[rows])
    old_BT = known.initial_logp_BT if recipe.second_epoch else None
    return recipe.objective(part, mask_BT, Credits(weights_BT, credit_BT, old_BT, known.initial_logp_BT), totals)


def expected(place: World, draws: Draws, recipe: Recipe, *, again: bool = False) -> LossTerms:
    """E over all batches of the step's terms; no gradient flows through the probabilities."""
    recipe = replace(recipe, credit=replace(recipe.credit, per_prompt=draws.per_prompt))
    terms, pre_update = place.read(recipe.divergence, recipe.temperature, learned=recipe.values == "any", again=again)
    facts = place.facts(draws, recipe.temperature)
    if recipe.values == "true":
        pre_update = replace(pre_update, values_BT1=facts.true_values(facts.end_values(place.value_head)))
    chance = (facts.initial_chance if recipe.second_epoch else facts.chance).detach()
    losses = [batch_losses(place, recipe, terms, pre_update, rows) for rows in draws.indices]

    def mean(values: list[Tensor | None]) -> Tensor | None:
        present = [one for one in values if one is not None]
        return (chance * torch.stack(present)).sum() if present else None

    return LossTerms(
        mean([one.reward for one in losses]), mean([one.divergence for one in losses]), None, torch.zeros(())
    )
