"""gkd_rl: train a small language model on a reward and a teacher at once, on text that it generated itself.

Implements "On-Policy Distillation of Language Models" (GKD, Agarwal et al. 2023, arXiv 2306.13649). Packages in the
order in which they build on each other: config, outputs, losses, models, generation, data, training, evaluation,
planning, pipeline, cli; `types.py` has the values that flow through a step, `errors.py` all errors. What a user may
import is the `__all__` of each package (docs/api.md). Importing this package imports no torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gkd_rl.errors import ConfigError, GkdRlError

if TYPE_CHECKING:
    from gkd_rl.cli.single_run import run_experiment
    from gkd_rl.pipeline.results import Results

# At its import, on CPUs with AVX512-BF16: it wants to fetch a kernel from the Hub and says that it could not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.2.0"
_MODULES = {"Results": "pipeline.results", "run_experiment": "cli.single_run"}
__all__ = ["ConfigError", "GkdRlError", "Results", "run_experiment"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: a run imports everything, which takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
