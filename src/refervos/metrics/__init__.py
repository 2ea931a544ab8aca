"""How good masks are: region similarity J and boundary accuracy F, and what each benchmark makes of them.

Arrays in, numbers out: nothing here knows a model or a data set. All numbers are shares, not percentages.
"""

from refervos.metrics.region_boundary import (
    Overlap,
    boundary,
    boundary_accuracy,
    overlap,
    region_similarity,
    video_scores,
)

__all__ = ["Overlap", "boundary", "boundary_accuracy", "overlap", "region_similarity", "video_scores"]
