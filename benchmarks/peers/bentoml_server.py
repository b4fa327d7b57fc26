"""BentoML, with raw bytes both ways. Usage: ``PORT MODEL``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers import MEDIA_TYPE, model

Raw = Annotated[bytes, ContentType(MEDIA_TYPE)]


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, traffic={"timeout": 60})
class Attention:
    def __init__(self) -> None:
        self._session = model.load(os.environ["MODEL"])

    @bentoml.api(route="/predict")
    def predict(self, body: Raw, /) -> Raw:
        return model.to_bytes(*model.compute(self._session, *model.of_bytes(body)))


if __name__ == "__main__":
    port, os.environ["MODEL"] = sys.argv[1:]
    words = ["serve", f"{__spec__.name}:Attention", "--host", "127.0.0.1", "--port", port]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *words])
