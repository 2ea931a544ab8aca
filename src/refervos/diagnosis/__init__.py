"""Diagnosis of a model's abilities on the synthetic benchmark."""
