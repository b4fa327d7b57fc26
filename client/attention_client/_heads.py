"""Which of the returned layers, heads or batch elements are drawn: their place and their name."""

from __future__ import annotations

from collections.abc import Sequence


def place(name: str, index: int | None, count: int, numbers: Sequence[int] = ()) -> slice:
    """Where one of an axis lies in it, or all.

    Args:
        name: what the axis counts, such as ``layer``.
        index: which of those returned; negative counts from the last, None is all of them.
        count: how many were returned.
        numbers: their numbers in the model, where these are known.

    Raises:
        IndexError: not so many were returned.
    """
    if index is None:
        return slice(None)
    if not -count <= index < count:
        message = f"{name} {index}: {count} were returned, 0 to {count - 1}"
        if len(numbers) == count and list(numbers) != list(range(count)):
            message += f"; in the model they are {list(numbers)}"
        if len(numbers) == count and index in numbers:
            message += f": give {numbers.index(index)} for {name} {index}"
        raise IndexError(message)
    return slice(index % count, index % count + 1)


def named(name: str, index: int | None, numbers: Sequence[int]) -> str:
    """What is drawn of an axis: one, by its number in the model, or the mean of all."""
    if index is None and len(numbers) > 1:
        return f"mean of {len(numbers)} {name}s"
    return f"{name} {numbers[index or 0]}"
