"""Valid ranges of settings that several stages share."""

from __future__ import annotations

FRAMES = (1, 1000)
"""Frames in a clip."""

ASPECTS = (0.1, 10)
"""Width over height of a clip."""

COUNT = (1, 1000)
"""Sentences or prompted objects of a clip."""

AREA = (1, 10**9)
"""Least pixels of a visible object."""

SHARE = (0, 1)
"""A share or a probability."""

WEIGHT = (0, 1e6)
"""A factor of a share, a rate or a loss."""
