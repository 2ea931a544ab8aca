"""Evaluation on data sets: inference, scoring, tables, reports, comparisons and submissions."""
