"""Keys of blocks: whatever changes the content changes the key, and nothing else does."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from qwenkit.engine.prefix import extend_keys
from qwenkit.engine.request import Request, SamplingParams
from qwenkit.model.lora import Adapter

IDS = tuple(range(100, 112))
ONE, OTHER = Adapter([]), Adapter([])
RED, BLUE = hashlib.sha256(b"red").digest(), hashlib.sha256(b"blue").digest()


def keys(ids: tuple[int, ...] = IDS, scaled: bool = False, **changes: Any) -> list[bytes]:
    request = Request("a", ids, SamplingParams(), **changes)
    request.scaled = scaled
    return list(extend_keys(request, 4, len(ids) // 4))


def test_equal_requests_have_equal_keys_of_32_bytes() -> None:
    assert keys() == keys() and len(set(keys())) == 3
    assert {len(key) for key in keys()} == {32}
    assert keys(IDS[:8]) == keys()[:2]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"ids": (1, *IDS[1:])}, 0),
        ({"ids": (*IDS[:4], 1, *IDS[5:])}, 1),
        ({"ids": (*IDS[:11], 1)}, 2),
        ({"tenant": "b"}, 0),
        ({"adapter": ONE}, 0),
        ({"scaled": True}, 0),
        ({"media": ((5, RED),)}, 1),
    ],
)
def test_a_change_changes_every_key_from_there_on(change: dict[str, Any], first: int) -> None:
    same = [a == b for a, b in zip(keys(), keys(**change), strict=True)]
    assert same == [i < first for i in range(3)]


def test_neither_places_nor_names_can_be_confused() -> None:
    variants = [
        {"tenant": f"a{ONE.id}"},
        {"tenant": "a", "adapter": ONE},
        {"tenant": "a", "adapter": OTHER},
        {"adapter": ONE},
        {"tenant": str(ONE.id)},
        {"tenant": "a"},
        {"tenant": "\ud800"},
        {"media": ((1, RED),)},
        {"media": ((2, RED),)},
        {"media": ((1, BLUE),)},
        {"media": ((1, RED), (2, BLUE))},
        {"media": ((1, BLUE), (2, RED))},
    ]
    assert len({keys(**variant)[0] for variant in variants}) == len(variants)


def test_keys_grow_with_the_output() -> None:
    request = Request("a", IDS[:6], SamplingParams())
    assert len(extend_keys(request, 4, 1)) == 1
    request.token_ids += IDS[6:]
    assert list(extend_keys(request, 4, 3)) == keys()
    assert len(extend_keys(request, 4, 2)) == 2
