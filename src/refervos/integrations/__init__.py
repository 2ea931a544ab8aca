"""Adapters to the tools people already use."""
