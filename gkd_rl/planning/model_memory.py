"""How much memory a model takes in training, in a forward pass and in generation, before it is loaded.

Nothing here is a formula of an architecture: the model is built of fake tensors, which have shapes and no data, the
code that trains it runs, and what is alive is counted (`planning/memory_plan.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from gkd_rl.config.choices import OptimizerName, Quantization
from gkd_rl.generation.static_decoding import StaticDecoding
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.fused_loss import FusedLoss
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.decoding import ROOM
from gkd_rl.models.placement import quantizable
from gkd_rl.planning.memory_plan import Lengths, LiveMemory
from gkd_rl.training.optimization import recomputed_layers
from gkd_rl.types import Projection, PromptBatch, Rollout, Source

PACKED = {Quantization.int8: 1.0, Quantization.nf4: 0.5 + 4 / 64}  # bytes a weight; NF4 has a float32 for 64 of them


def without_data(model: HiddenStateModel) -> HiddenStateModel:
    """A model built on the meta device with fake weights on the CPU, in place; called in a `FakeTensorMode`."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            data = torch.empty(tensor.shape, dtype=tensor.dtype)
            made[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
        return made[id(tensor)]

    for module in model.modules():
        stored: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in stored:
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else fake(tensor)
    return model


def longest_text(model: HiddenStateModel, lengths: Lengths, sequences: int, per_prompt: int) -> Any:
    """Completions of the longest kind as the model's input, without values; in a `FakeTensorMode` without data.

    How a text is laid out depends on its masks, which therefore have data for a moment.
    """
    with unset_fake_temporarily():
        index_B = torch.arange(sequences) // per_prompt
        ids_PS = torch.zeros(int(index_B[-1]) + 1, lengths.prompt, dtype=torch.long)
        ids_BT = torch.zeros(sequences, lengths.completion, dtype=torch.long)
        whole = torch.ones_like(ids_BT, dtype=torch.bool)
        prompts = PromptBatch([], ids_PS, torch.ones_like(ids_PS, dtype=torch.bool))
        rollout = Rollout(prompts, index_B, ids_BT, whole, ~whole[:, 0], [""] * sequences, Source.student)
        text = model.architecture.lay_out(model.model, rollout)
    return _without_values(text)


def _without_values(text: Any) -> Any:
    """The same shapes, in whatever mode is on."""
    if isinstance(text, Tensor):
        return torch.zeros(text.shape, dtype=text.dtype)
    if is_dataclass(text) and not isinstance(text, type):
        return replace(text, **{item.name: _without_values(getattr(text, item.name)) for item in fields(text)})
    return text


def weight_bytes(model: HiddenStateModel, quantization: Quantization = Quantization.none) -> int:
    """Bytes of a model's weights, tied ones once, without those of an adapter."""
    parameters = {name: value for name, value in model.model.named_parameters() if ".lora_" not in name}
    total = sum(_bytes(one) for one in parameters.values())
    if quantization is Quantization.none:
        return total
    matrices = quantizable(model.model).values()
    for matrix in matrices:
        rows = 4 * matrix.out_features if quantization is Quantization.int8 else 0
        total += int(matrix.weight.numel() * PACKED[quantization]) + rows - _bytes(matrix.weight)
    return total


def largest_matrix_bytes(model: HiddenStateModel) -> int:
    """Bytes of the largest matrix that can be quantised."""
    return max((_bytes(one.weight) for one in quantizable(model.model).values()), default=0)


def trained_bytes(model: HiddenStateModel) -> int:
    """Bytes of what has a gradient, which is what the gradients take."""
    return sum(_bytes(one) for one in _trained(model))


def optimizer_bytes(model: HiddenStateModel, name: OptimizerName) -> int:
    """Bytes of the optimiser's state: two moments of AdamW, a row and a column of each of Adafactor's matrices."""
    if name is OptimizerName.adamw:
        return 2 * trained_bytes(model)
    factored = [one for one in _trained(model) if one.ndim >= 2]
    whole = sum(_bytes(one) for one in _trained(model) if one.ndim < 2)
    return whole + sum(
        one.element_size() * (one.numel() // one.shape[-1] + one.numel() // one.shape[-2]) for one in factored
    )


def optimizer_step_bytes(model: HiddenStateModel, name: OptimizerName, *, fused: bool) -> int:
    """Bytes that an optimiser's step takes for a moment: all trained weights where it is fused, else the largest."""
    sizes = [_bytes(one) for one in _trained(model)]
    return (sum(sizes) if fused and name is OptimizerName.adamw else max(sizes)) if sizes else 0


def generation_bytes(model: HiddenStateModel, lengths: Lengths, sequences: int, per_prompt: int) -> dict[str, int]:
    """What writing takes: the longest cache or the prompts' forward, logits, copies that an adapter is merged into."""
    prompts = -(-sequences // per_prompt)
    ids_PS = torch.zeros(prompts, lengths.prompt, dtype=torch.long)
    merged = model.merged_bytes() if isinstance(model, AdaptedModel) else 0
    model.eval()
    with torch.no_grad(), LiveMemory(model.parameters()) as live:
        batch = PromptBatch([], ids_PS, torch.ones_like(ids_PS, dtype=torch.bool))
        state = model.start(batch, per_prompt, [range(prompts)])
        first, read = live.now, live.peak
        room, token = _growth(state.step, torch.zeros(prompts * per_prompt, dtype=torch.long), live)
    following = lengths.completion - 1
    cache = first + token * following + room * -(-following // (ROOM + 1))
    logits = 4 * 4 * sequences * model.head().weight_VD.shape[0]  # float32 scaled, softmax; float64 cumulated
    parts = {"key-value cache": max(cache, read), "logits": logits}
    return parts | ({"merged copy": merged} if merged else {})


def static_bytes(model: HiddenStateModel, static: StaticDecoding, prompts: int, per_prompt: int) -> int:
    """Bytes of the buffers that decoding in a cache of fixed length keeps; `static` is of no use afterwards."""
    ids_PS = torch.zeros(prompts, 1, dtype=torch.long)
    model.eval()
    with torch.no_grad():
        batch = PromptBatch([], ids_PS, torch.ones_like(ids_PS, dtype=torch.bool))
        static.start(model, batch, per_prompt, [range(prompts)])
    return static.held_bytes


def _growth(step: Callable[[Tensor], Tensor], ids_B: Tensor, live: LiveMemory) -> tuple[int, int]:
    """Bytes that the cache grows by: with room for `ROOM` tokens more, and for each token where there is no room."""
    sizes = [live.now]
    for _ in range(3):
        step(ids_B)
        sizes.append(live.now)
    token = sizes[3] - sizes[2]
    return sizes[2] - sizes[0] - 2 * token, token


def reading_bytes(
    model: HiddenStateModel,
    lengths: Lengths,
    sequences: int,
    per_prompt: int,
    head: FusedHead | None = None,
    other: HiddenStateModel | None = None,
) -> int:
    """Bytes of a forward pass without gradient, its result included.

    Args:
        model: of the forward pass.
        lengths: of the text.
        sequences: completions at one time.
        per_prompt: completions of one prompt.
        head: compares the model's states with those of `other`, where there is one.
        other: see head.
    """
    text = longest_text(model, lengths, sequences, per_prompt)
    model.eval()
    others = [] if other is None else list(other.parameters())
    with torch.no_grad(), LiveMemory([*model.parameters(), *others]) as live:
        hidden_BTD = model.architecture.read(model.model, text)
        if head is not None and other is not None:
            _through(head, hidden_BTD, model, other, apart=True)
    return live.peak


def _through(
    head: FusedHead, hidden_BTD: Tensor, model: HiddenStateModel, teacher: HiddenStateModel | None, *, apart: bool
) -> Tensor:
    """The sum of the head's outputs over a whole batch, beside a teacher's states; see `Update.apart`."""
    own_ND, states, told_N = hidden_BTD.flatten(0, 1), None, ()
    ids_N = torch.zeros(len(own_ND), dtype=torch.long)
    if teacher is not None:
        width = teacher.head().weight_VD.shape[1]
        states = Projection(hidden_BTD.new_zeros(*hidden_BTD.shape[:2], width), teacher.head())
        told_N = (states.hidden_BTD.flatten(0, 1),)
    read = (own_ND, model.head(), states, told_N, ids_N)
    if not apart:
        return FusedLoss(head, _total).of_tokens(*read)[0]
    logp, divergence, _ = head.of_tokens(*read)
    return (logp + divergence).sum()


def _total(logp_N: Tensor, divergence_N: Tensor | None, _: slice) -> Tensor:
    return logp_N.sum() if divergence_N is None else (logp_N + divergence_N).sum()


@dataclass(frozen=True)
class Update:
    """How a micro-batch is trained on.

    Attributes:
        head: with the divergence and the chunk.
        recompute: gradient checkpointing.
        per_prompt: completions of one prompt.
        apart: autograd takes the gradient of each term, which computes logits again; else one pass takes that of both.
    """

    head: FusedHead
    recompute: bool
    per_prompt: int
    apart: bool = False


def training_bytes(
    student: HiddenStateModel, teacher: HiddenStateModel | None, lengths: Lengths, sequences: int, update: Update
) -> dict[str, int]:
    """Bytes of forward and backward of one micro-batch.

    Args:
        student: trained.
        teacher: whose states lie beside it; None without one.
        lengths: of the text.
        sequences: completions in the micro-batch.
        update: how.
    """
    text = longest_text(student, lengths, sequences, update.per_prompt)
    for one in _trained(student):
        one.grad = torch.zeros_like(one)
    held = [*student.parameters(), *(one.grad for one in _trained(student) if one.grad is not None)]
    held += [] if teacher is None else list(teacher.parameters())
    student.train()
    with recomputed_layers(student, update.recompute), LiveMemory(held) as live:
        hidden_BTD = student.architecture.read(student.model, text)
        kept = live.now
        _through(update.head, hidden_BTD, student, teacher, apart=update.apart).backward()
    for one in _trained(student):
        one.grad = None
    return {"activations": kept, "head chunks and backward": live.peak - kept}


def largest_micro_batch(bytes_of: Callable[[int], int], free: int, sequences: int) -> int:
    """The most completions of a micro-batch whose bytes fit, shared out evenly; 1 where not even one fits.

    Args:
        bytes_of: bytes of a micro-batch of that many completions; close to linear.
        free: bytes there are.
        sequences: completions of a step.
    """
    if bytes_of(sequences) <= free or sequences == 1:
        return sequences
    small, half = 1, max(2, sequences // 2)
    low, high = bytes_of(small), bytes_of(half)
    slope = max((high - low) / (half - small), 1.0)
    found = max(1, min(sequences, small + int((free - low) / slope)))
    parts = -(-sequences // found)
    found = -(-sequences // parts)
    while found > 1 and bytes_of(found) > free:
        found -= 1
    return found


def _trained(model: HiddenStateModel) -> list[Tensor]:
    return [one for one in model.parameters() if one.requires_grad]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
