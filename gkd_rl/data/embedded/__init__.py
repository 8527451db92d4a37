"""Generators of text whose facts are known, with exact checkers, for runs without a network.

Read `splits.py` (no row of one split is in another), `news.py` (summaries), `claims.py` (true and false statements
about them), `german.py` (translations), `word_problems.py`, `instructions.py`, `walk.py`, then `tokenizer.py`.
"""

__all__: list[str] = []
