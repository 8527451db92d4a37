"""One question a file, in the form of `experiments/design.py`: `python -m experiments.studies.NAME` runs it alone."""
