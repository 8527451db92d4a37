"""Tasks: one data set per file, rows -> prompt and reference, no scoring."""
