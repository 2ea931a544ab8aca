"""A file for each published layout of data sets."""
