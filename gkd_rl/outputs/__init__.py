"""The run folder: JSON files, the run's record, metrics and samples, tables and the model card.

Read `json_files.py`, `run_record.py`, `tracking.py` (the only import of wandb), then `tables.py`. Nothing here imports
torch.
"""

from gkd_rl.outputs.tables import Estimate

__all__ = ["Estimate"]
