"""Parts of ``benchmarks/gpu.py``, their runner and their report."""
