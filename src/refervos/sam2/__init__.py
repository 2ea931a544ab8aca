"""The frozen tracker: SAM2 (Ravi et al. 2024, arXiv 2408.00714)."""
