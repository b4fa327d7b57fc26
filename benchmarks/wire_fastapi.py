"""What one would write first: FastAPI, and pydantic models of nested lists. Usage: ``PORT``."""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.wire_floor import SESSION

Tensor = list[list[list[list[float]]]]
app = FastAPI()


class Call(BaseModel):
    """A call."""

    query: Tensor
    key: Tensor
    value: Tensor


class Answer(BaseModel):
    """Its answer."""

    output: Tensor
    weights: Tensor


@app.get("/")
async def alive() -> None:
    """Whether it is up."""


@app.post("/v1/attention")
async def attention(call: Call) -> Answer:
    """As the floor computes it, between lists."""
    arrays = {name: np.array(getattr(call, name), np.float32) for name in Call.model_fields}
    query = arrays["query"]
    feeds = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    feeds["scale"] = np.array(query.shape[-1] ** -0.5, np.float32)
    found = SESSION.run(["output", "weights"], feeds)
    return Answer(
        **{name: array.reshape(*query.shape[:3], -1).tolist() for name, array in found.items()}
    )


if __name__ == "__main__":
    # As it comes, with uvloop, httptools and a line of the log for each call.
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
