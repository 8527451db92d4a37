"""The README.md of a saved student: what it is, how it was trained, what it scores, how to load it."""

from __future__ import annotations

from collections.abc import Mapping

from gkd_rl.report_table import markdown_text

ARCHITECTURE_CLASSES = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")

_CARD = """\
---
library_name: transformers
tags:
- gkd
- reinforcement-learning
- knowledge-distillation
---

# {name}

A student language model trained with {method} by gkd_rl: reinforcement learning and on-policy distillation in one
objective, after Agarwal et al., *On-Policy Distillation of Language Models*
([arXiv:2306.13649](https://arxiv.org/abs/2306.13649)):

    maximise (1 - alpha) E[r] - alpha E[D(p_T || p_S)]

r is the reward of the student's own samples, D the divergence of the student p_S from the teacher p_T. alpha = 1 is
pure distillation, alpha = 0 pure reinforcement learning.

## Scale

{notice}

## Settings

| setting | value |
| --- | --- |
{settings}

## Results

{results}

## Use

```python
from transformers import {architecture_class}, AutoTokenizer

folder = "."  # this folder, or the model's id on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {architecture_class}.from_pretrained(folder)
inputs = tokenizer("Your prompt, in the form of the training task", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

No licence is stated here: it is for whoever publishes the model to choose, within the terms of the initial student, the
teacher and the data.
"""


def model_card(
    name: str,
    method: str,
    settings: Mapping[str, str],
    results_markdown: str,
    notice: str,
    architecture_class: str,
) -> str:
    """A Hugging Face model card.

    Args:
        name: of the model.
        method: e.g. "RL + on-policy GKD".
        settings: what was set, in order: alpha, divergence, lmbda, steps, seed, teacher, ...
        results_markdown: from `report_table.markdown_table`; goes in as it is.
        notice: what the numbers can be compared with, from the scale.
        architecture_class: the transformers class that loads the model.

    Returns:
        Markdown with YAML front matter, for README.md in the model's folder.

    Raises:
        ValueError: if the class is not one that the card can explain.
    """
    if architecture_class not in ARCHITECTURE_CLASSES:
        raise ValueError(f"architecture_class={architecture_class}: takes {' or '.join(ARCHITECTURE_CLASSES)}.")
    return _CARD.format(
        name=markdown_text(name),
        method=markdown_text(method),
        settings="\n".join(
            f"| {markdown_text(key)} | {markdown_text(str(value))} |" for key, value in settings.items()
        ),
        results=results_markdown.strip(),
        notice=markdown_text(notice),
        architecture_class=architecture_class,
    )
