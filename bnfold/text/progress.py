"""What is being done, in words: to a callback, and to the log "bnfold" at level INFO, which is silent by default."""

import logging
from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with what begins now, such as "running the original"."""

_LOG = logging.getLogger("bnfold")


def telling(progress: Progress | None) -> Progress:
    """A callback that is always there, and logs what it is told."""

    def tell(words: str) -> None:
        _LOG.info(words)
        if progress is not None:
            progress(words)

    return tell
