"""Learned modules: the repository of ONNX files, what runs them, and the exporters."""
