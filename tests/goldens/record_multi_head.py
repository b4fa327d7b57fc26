"""Record what torch.nn.MultiheadAttention computes, as multi_head*.

Use: python record_multi_head.py; it writes multi_head.json, multi_head.npz and the state_dict of
each variant as multi_head_VARIANT.safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

SEED = 20


@dataclass(frozen=True)
class Variant:
    """The options of one module; kdim and vdim other than embed_dim split its projections."""

    name: str
    embed_dim: int
    num_heads: int
    kdim: int
    vdim: int
    bias: bool


@dataclass(frozen=True)
class Call:
    """One call: its sizes, its mask, and whether key and value are the query itself."""

    name: str
    batch: int
    queries: int
    keys: int
    mask: Literal["none", "bool", "float", "heads", "causal"] = "none"
    is_self: bool = False


VARIANTS = [
    Variant("bias", embed_dim=16, num_heads=4, kdim=16, vdim=16, bias=True),
    Variant("nobias", embed_dim=24, num_heads=3, kdim=24, vdim=24, bias=False),
    Variant("kdim", embed_dim=16, num_heads=2, kdim=10, vdim=12, bias=True),
    Variant("kdim_nobias", embed_dim=16, num_heads=2, kdim=10, vdim=12, bias=False),
]

CALLS = [
    Call("self", batch=1, queries=5, keys=5, is_self=True),
    Call("cross", batch=1, queries=4, keys=7),
    Call("batch", batch=3, queries=6, keys=5),
    Call("bool_mask", batch=2, queries=4, keys=6, mask="bool"),
    Call("float_mask", batch=2, queries=4, keys=6, mask="float"),
    Call("head_mask", batch=2, queries=5, keys=3, mask="heads"),
    Call("causal", batch=2, queries=6, keys=6, mask="causal"),
    Call("self_causal", batch=3, queries=6, keys=6, mask="causal", is_self=True),
]


def make_module(variant: Variant) -> nn.MultiheadAttention:
    """Build a module whose biases are random, as they start from zero."""
    module = nn.MultiheadAttention(
        variant.embed_dim,
        variant.num_heads,
        bias=variant.bias,
        kdim=variant.kdim,
        vdim=variant.vdim,
        batch_first=True,
    )
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return module.eval()


def make_mask(call: Call, heads: int) -> Tensor | None:
    """Draw the mask: bool where True may attend, or float which is added to the scores."""
    grid = (call.queries, call.keys)
    if call.mask == "none":
        return None
    if call.mask == "causal":
        return torch.ones(grid, dtype=torch.bool).tril()
    if call.mask == "float":
        return torch.randn(grid)
    shape = (call.batch, heads, *grid) if call.mask == "heads" else grid
    mask = torch.rand(shape) < 0.6
    # Every query keeps one key: torch gives NaN for a query which may attend to none.
    kept = torch.randint(call.keys, (*shape[:-1], 1))
    return mask.scatter(-1, kept, value=True)


def to_torch_mask(mask: Tensor) -> Tensor:
    """Turn a mask into the form torch takes: True hides a key, and heads lie in the batch."""
    flat = mask.flatten(0, 1) if mask.dim() == 4 else mask
    return ~flat if flat.dtype == torch.bool else flat


def run(module: nn.MultiheadAttention, variant: Variant, call: Call) -> dict[str, Tensor]:
    """Make one call on random inputs and return its arrays."""
    query = torch.randn(call.batch, call.queries, variant.embed_dim)
    arrays = {"query": query}
    key = value = query
    if not call.is_self:
        key = arrays["key"] = torch.randn(call.batch, call.keys, variant.kdim)
        value = arrays["value"] = torch.randn(call.batch, call.keys, variant.vdim)
    mask = make_mask(call, variant.num_heads)
    if mask is not None and call.mask != "causal":
        arrays["attn_mask"] = mask
    with torch.no_grad():
        # is_causal is only a hint beside a mask, so causal calls pass the mask as well.
        arrays["output"], arrays["weights"] = module(
            query,
            key,
            value,
            attn_mask=None if mask is None else to_torch_mask(mask),
            is_causal=call.mask == "causal",
            need_weights=True,
            average_attn_weights=False,
        )
    return arrays


def describe(variant: Variant, call: Call, names: list[str]) -> dict[str, object]:
    """Give the entry of a call in multi_head.json."""
    return {
        "id": f"{variant.name}_{call.name}",
        "variant": variant.name,
        "num_heads": variant.num_heads,
        "embed_dim": variant.embed_dim,
        "kdim": variant.kdim,
        "vdim": variant.vdim,
        "arrays": names,
        "is_causal": call.mask == "causal",
    }


def record(directory: Path) -> None:
    """Make every call of every variant and write the files."""
    torch.manual_seed(SEED)
    # The fused path for inference is another implementation, taken for some of the calls only.
    torch.backends.mha.set_fastpath_enabled(False)
    entries: list[dict[str, object]] = []
    arrays: dict[str, NDArray[np.generic]] = {}
    for variant in VARIANTS:
        module = make_module(variant)
        save_file(module.state_dict(), directory / f"multi_head_{variant.name}.safetensors")
        for call in CALLS:
            if call.is_self and variant.kdim != variant.embed_dim:
                continue
            named = run(module, variant, call)
            entry = describe(variant, call, list(named))
            entries.append(entry)
            arrays.update({f"{entry['id']}.{name}": array.numpy() for name, array in named.items()})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (directory / "multi_head.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")
    np.savez_compressed(directory / "multi_head.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    record(Path(__file__).parent)
