"""Tokenizers, text encoders (RoBERTa in segments, T5), and verbs for the motion prompt."""
