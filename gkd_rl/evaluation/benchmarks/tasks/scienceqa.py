"""The rows of ScienceQA that a language model can read."""

from __future__ import annotations

from datasets import Dataset, Image


def text_only(rows: Dataset) -> Dataset:
    """Rows without an image; the column is not decoded, so that nothing else has to be installed."""
    if "image" not in rows.column_names:
        return rows
    if isinstance(rows.features["image"], Image):
        rows = rows.cast_column("image", Image(decode=False))
    return rows.filter(lambda image: image is None, input_columns=["image"]).remove_columns("image")
