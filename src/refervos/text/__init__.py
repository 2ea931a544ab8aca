"""Sentences: tokens, a text encoder that runs layer by layer, and verbs for the motion prompt."""
