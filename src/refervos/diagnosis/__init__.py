"""The drawn benchmark: what a model can do and what it cannot."""
