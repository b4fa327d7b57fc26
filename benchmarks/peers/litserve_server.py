"""LitServe, with raw bytes both ways, past its JSON. Usage: ``PORT MODEL``.

Its annotations are read by the framework, which does not take them as strings.
"""

import sys
from typing import Annotated, Any

import litserve
from fastapi import Body, Response

from benchmarks.peers import MEDIA_TYPE, model


class Attention(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._session = model.load(sys.argv[2])

    def decode_request(self, request: Annotated[bytes, Body(media_type=MEDIA_TYPE)]) -> Any:
        return model.of_bytes(request)

    def predict(self, x: Any) -> Any:
        return model.compute(self._session, *x)

    def encode_response(self, output: Any) -> Response:
        return Response(model.to_bytes(*output), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    server = litserve.LitServer(Attention(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False,
        log_level="warning", access_log=False,
    )  # fmt: skip
