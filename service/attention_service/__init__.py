"""Attention as a service: a stateless HTTP microservice over ONNX Runtime.

Nothing that it is sent leaves the machine it runs on: ONNX Runtime's telemetry, which is on by
default in its official builds, is switched off here, before anything can import it.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
