"""Text <-> ids, and completions taken from a model: sampled, greedy, or by beam search.

Read `codec.py`, `sampler.py`, then `static_decoding.py` (CUDA graphs), `vllm.py` (a server generates) and
`text_statistics.py`.
"""

from gkd_rl.generation.codec import ChatTemplate, TextCodec
from gkd_rl.generation.sampler import GREEDY, Beams, Sampler, Sampling
from gkd_rl.generation.text_statistics import copy_rate, repetition_rate

__all__ = ["GREEDY", "Beams", "ChatTemplate", "Sampler", "Sampling", "TextCodec", "copy_rate", "repetition_rate"]
