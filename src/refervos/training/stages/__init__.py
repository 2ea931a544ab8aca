"""Stages of training: SAM and SAM2 on prompts, text encoders on sentences, SAMWISE and RefSAM on both."""
