"""gkd_rl: train a small language model on a reward and a teacher at once, on text that it wrote itself.

Implements "On-Policy Distillation of Language Models" (GKD, Agarwal et al. 2023, arXiv 2306.13649).
"""

__version__ = "0.1.0"
