"""Model files: strict and safe reading and writing, tensor names of released checkpoints, the Hugging Face hub."""
