"""SAMWISE (Cuttano et al., CVPR 2025, arXiv 2411.17646): text adapters for a frozen SAM2."""
