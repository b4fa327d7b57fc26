"""What one would write first for a text: FastAPI over transformers. Usage: ``PORT FOLDER``."""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoTokenizer

FOLDER = sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
app = FastAPI()


class Call(BaseModel):
    """A text."""

    text: str


class Answer(BaseModel):
    """What the model attends to in it."""

    tokens: list[str]
    output: list[list[float]]
    weights: list[list[list[list[float]]]]


@app.get("/")
async def alive() -> None:
    """Whether it is up."""


def attended(text: str) -> dict[str, Any]:
    """Tokens, the last hidden state, and the weights of all layers and heads, as lists."""
    given = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        found = model(**given, output_attentions=True)
    return {
        "tokens": tokenizer.convert_ids_to_tokens(given["input_ids"][0]),
        "output": found.last_hidden_state[0].tolist(),
        "weights": [layer[0].tolist() for layer in found.attentions],
    }


@app.post("/plain", response_model=None)
def plain(call: Call) -> dict[str, Any]:
    """As without a type of the answer, which FastAPI is told to pass over: every number is seen."""
    return attended(call.text)


@app.post("/model")
def of_model(call: Call) -> Answer:
    """With a pydantic model of the answer."""
    return Answer(**attended(call.text))


@app.post("/dict")
def of_dict(call: Call) -> dict[str, Any]:
    """With no more than a dict as the type of the answer, the fastest way that FastAPI has."""
    return attended(call.text)


if __name__ == "__main__":
    # As it comes with fastapi[standard]: uvloop, httptools, and a line of the log for each call.
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
