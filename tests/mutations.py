"""Damage to JSON files: of values and of bytes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        7,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\0",
        "9" * 400,
        "../m.png",
        "/m.png",
        "\ud800",
    ),
    *([], {}, [[]], [1, 2], [[1, 2], [3]], {"bbox": 1}, [None] * 4, ["a"] * 4),
]
_PIECES = [b"[[[[", b"{", b"NaN", b'"', b"\xff\xfe", b"\0", b",", b"1e999", b"-"]


def damaged(value: Any, rng: random.Random) -> bytes:
    """Return JSON in which some values are replaced, removed or repeated, or some bytes changed."""
    changed = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        _change(changed, rng)
    data = bytearray(json.dumps(changed).encode())
    if rng.random() < 0.2:
        place = rng.randrange(len(data))
        data[place : place + rng.randrange(9)] = rng.choice(_PIECES)
    return bytes(data)


def _change(value: Any, rng: random.Random) -> None:
    """Change one value in a list or object."""
    while True:
        places = [*value] if isinstance(value, dict) else [*range(len(value))]
        if not places:
            return
        place = rng.choice(places)
        if isinstance(value[place], list | dict) and value[place] and rng.random() < 0.8:
            value = value[place]
            continue
        match rng.randrange(4):
            case 0:
                del value[place]
            case 1 if isinstance(value, list):
                value.insert(rng.randrange(len(value) + 1), copy.deepcopy(value[place]))
            case _:
                value[place] = copy.deepcopy(rng.choice(ODD))
        return
