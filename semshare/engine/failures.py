"""Logs what went wrong inside without ever logging a prompt."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

logger = logging.getLogger("semshare")


def log_failure(what: str, error: BaseException, *, level: int = logging.WARNING) -> None:
    """Log the error's class and where it came from.

    Its message is left out: a library's message may quote the text it failed on.
    """
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    trail = " < ".join(
        f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in reversed(frames)
    )
    logger.log(level, "%s: %s at %s", what, type(error).__name__, trail)
