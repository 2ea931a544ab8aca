"""Public benchmarks and your own data, each read from its published layout into the same ``Sample``."""
