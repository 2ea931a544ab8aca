"""Mask metrics: region similarity J, boundary accuracy F, and the metrics that single benchmarks add.

Arrays in, numbers out: nothing here knows a model or a data set. All numbers are fractions, not percentages.
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
