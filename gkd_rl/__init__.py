"""gkd_rl: train a small language model on a reward and a teacher at once, on text that it wrote itself.

Implements "On-Policy Distillation of Language Models" (GKD, Agarwal et al. 2023, arXiv 2306.13649).
"""

import logging

# At its import, on CPUs with AVX512-BF16: it wants to fetch a kernel from the Hub and says that it could not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
