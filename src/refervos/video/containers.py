"""Opens media containers for reading, whatever release of PyAV is installed."""

from __future__ import annotations

from typing import Any

import av


def open_input(address: str, **options: Any) -> Any:
    """Opens a container, not minding titles and other notes in it that are not UTF-8.

    Args:
        address: What FFmpeg is to open.
        options: Further arguments of `av.open`.

    Returns:
        The PyAV input container.

    Raises:
        FFmpegError: It cannot be opened.
    """
    try:
        return av.open(address, mode="r", **options)
    except UnicodeDecodeError:
        # Releases of PyAV up to 18 fail on such notes unless told not to; later ones no longer know the option.
        return av.open(address, mode="r", metadata_errors="ignore", **options)
