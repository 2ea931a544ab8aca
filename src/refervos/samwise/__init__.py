"""SAMWISE (Cuttano et al., CVPR 2025, arXiv 2411.17646): SAM2 made wise by small adapters."""
