"""One self-contained HTML page about many runs: trade-offs, learning curves, signs of reward hacking, costs, and texts.

    python -m experiments.report FOLDER... --out report.html --plots report_plots

`payload.py` reads the runs into one JSON object, with the texts of `texts.py`; `__main__.py` inserts it into the files
of `page/`; `plots.py` draws the same figures with matplotlib. `figures.py` lists the figures for both.
"""
