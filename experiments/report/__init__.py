"""One self-contained HTML page about many runs: what was traded, learned, gamed and spent, and the texts behind it.

    python -m experiments.report FOLDER... --out report.html --plots report_plots

`payload.py` reads the runs into one JSON object, `page.py` puts it into the files of `page/`, `stills.py` draws the
same figures with matplotlib. The figures are named once, in `figures.py`; the page draws them from the same list.
"""
