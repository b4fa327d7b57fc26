"""The page's readers of .npy and .safetensors, run in Node.js, against NumPy and safetensors."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.system.harness import REPOSITORY, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

PAGE = REPOSITORY / "service" / "attention_service" / "api" / "page"
READER = REPOSITORY / "tests" / "system" / "page" / "read_files.mjs"
Array = np.ndarray[Any, Any]

NAMES = {"f2": "F16", "f4": "F32", "f8": "F64", "i4": "I32", "i8": "I64", "b1": "BOOL"}
# Zero, the subnormal ends, infinities and NaN beside plain numbers.
HALVES = [0.0, -0.0, 1.0, -2.5, 6e-8, 6.1e-5, 65504.0, np.inf, -np.inf, np.nan, 0.1, -1e-7]


def read(*files: Path) -> dict[str, Any]:
    return dict(json.loads(run(["node", READER, PAGE, *files])))


def numbers(found: dict[str, Any]) -> Array:
    return np.array([float(one) for one in found["data"]]).reshape(found["shape"])


def made(dtype: str) -> Array:
    array = np.array(HALVES) if dtype.startswith("f") else np.arange(-6, 6) ** 3
    return (array > 0 if dtype == "b1" else array.astype(dtype)).reshape(2, 3, 2)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_hold_what_numpy_wrote(tmp_path: Path, order: Literal["C", "F"]) -> None:
    arrays = {f"{dtype}.npy": np.asarray(made(dtype), order=order) for dtype in NAMES}
    arrays["scalar.npy"], arrays["empty.npy"] = np.float32(7), np.zeros((0, 3), np.float32)
    arrays["row.npy"] = np.arange(3, dtype=np.float32)
    for name, array in arrays.items():
        np.save(tmp_path / name, array)
    found = read(*(tmp_path / name for name in arrays))
    for name, array in arrays.items():
        expected = np.asarray(array, np.float64)
        np.testing.assert_array_equal(numbers(found[name]), expected)
        assert found[name]["shape"] == list(array.shape)
    assert {found[f"{dtype}.npy"]["dtype"] for dtype in NAMES} == set(NAMES.values())
    assert found["f2.npy"]["array"] == "Float32Array"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_each_version(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "one.npy").open("wb") as file:
        np.lib.format.write_array(file, made("f4"), version=version)
    found = read(tmp_path / "one.npy")["one.npy"]
    np.testing.assert_array_equal(numbers(found), made("f4").astype(float))


def test_integers_past_what_a_number_holds_stay_exact(tmp_path: Path) -> None:
    integers = np.array([2**53, -(2**63)])
    np.save(tmp_path / "wide.npy", integers)
    np.save(tmp_path / "safe.npy", integers // 2**11)
    found = read(tmp_path / "wide.npy", tmp_path / "safe.npy")
    assert found["wide.npy"]["array"] == "BigInt64Array"
    assert [int(one) for one in found["wide.npy"]["data"]] == integers.tolist()
    assert found["safe.npy"]["array"] == "Float64Array"


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_npy_files_that_are_refused_say_why(tmp_path: Path) -> None:
    whole = npy(made("f4"))
    files = {
        "text": (b"1,2,3,4,5,6,7\n", "does not begin as one"),
        "version": (whole[:6] + b"\x04" + whole[7:], "version 4"),
        "header": (whole[:40], "cut off in its header"),
        "short": (whole[:-1], "47 bytes of data; its shape [2,3,2] needs 48"),
        "long": (whole + b"\0", "49 bytes of data"),
        "big-endian": (npy(made("f4").astype(">f4")), "dtype >f4; this page reads <f2, <f4"),
        "complex": (npy(np.ones(2, complex)), "<c16"),
        "fields": (npy(np.zeros(2, [("a", "f4")])), "no plain dtype"),
    }
    for name, (content, _) in files.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
    found = read(*(tmp_path / f"{name}.npy" for name in files))
    for name, (_, message) in files.items():
        assert message in found[f"{name}.npy"]["error"]


def test_safetensors_hold_what_the_library_wrote_and_are_written_again(tmp_path: Path) -> None:
    arrays = {name: made(dtype) for dtype, name in NAMES.items()}
    arrays["BF16"] = np.array(HALVES).astype(ml_dtypes.bfloat16).reshape(3, 4)
    arrays["U8"] = np.arange(5, dtype=np.uint8)
    arrays["scalar"], arrays["empty"] = np.array(7, np.float32), np.zeros((0, 3), np.float32)
    file = tmp_path / "all.safetensors"
    save_file(arrays, file, {"größe": 'a "quoted" \u202e text'})
    found = read(file)[file.name]
    assert found["metadata"] == {"größe": 'a "quoted" \u202e text'}
    assert found["tensors"].keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(numbers(found["tensors"][name]), np.asarray(array, float))
    assert found["tensors"]["BF16"]["dtype"] == "BF16"

    again = file.with_name("all.safetensors.again")
    with safe_open(again, "numpy") as opened:
        assert opened.metadata() == found["metadata"]
    written = load_file(again)
    assert written.keys() == arrays.keys() - {"F16", "BF16"}
    for name, array in written.items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
    # So that each element lies at a multiple of its size, as docs/wire-format.md advises.
    (length,) = struct.unpack("<Q", again.read_bytes()[:8])
    assert (8 + length) % 8 == 0


def test_safetensors_that_are_refused_say_why(tmp_path: Path) -> None:
    def packed(header: str, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header.encode() + data

    def of(**changed: Any) -> str:
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changed}
        return json.dumps({"a": entry})

    files = {
        "short": (b"1234", "first 8 bytes"),
        "length": (struct.pack("<Q", 2**60) + b"{}", "past the file"),
        "words": (packed("no JSON"), "header is no JSON."),
        "list": (packed("[]"), "no JSON object"),
        "dtype": (packed(of(dtype="F8_E4M3")), "dtype F8_E4M3; this page reads F64"),
        "prototype": (packed(of(dtype="toString")), "dtype toString"),
        "shape": (packed(of(shape=[-1])), "shape of a"),
        "offsets": (packed(of(data_offsets=None)), "where its data are"),
        "cut": (packed(of(), b"123"), "4 bytes that F32 [1] needs"),
    }
    for name, (content, _) in files.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    found = read(*(tmp_path / f"{name}.safetensors" for name in files))
    for name, (_, message) in files.items():
        assert message in found[f"{name}.safetensors"]["error"]
