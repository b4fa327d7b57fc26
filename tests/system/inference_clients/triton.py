"""Calls the service with tritonclient, sync and aio. Usage: URL INPUTS.npz OUTPUTS.npz.

Runs in an environment of its own; what it prints and writes is compared by the test.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as sync
from ml_dtypes import bfloat16
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

DTYPES = {"FP16": np.float16, "BF16": bfloat16, "FP32": np.float32, "FP64": np.float64}
TEXT = "all-MiniLM-L6-v2"
GIVEN = dict(np.load(sys.argv[2]))


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> sync.InferInput:
    made = sync.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def attention(datatype: str = "FP32", *, binary: bool = True) -> list[sync.InferInput]:
    names = ("query", "key", "value")
    return [tensor(n, GIVEN[n].astype(DTYPES[datatype]), datatype, binary=binary) for n in names]


def optional() -> list[sync.InferInput]:
    return [
        tensor("attn_mask", GIVEN["attn_mask"], "BOOL"),
        tensor("query_document_ids", GIVEN["documents"].astype(np.int32), "INT32"),
        tensor("key_document_ids", GIVEN["documents"], "INT64"),
    ]


def asked(*names: str, binary: bool) -> list[sync.InferRequestedOutput]:
    return [sync.InferRequestedOutput(name, binary_data=binary) for name in names]


CALLS: dict[str, dict[str, Any]] = {
    **{
        f"{datatype}, binary": {"model_name": "sdpa", "inputs": attention(datatype)}
        for datatype in DTYPES
    },
    **{
        f"{datatype}, JSON": {
            "model_name": "sdpa",
            "inputs": attention(datatype, binary=False),
            "outputs": asked("output", "weights", binary=False),
        }
        for datatype in ("FP32", "FP64")
    },
    **{
        coding: {
            "model_name": "sdpa",
            "inputs": attention(),
            "request_compression_algorithm": coding,
            "response_compression_algorithm": coding,
        }
        for coding in ("gzip", "deflate")
    },
    "masked": {
        "model_name": "sdpa",
        "model_version": "1",
        "inputs": [*attention(), *optional()],
        "outputs": [*asked("weights", binary=True), *asked("lse", binary=False)],
        "request_id": "seven",
        "timeout": 20_000_000,
        "parameters": {"scale": 0.5},
    },
    "text": {
        "model_name": TEXT,
        "inputs": [tensor("text", GIVEN["texts"].astype(object), "BYTES")],
        "parameters": {"layers": "[5]", "heads": "[0, 7]"},
    },
    "text, JSON": {
        "model_name": TEXT,
        "inputs": [tensor("text", GIVEN["texts"].astype(object), "BYTES", binary=False)],
        "outputs": asked("tokens", "token_ids", binary=False),
    },
}
WRONG: dict[str, dict[str, Any]] = {
    "no such model": {"model_name": "nobody", "inputs": attention()},
    "a tensor is missing": {"model_name": "sdpa", "inputs": attention()[:2]},
    "no such output": {
        "model_name": "sdpa",
        "inputs": attention(),
        "outputs": asked("logits", binary=True),
    },
    "shapes that do not fit": {
        "model_name": "sdpa",
        "inputs": [*attention()[:2], tensor("value", np.zeros((1, 2, 9, 4), np.float32), "FP32")],
    },
}
REFUSED = {
    "load": lambda client: client.load_model("sdpa"),
    "trace": lambda client: client.get_trace_settings(),
    "log": lambda client: client.update_log_settings({"log_verbose_level": 1}),
    "shared memory": lambda client: client.register_system_shared_memory("a", "/a", 8),
    "no model": lambda client: client.get_model_metadata("nobody"),
}


def arrays(result: sync.InferResult) -> dict[str, np.ndarray]:
    found = {}
    for output in result.get_response()["outputs"]:
        array = result.as_numpy(output["name"])
        if array.dtype == object:
            words = array.reshape(-1)
            array = np.array([w.decode() if isinstance(w, bytes) else w for w in words]).reshape(
                array.shape
            )
        found[output["name"]] = array.astype(np.float32) if array.dtype == bfloat16 else array
    return found


def told(error: InferenceServerException) -> list[str]:
    return [str(error.status()), error.message()]


def with_sync(url: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    client = sync.InferenceServerClient(url)
    seen: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("sdpa", "1"),
        "nobody ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(TEXT),
        "config": client.get_model_config("sdpa"),
        "index": client.get_model_repository_index(),
    }
    found: dict[str, np.ndarray] = {}
    for name, call in CALLS.items():
        result = client.infer(**call)
        found |= {f"sync/{name}/{output}": array for output, array in arrays(result).items()}
        seen["id"] = result.get_response().get("id", seen.get("id"))
    begun = client.async_infer("sdpa", attention())
    found |= {f"sync/begun/{n}": array for n, array in arrays(begun.get_result()).items()}
    for name, call in WRONG.items():
        try:
            client.infer(**call)
        except InferenceServerException as error:
            seen[name] = told(error)
    for name, refused in REFUSED.items():
        try:
            refused(client)
        except InferenceServerException as error:
            seen[name] = told(error)
    seen["statistics"] = client.get_inference_statistics("sdpa")
    client.close()
    return seen, found


async def with_aio(url: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    async with aio.InferenceServerClient(url) as client:
        seen: dict[str, Any] = {
            "ready": await client.is_server_ready(),
            "metadata": await client.get_model_metadata(TEXT),
            "index": await client.get_model_repository_index(),
        }
        found: dict[str, np.ndarray] = {}
        for name, call in CALLS.items():
            result = await client.infer(**call)
            found |= {f"aio/{name}/{output}": array for output, array in arrays(result).items()}
        for name, call in WRONG.items():
            try:
                await client.infer(**call)
            except InferenceServerException as error:
                seen[name] = told(error)
    return seen, found


def main() -> None:
    url = sys.argv[1].removeprefix("http://")
    seen, found = with_sync(url)
    seen_aio, found_aio = asyncio.run(with_aio(url))
    np.savez(sys.argv[3], **found, **found_aio)
    print(json.dumps({"sync": seen, "aio": seen_aio}))


if __name__ == "__main__":
    main()
