"""Damage for files, the same for the same seed: of their bytes, and of the values in JSON that stays JSON."""

import json
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]


def _place(content: bytes, draw: random.Random) -> int:
    return draw.randrange(len(content)) if content else 0


def flip(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 4, 64))):
        if damaged:
            damaged[_place(content, draw)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: _place(content, draw)]


def insert(content: bytes, draw: random.Random) -> bytes:
    place = _place(content, draw)
    return content[:place] + draw.randbytes(draw.choice((1, 2, 8, 100))) + content[place:]


def remove(content: bytes, draw: random.Random) -> bytes:
    place = _place(content, draw)
    return content[:place] + content[place + draw.choice((1, 2, 8, 100)) :]


def repeat(content: bytes, draw: random.Random) -> bytes:
    first, last = sorted((_place(content, draw), _place(content, draw)))
    return content[:last] + content[first:]


def overwrite(content: bytes, draw: random.Random) -> bytes:
    place, length = _place(content, draw), draw.choice((1, 2, 4, 8, 64))
    fill = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"9", draw.randbytes(1)))
    return content[:place] + (fill * length)[: len(content) - place] + content[place + length :]


def replace(content: bytes, draw: random.Random) -> bytes:
    length = len(content)
    whole = (b"", b"\0" * length, b"\xff" * 16, b"[" * 200_000, b'{"a":' * 200_000, b"null", b"[]", b"{}", b'""', b"7",
             b"\xef\xbb\xbf" + content, content.decode("latin-1").encode("utf-16"), draw.randbytes(min(length, 999)),
             content * 2, b"\n" + content, content + b"\n{")  # fmt: skip
    return draw.choice(whole)


BYTES: tuple[Mutation, ...] = (flip, flip, cut, insert, remove, repeat, overwrite, replace)

# What a value is replaced with, as JSON text.
TEXTS = (
    *("null", "true", "false", "0", "1", "-1", "7", "0.5", "-0.0", "1e308", "1e400", "-1e400", "NaN", "Infinity"),
    *("9007199254740993", "18446744073709551616", "1" * 400, "1" * 5000, '""', '"x"', '"7"', '"\\ud800"', '"\\u0000"'),
    *('"../../x"', '"/"', "[]", "{}", "[[]]", "[1]", '["a"]', '{"a": 1}', "[null, null]", "[0.1, 0.2, 0.7]", "[3, 3]"),
    *("[" * 70 + "]" * 70, "[" * 990 + "]" * 990, '{"a":' * 900 + "1" + "}" * 900, '"' + "long " * 5000 + '"'),
)
NAMES = ("", "x", "items", "update", "__class__", "_fields", "a.b", "a/b", "é", "lock", "step", "config", "\\ud800")


def _paths(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in _paths(part, (*path, key)))]


def json_values(content: bytes, draw: random.Random) -> bytes:
    """Changes a JSON text at one place, with text of another value, and leaves it JSON for the most part."""
    tree = json.loads(content)
    path = draw.choice(_paths(tree))
    if not path:
        return draw.choice(TEXTS).encode()
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key, mark = path[-1], "MUTATED HERE"
    kind = draw.choice(("value", "value", "value", "number", "delete", "rename", "twice", "swap", "extra"))
    value = parent[key]
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = draw.choice((value + 1, -value, value * 10, value / 3, str(value), [value], value - 1))
        return json.dumps(tree).encode()
    if kind == "delete":
        del parent[key]
        return json.dumps(tree).encode()
    if kind == "swap":
        other = draw.choice([p for p in _paths(tree) if p])
        holder = tree
        for step in other[:-1]:
            holder = holder[step]
        if other[: len(path)] != path and path[: len(other)] != other:
            parent[key], holder[other[-1]] = holder[other[-1]], parent[key]
        return json.dumps(tree).encode()
    if kind in ("rename", "twice", "extra") and isinstance(parent, dict):
        name = draw.choice(NAMES)
        if kind == "rename":
            renamed = {name if k == key else k: v for k, v in parent.items()}
            parent.clear()
            parent.update(renamed)
            return json.dumps(tree).replace("\\\\ud800", "\\ud800").encode()
        if kind == "twice":
            parent[mark] = draw.choice((value, 1, None, "x"))
            return json.dumps(tree).replace(json.dumps(mark), json.dumps(key)).encode()
        parent[name] = draw.choice((1, "x", None, {}, []))
        return json.dumps(tree).replace("\\\\ud800", "\\ud800").encode()
    parent[key] = mark
    return json.dumps(tree).replace(json.dumps(mark), draw.choice(TEXTS), 1).encode()


def rows(content: bytes, draw: random.Random) -> bytes:
    """Changes one line of a `.jsonl` text, or the order or number of its lines."""
    lines = content.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    kind = draw.choice(("value", "value", "value", "value", "drop", "twice", "swap", "blank"))
    if kind == "value":
        lines[place] = json_values(lines[place], draw) + b"\n"
    elif kind == "drop":
        del lines[place]
    elif kind == "twice":
        lines.insert(place, lines[draw.randrange(len(lines))])
    elif kind == "swap":
        other = draw.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    else:
        lines.insert(place, b"\n")
    return b"".join(lines)


JSON: tuple[Mutation, ...] = (*BYTES, *(json_values,) * 8)
ROWS: tuple[Mutation, ...] = (*BYTES, *(rows,) * 8)


def mutated(content: bytes, kinds: tuple[Mutation, ...], seed: int) -> bytes:
    """Returns damaged content, other for each seed."""
    draw = random.Random(seed)
    return draw.choice(kinds)(content, draw)
