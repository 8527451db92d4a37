"""A reward that runs generated code in a sandbox.

Read `sandbox.py`, then `sandbox_child.py`, the first process inside the sandbox.
"""

from reward_models.code.sandbox import CodeExecution, Limits

__all__ = ["CodeExecution", "Limits"]
