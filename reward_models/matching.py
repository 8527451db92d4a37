"""Initial weights of a small DeBERTa-v2 whose heads look for the same word in the other text.

Telling whether a text is supported starts with finding its words in the document. From random weights a small model
spends most of its training on learning to compare; here it begins with that (the query and key of a head start as
one another's image: mimetic initialisation, Trockman & Kolter 2023, arXiv 2305.09828).

- Query and key projections start equal but for the direction in which the two segments differ, which is reversed: a
  head's score is highest for the same word in the other segment.
- The last layer's heads start looking at all words of the second segment: the first token collects what they found.
- What the layers add starts small, so that words keep their identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DebertaV2ForSequenceClassification, PreTrainedModel

SEGMENT = 0.5  # length of a segment's embedding; a word's is about 1
ADDED = 0.3  # scale of what attention and feed-forward layers add at first
CONVOLUTION = 0.2  # scale of what the neighbours add at first
LOOK = 2.0  # how much more the last layer looks at the second segment, in log odds


@torch.no_grad()
def look_for_the_same_word(model: PreTrainedModel, strength: float) -> None:
    """Set the weights of attention in place.

    Args:
        model: a DeBERTa-v2 without positions and with two segments.
        strength: attention score of the same word in the other text, in nats above unrelated words.

    Raises:
        ValueError: the model is another.
    """
    if not isinstance(model, DebertaV2ForSequenceClassification) or model.config.type_vocab_size != 2:
        raise ValueError("same_word: takes architecture.model_type=deberta-v2 with type_vocab_size=2.")
    base: Any = model.deberta
    width = model.config.hidden_size
    segments = base.embeddings.token_type_embeddings.weight
    direction = nn.functional.normalize(segments[1], dim=0)
    segments[1], segments[0] = SEGMENT * direction, -SEGMENT * direction
    reverse = torch.eye(width) - 2 * torch.outer(direction, direction)
    gain = (strength / (width / model.config.num_attention_heads) ** 0.5) ** 0.5
    if base.encoder.conv is not None:
        base.encoder.conv.conv.weight *= CONVOLUTION
    *layers, last = base.encoder.layer
    for layer in (*layers, last):
        layer.attention.output.dense.weight *= ADDED
        layer.output.dense.weight *= ADDED
    for layer in layers:
        attention = layer.attention.self
        nn.init.orthogonal_(attention.query_proj.weight, gain=gain)
        attention.key_proj.weight.copy_(attention.query_proj.weight @ reverse)
    nn.init.orthogonal_(last.attention.self.key_proj.weight)
    last.attention.self.query_proj.weight.zero_()
    last.attention.self.query_proj.bias.copy_(LOOK * last.attention.self.key_proj.weight @ direction)
