"""Calls the service with KServe's REST client. Usage: URL INPUTS.npz OUTPUTS.npz."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

TEXT = "all-MiniLM-L6-v2"


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


async def calls(url: str, given: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    seen: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model ready": await client.is_model_ready(url, "sdpa"),
        "nobody ready": await client.is_model_ready(url, "nobody"),
    }
    found: dict[str, Any] = {}

    async def ask(name: str, model: str, inputs: list[InferInput], **options: Any) -> None:
        request = InferRequest(model, inputs, **options)
        answer = await client.infer(url, request, model_name=model)
        found.update({f"{name}/{one.name}": one.as_numpy() for one in answer.outputs})

    for binary in (True, False):
        names = ("query", "key", "value")
        inputs = [tensor(n, given[n].astype(np.float32), "FP32", binary=binary) for n in names]
        form = "binary" if binary else "JSON"
        await ask(form, "sdpa", inputs, parameters={"binary_data_output": binary})
        chosen = [RequestedOutput("lse", parameters={"binary_data": binary})]
        await ask(f"{form}, causal", "sdpa", inputs, request_outputs=chosen,
                  parameters={"is_causal": True})  # fmt: skip
        texts = [tensor("text", given["texts"].astype(object), "BYTES", binary=binary)]
        await ask(f"{form}, text", TEXT, texts, parameters={"binary_data_output": binary})
    half = [tensor(n, given[n].astype(np.float16), "FP16", binary=True) for n in names]
    await ask("FP16", "sdpa", half, parameters={"binary_data_output": True})
    try:
        await ask("wrong", "sdpa", inputs[:2])
    except httpx.HTTPStatusError as error:
        seen["a tensor is missing"] = str(error)
    await client.close()
    return seen, found


def main() -> None:
    seen, found = asyncio.run(calls(sys.argv[1], dict(np.load(sys.argv[2]))))
    # Strings as numpy's own, which need no pickle.
    plain = {n: a.astype(str) if a.dtype == object else a for n, a in found.items()}
    np.savez(sys.argv[3], **plain)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
