"""Attention as a service: a stateless HTTP microservice over ONNX Runtime."""
