"""Attention as a service: a stateless HTTP microservice over ONNX Runtime.

Nothing that it is sent leaves the machine it runs on: ONNX Runtime's telemetry, which is on by
default in its official builds, is switched off here, before anything can import it.

So are the threads of numpy's BLAS, which counts the host's cores, whatever the control group
allows: calls are computed by lanes, one thread each.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
