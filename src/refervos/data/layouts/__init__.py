"""Readers of the published layouts, one file each."""
