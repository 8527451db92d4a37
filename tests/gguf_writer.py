"""A Llama as llama.cpp would write it, in 32 bits."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel

GGUF_SIZE = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    """Write the weights of a Llama of GGUF_SIZE, without a tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(2)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp rotates neighbours, transformers halves
            rows = value.shape[0] // 2
            value = value.reshape(2, 2, rows // 2, -1).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
