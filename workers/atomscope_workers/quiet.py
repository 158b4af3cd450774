"""Keeping the libraries silent, so that a command's own lines can be read."""

from __future__ import annotations

import os
import warnings


def quieten() -> None:
    """Hide progress bars and notices of libraries; call it before any of them is imported.

    Lookups on a hub are turned off as well: the pipeline never fetches anything.
    """
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
