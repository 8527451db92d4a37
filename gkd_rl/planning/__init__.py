"""Memory and cost before they are spent, and the checks of the doctor that need no configuration.

Read `memory_plan.py`, `model_memory.py`, then `checks.py`.
"""

__all__: list[str] = []
