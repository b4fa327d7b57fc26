"""KServe, in the binary form of the Open Inference Protocol both ways. Usage: ``PORT MODEL``."""

from __future__ import annotations

import sys
from typing import Any

import kserve
from kserve import InferOutput, InferRequest, InferResponse

from benchmarks.peers import model


class Attention(kserve.Model):
    def load(self) -> bool:
        self._session = model.load(sys.argv[2])
        self.ready = True
        return True

    def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        given = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        found = model.compute(self._session, **given)
        outputs = []
        for name, array in zip(("output", "weights"), found, strict=True):
            output = InferOutput(name, list(array.shape), "FP32")
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs, use_binary_outputs=True)


if __name__ == "__main__":
    attention = Attention("sdpa")
    attention.load()
    server = kserve.ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1)
    server.start([attention])
