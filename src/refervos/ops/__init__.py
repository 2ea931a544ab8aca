"""Tensor functions and layers that several models share, and what makes them fast on each device."""
