"""`python -m gkd_rl.merge FOLDER OUT`: merge a saved adapter into its base, as one model that transformers loads."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from gkd_rl.errors import GkdRlError, ModelError
from gkd_rl.models.checkpoint import ADAPTER_FILE, locate, read_config
from gkd_rl.models.loading import load_model, load_tokenizer, save_model
from gkd_rl.models.value_head import FILE as VALUE_HEAD_FILE


def merge(folder: Path, out: Path) -> None:
    """Write the merged model to `out`, in the dtype of the base's configuration; `folder` is not changed.

    Raises:
        ModelError: `folder` holds no adapter, its base is missing, or `out` exists.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise ModelError(f"FOLDER={folder} holds no {ADAPTER_FILE}: give the model/ folder of a run with an adapter.")
    if out.exists():
        raise ModelError(f"OUT={out} exists: give a folder that does not.")
    place = locate(str(folder), None, "FOLDER")
    dtype = read_config(place).dtype
    model = load_model(place, dtype if isinstance(dtype, torch.dtype) else torch.float32)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"Merged from {folder.name}.\n"
    save_model(out, model, load_tokenizer(place), text)
    if (folder / VALUE_HEAD_FILE).is_file():
        shutil.copy2(folder / VALUE_HEAD_FILE, out / VALUE_HEAD_FILE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m gkd_rl.merge", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model/ of a run with an adapter")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write the full model to")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    try:
        merge(arguments.folder.expanduser(), arguments.out.expanduser())
    except GkdRlError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{arguments.out}\n")


if __name__ == "__main__":
    main()
