"""The field's benchmarks and your own data, each in its published layout, all read as the same ``Sample``."""
