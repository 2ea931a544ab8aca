"""What the settings of stages may be, as far as several stages have the same."""

from __future__ import annotations

FRAMES = (1, 1000)
"""How long clips may be."""

ASPECTS = (0.1, 10)
"""How wide clips may be for their height."""

COUNT = (1, 1000)
"""How many sentences or questions may be asked about a clip."""

AREA = (1, 10**9)
"""From how many pixels on an object may count as visible."""

SHARE = (0, 1)
"""A share, or the chance that something is done."""

WEIGHT = (0, 1e6)
"""What a share, a rate or a loss may be multiplied by."""
