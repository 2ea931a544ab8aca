"""SAMWISE's streaming step as ONNX graphs: how they are written, and how they run behind the same sessions."""
