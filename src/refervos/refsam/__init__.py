"""RefSAM (Li et al. 2024, arXiv 2307.00997): SAM with a text encoder, frame by frame, and one track token."""
