"""Export of SAMWISE's streaming step to ONNX graphs, and the model that runs them in the same sessions."""
