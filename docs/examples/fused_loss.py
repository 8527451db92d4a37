"""The fused loss in a training loop of your own: hidden states and output heads in, divergence out.

Two random Llamas of different widths stand for student and teacher. `fused_distillation_loss` never holds the logits of
all positions: it projects a chunk of them, takes value and gradient, and drops them. The script compares it with the
loss of full logits, then trains the student with any PyTorch optimizer.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gkd_rl.losses import DivergenceName, TokenDivergence, fused_distillation_loss
from gkd_rl.models import architecture_of
from gkd_rl.types import Projection

VOCABULARY, STEPS = 500, 40


def random_llama(width: int, seed: int) -> LlamaForCausalLM:
    """A model with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def projection(model: LlamaForCausalLM, ids_BT: Tensor) -> Projection:
    """Hidden states that predict the next tokens, and the output head (scales, biases and caps included)."""
    return Projection(model.model(ids_BT).last_hidden_state[:, :-1], architecture_of(model).output_head(model))


def main() -> None:
    """Compare with full logits, then train."""
    student, teacher = random_llama(32, seed=1), random_llama(64, seed=2)
    teacher.requires_grad_(False)
    jsd = TokenDivergence(DivergenceName.jsd, 0.5)
    ids_BT = torch.randint(VOCABULARY, (8, 33))
    mask_BT = torch.ones(8, 32, dtype=torch.bool)  # positions that count; here all

    fused = fused_distillation_loss(projection(student, ids_BT), projection(teacher, ids_BT), mask_BT, jsd)
    teacher_NV, student_NV = (model(ids_BT).logits[:, :-1].flatten(0, 1) for model in (teacher, student))
    full = jsd(teacher_NV, student_NV, ids_BT[:, 1:].flatten()).mean()
    print(f"loss by chunks {fused.item():.6f}, by full logits {full.item():.6f}")

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for step in range(STEPS):
        with torch.no_grad():
            target = projection(teacher, ids_BT)
        loss = fused_distillation_loss(projection(student, ids_BT), target, mask_BT, jsd)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: JSD {loss.item():.4f}")


if __name__ == "__main__":
    main()
