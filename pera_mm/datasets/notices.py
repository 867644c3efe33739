"""Warnings about a kind of file, each given for the first such file only."""

import logging
import mmap


class Notice:
    """A warning that is logged once, whichever of the workers meets the first file."""

    def __init__(self) -> None:
        self._said = mmap.mmap(-1, 1)  # shared with the processes that are forked from this one

    def say(self, text: str) -> None:
        """Log the text, if nothing was logged before; without a run it goes to stderr."""
        if self._said[0]:
            return
        self._said[0] = 1
        from mmengine.logging import MMLogger  # late: only few data sets need it

        # Without a run MMEngine would make a logger that writes to stdout, among a tool's results.
        has_run = bool(MMLogger._instance_dict)
        logger = MMLogger.get_current_instance() if has_run else logging.getLogger('pera_mm')
        logger.warning(text)
