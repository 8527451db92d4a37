"""Rewards computed from text alone, without a model: overlap with a reference, right answers, and form.

- `overlap`: ROUGE, BLEU, chrF.
- `answers`: exact and mathematical answers, accepted texts, verdicts of exact checkers.
- `form`: verifiable instructions, penalties on length and repetition.
- `arithmetic`, `equations`: the calculator that `answers` applies to worked solutions.
"""
