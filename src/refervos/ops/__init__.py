"""Shared tensor functions and layers, with fast implementations for each device."""
