"""Referring video object segmentation: a video and a sentence in, that object's mask in every frame out."""

__version__ = "0.1.0"
