"""Reading JSON that may be damaged, or made to do harm: whatever is wrong with it is a ValueError, and nothing else.

Python's own reader lets a RecursionError through, takes the last of two entries of one name, and numbers of any length.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEPEST = 64  # objects and lists within one another
_LARGEST = 2**64  # no whole number in these files reaches it, and a float holds every smaller one


def parse(text: str | bytes, make: Callable[[list[tuple[str, Any]]], dict] = dict) -> Any:
    """Returns what a JSON text holds.

    Args:
        text: bytes are UTF-8.
        make: pairs of an object -> the dictionary, with every name of the pairs.

    Raises:
        ValueError: it is no JSON, no UTF-8, nested too deep, has a name twice in one object, a whole number of more
            than 64 bits, or half a character.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict:
        made = make(pairs)
        if len(made) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return made

    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=once, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    # Rows of metrics, of which there are many, need no second look.
    if "\\u" in text or text.count("[") + text.count("{") > DEEPEST:
        _check(value)
    return value


def read(path: Path) -> Any:
    """Returns what a JSON file holds; errors as of `parse`, and OSError."""
    return parse(path.read_bytes())


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value as JSON, whatever the order of the names in it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _whole_number(digits: str) -> int:
    number = int(digits)
    if abs(number) >= _LARGEST:
        raise ValueError(f"a whole number has {len(digits)} digits")
    return number


def _check(value: Any) -> None:
    """Raises ValueError for what is nested too deep, and for text with half of a surrogate pair, which nothing writes.

    A loop, since a function that calls itself would fail on just that.
    """
    left = [(value, 1)]
    while left:
        inner, depth = left.pop()
        if isinstance(inner, str):
            inner.encode()
        elif isinstance(inner, dict | list):
            if depth > DEEPEST:
                raise ValueError("it is nested too deep")
            parts = [*inner, *inner.values()] if isinstance(inner, dict) else inner
            left += [(part, depth + 1) for part in parts]
