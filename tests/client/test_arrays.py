"""What callers may pass as a tensor or a mask, and what becomes of it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attention_client import AttentionClient
from attention_client._arrays import integers, mask, plain, tensor
from tests.client import conftest
from tests.client.conftest import Ask


class Foreign:
    """An array of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


class Torch:
    """A tensor of PyTorch's bfloat16, which its library gives to numpy as float32 only."""

    dtype = "torch.bfloat16"

    def __init__(self, numbers: list[float]) -> None:
        self._numbers = numbers

    def float(self) -> Foreign:
        return Foreign(np.array(self._numbers, np.float32))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")


class Unwilling:
    """A tensor that cannot be shared, such as one with gradients."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise RuntimeError("call detach() first")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[1.0, 2.0]], "float32"),
        ([[1, 2]], "float32"),
        (((1, 2.5),), "float32"),
        ([], "float32"),
        (1.5, "float32"),
        ([float("inf")], "float32"),
        (np.ones(2, np.float16), "float16"),
        (np.ones(2, ml_dtypes.bfloat16), "bfloat16"),
        (np.ones(2), "float64"),
        ([np.ones(2), np.zeros(2)], "float64"),
        ([np.float64(1)], "float64"),
        (np.ones(2, np.int64), "float32"),
        (np.ones(2, np.uint8), "float32"),
        (Foreign(np.ones(2)), "float64"),
    ],
)
def test_dtypes(value: Any, dtype: str) -> None:
    assert tensor("query", value).dtype.name == dtype


def test_bfloat16_of_pytorch() -> None:
    numbers = [1.0, -3.140625, 2.0**-133, float("inf")]  # all of which bfloat16 has
    torch: Any = Torch(numbers)
    array = tensor("query", torch)
    assert (array.dtype, array.astype(float).tolist()) == (ml_dtypes.bfloat16, numbers)
    assert mask("attn_mask", torch).dtype == ml_dtypes.bfloat16


def test_an_array_is_not_copied() -> None:
    array = np.ones((2, 2), np.float32)
    assert np.shares_memory(tensor("query", array), array)


def test_big_endian_arrays_keep_their_numbers(client: AttentionClient) -> None:
    value = np.array([[1.0, 2.0]], ">f4")
    assert client.attention([[1.0]], [[1.0]], value).output.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0], [1.0, 2.0]], ValueError, "query: cannot be made into an array"),
        (Unwilling(), ValueError, "query: .*detach"),
        (["a"], TypeError, "query: is an array of str"),
        (None, TypeError, "query: is an array of object"),
        ([True, False], TypeError, "query: holds true and false"),
        (np.ones(2, bool), TypeError, "query: holds true and false"),
        ([1j], TypeError, "query: is an array of complex128"),
        (np.ones(2, ml_dtypes.float8_e4m3fn), TypeError, "query: is an array of float8_e4m3fn"),
    ],
)
def test_what_is_no_tensor(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tensor("query", value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[True, False]], "bool"),
        (np.ones(2, bool), "bool"),
        ([[0.0, -1e9]], "float32"),
        ([[0, 0]], "float32"),
        ([[0, -10000]], "float32"),
        (np.array([0.0, 2.0], np.float16), "float16"),
        (np.ones(2, np.float16), "float16"),
        (np.zeros(2, np.float16), "float16"),
    ],
)
def test_masks(value: Any, dtype: str) -> None:
    assert mask("attn_mask", value).dtype.name == dtype


@pytest.mark.parametrize(
    ("value", "error"),
    [([[0, 1]], ValueError), ([[1.0, 0.0]], ValueError), (np.array([0, 1]), TypeError)],
)
def test_masks_that_could_mean_two_things(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"attn_mask: .*could mean 'may attend' or 'add to the scores'"):
        mask("attn_mask", value)


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
def test_a_bias_of_0s_and_1s_is_sent_with_a_warning(ask: Ask, service_url: str, dtype: Any) -> None:
    """It is told at the line of the call: such a bias is legal, and hardly ever meant."""
    bias, ones = np.tri(3).astype(dtype), np.ones((3, 1))
    with pytest.warns(UserWarning, match=r"added to the scores.*give bool") as caught:
        result = ask(service_url, "attention", ones, ones, ones, attn_mask=bias)
    assert [warning.filename for warning in caught] == [conftest.__file__]  # which calls the client
    np.testing.assert_allclose(result.weights[0], np.exp([1, 0, 0]) / (np.e + 2))


def test_options_become_json() -> None:
    value = {"heads": np.array([1, 2]), "k": (np.int32(3), range(2)), "all": "all", "no": None}
    assert plain(value) == {"heads": [1, 2], "k": [3, [0, 1]], "all": "all", "no": None}


# --- Integers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 2], "int64"),
        ([], "int64"),
        ([[], []], "int64"),
        (range(3), "int64"),
        (np.array([1, 2], np.int32), "int32"),
        (np.array([1, 2], np.uint8), "int64"),
        (np.array([1, 2], np.uint64), "int64"),
        (Foreign(np.array([1])), "int64"),
    ],
)
def test_integers(value: Any, dtype: str) -> None:
    array = integers("key_document_ids", value)
    assert array.dtype.name == dtype
    np.testing.assert_array_equal(array, np.asarray(getattr(value, "_array", value)))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0], TypeError, "is an array of float64, which is not taken; give integers"),
        (np.ones(0), TypeError, "give integers"),
        ([True], TypeError, "holds true and false; give integers"),
        (["a"], TypeError, "give integers"),
        ([[1], [1, 2]], ValueError, "cannot be made into an array"),
        (np.array([2**63], np.uint64), ValueError, "holds 9223372036854775808"),
    ],
)
def test_what_is_no_integers(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"ids: .*{message}"):
        integers("ids", value)
