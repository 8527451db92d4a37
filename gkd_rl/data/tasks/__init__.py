"""One task a file: its rows as prompts and references, with the columns that its rewards read.

Settings name a task by `_target_`, e.g. `gkd_rl.data.tasks.xsum.Xsum`. Read `walk.py` (generated rows only), then
`xsum.py` and `wmt.py` (generated, files or the Hub), `gsm8k.py` and `instruct.py`.
"""

__all__: list[str] = []
