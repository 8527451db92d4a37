"""The command line: composed and checked before torch is imported, then one run or a sweep.

Read `command_line.py` (every job is composed and validated), `single_run.py` (one run in its folder, also from Python),
`sweeps.py` and `resume.py`.
"""

__all__: list[str] = []
