"""`/v1/embeddings` through the official client against a real server."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from qwenkit.llm import LLM
from qwenkit.model.batch import Batch

MODEL = "tiny-instruct"


@pytest.fixture(scope="module")
def api(live: Any, client_for: Callable[..., OpenAI]) -> OpenAI:
    return client_for(live)


def test_a_text_some_texts_and_ids(api: OpenAI, tiny: LLM) -> None:
    """The official client asks for base64 by itself, and gives numbers."""
    texts = ["What is 12 + 30?", "你好", "What is 12 + 31?"]
    many = api.embeddings.create(model=MODEL, input=texts)
    assert [each.index for each in many.data] == [0, 1, 2] and many.model == MODEL
    assert many.usage.prompt_tokens == many.usage.total_tokens
    assert many.usage.prompt_tokens == sum(len(tiny.tokenize(text)) for text in texts)
    ids = [tiny.tokenize(text) for text in texts]
    lists = api.embeddings.create(model=MODEL, input=ids, encoding_format="float")
    alone = api.embeddings.create(model=MODEL, input=texts[0])
    row = api.embeddings.create(model=MODEL, input=ids[0])
    for one, other in zip(many.data, lists.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert alone.data[0].embedding == pytest.approx(many.data[0].embedding, abs=0.02)
    assert row.data[0].embedding == alone.data[0].embedding
    with torch.no_grad():
        direct = tiny.model.hidden(Batch.from_sequences([ids[0]]))[-1].float()
    wanted = (direct / direct.norm()).tolist()
    assert alone.data[0].embedding == pytest.approx(wanted, abs=0.02)


def test_pooling_dimensions_and_base64(api: OpenAI) -> None:
    mean = api.embeddings.create(model=MODEL, input="a b c", extra_body={"pooling": "mean"})
    last = api.embeddings.create(model=MODEL, input="a b c", extra_body={"pooling": "last"})
    assert mean.data[0].embedding != last.data[0].embedding
    short = api.embeddings.create(model=MODEL, input="a b c", dimensions=16)
    vector = short.data[0].embedding
    assert len(vector) == 16 and sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    raw: Any = api.embeddings.create(model=MODEL, input="a b c", encoding_format="base64")
    packed = base64.b64decode(raw.data[0].embedding)
    numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
    assert list(numbers) == pytest.approx(last.data[0].embedding)


@pytest.mark.parametrize(
    ("wish", "param", "code"),
    [
        ({"input": ""}, "input", "empty_array"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["a", ""]}, "input", "empty_array"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": [1.5]}, "input[0]", "invalid_type"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": {"a": 1}}, "input", "invalid_type"),
        ({"input": [[10**9]]}, "input", "invalid_value"),
        ({"input": [[1], [-1]]}, "input[1]", "invalid_value"),
        ({"input": "x " * 40_000}, "input", "context_length_exceeded"),
        ({"input": "x" * 4_000_000}, "input", "context_length_exceeded"),
        ({"input": [[1] * 2049]}, "input", "context_length_exceeded"),
        ({"input": [[1] * 2048] * 147}, "input", "array_above_max_length"),
        ({"input": ["word " * 1000] * 400}, "input", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"input": "a", "dimensions": 60_000}, "dimensions", "invalid_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"input": "a", "extra_body": {"pooling": "max"}}, "pooling", "invalid_value"),
        ({"input": "a", "user": "x" * 513}, "user", "string_above_max_length"),
        ({"input": "a", "extra_body": {"nonsense": 1}}, "nonsense", "unknown_parameter"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_wrong_is_a_bad_request(
    api: OpenAI, wish: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.embeddings.create(model=MODEL, **wish)
    assert (caught.value.param, caught.value.code) == (param, code), caught.value.message


def test_an_unknown_model(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.embeddings.create(model="other", input="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
