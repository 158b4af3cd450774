"""Telling control about rows that are already committed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from atomscope.errors import AtomscopeError

logger = logging.getLogger(__name__)


def announce(tell: Callable[[], None]) -> None:
    """Call a method of the `WorkQueue`; a broker that is down delays the work, it does not lose it.

    The rows are committed and control's sweep finds them, so failing the request now would be a lie.
    """
    try:
        tell()
    except AtomscopeError as error:
        logger.warning("the broker was not told, control's sweep will find the work: %s", error)
