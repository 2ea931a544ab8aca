"""How good masks are: region similarity J and boundary accuracy F."""

from refervos.metrics.region_boundary import boundary_accuracy, region_similarity

__all__ = ["boundary_accuracy", "region_similarity"]
