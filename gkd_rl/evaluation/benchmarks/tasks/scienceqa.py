"""The rows of ScienceQA without an image, for `scienceqa.yaml`."""

from __future__ import annotations

from datasets import Dataset, Image


def text_only(rows: Dataset) -> Dataset:
    """The rows without an image. The column is not decoded, so that no image library is needed."""
    if "image" not in rows.column_names:
        return rows
    if isinstance(rows.features["image"], Image):
        rows = rows.cast_column("image", Image(decode=False))
    return rows.filter(lambda image: image is None, input_columns=["image"]).remove_columns("image")
