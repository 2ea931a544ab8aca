"""The parts of ``benchmarks/gpu.py``, and what runs and reports them."""
