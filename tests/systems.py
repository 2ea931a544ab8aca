"""What a test needs that not every system has, told from its source."""

from __future__ import annotations

import re

OF_LINUX = re.compile(r"/proc/|/dev/full")

OF_POSIX = re.compile(r"\bos\.(?:fork|killpg|mkfifo)\b|\bimport resource\b|\bSIG(?:HUP|KILL)\b|/dev/")

NOT_IMPORTED_ON_WINDOWS = ("fuzz", "test_stopping.py", "test_training_workers.py", "test_untrusted_models.py")
"""Tests whose files need the like to be imported."""


def lacking(source: str, platform: str) -> str | None:
    """Say what a test needs that a system lacks.

    Args:
        source: Of the test.
        platform: As ``sys.platform`` names it.

    Returns:
        Why it cannot run there; None where it can.
    """
    found = None if platform.startswith("linux") else OF_LINUX.search(source)
    if found is None and platform == "win32":
        found = OF_POSIX.search(source)
    return None if found is None else f"{platform} has no {found[0]}"
