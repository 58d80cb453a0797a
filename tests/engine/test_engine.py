"""The engine against `transformers`, against itself in every batching, and with requests that go
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from qwenkit.engine import Engine, Request, RequestOutput, SamplingParams
from qwenkit.errors import ContextLengthError, OptionError, OutOfMemoryError, RequestError
from qwenkit.io.hub import ASSETS
from qwenkit.model.load import load_model
from qwenkit.model.qwen import Qwen
from qwenkit.prompt.tokenizer import Tokenizer

STEPS = 64
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
}
BATCHINGS: dict[str, dict[str, Any]] = {
    "together": {},
    "alone": {"max_sequences": 1},
    "chunked": {"max_batch_tokens": 7, "max_sequences": 3},
    "blocks of one": {"block_size": 1, "num_blocks": 1024},
    "crowded cache": {"block_size": 5, "num_blocks": 24},
}
Complete = Callable[..., list[list[int]]]
Drain = Callable[[Engine], dict[str, list[RequestOutput]]]


def oracle(model: Qwen) -> Qwen2ForCausalLM:
    values = {k: v for k, v in model.config.to_dict().items() if k != "torch_dtype"}
    reference = Qwen2ForCausalLM(Qwen2Config(**values, attn_implementation="eager"))
    reference.load_state_dict(model.state_dict(), strict=not model.config.tie_word_embeddings)
    return reference.eval()


def generate(reference: Qwen2ForCausalLM, ids: list[int], **options: Any) -> list[int]:
    prompt = torch.tensor([ids])
    out = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_transformers_in_every_batching(
    name: str, make_model: Callable[..., Qwen], make_prompts: Complete, complete: Complete
) -> None:
    model = make_model(**MODELS[name])
    prompts = make_prompts(8)
    reference = oracle(model)
    expected = [generate(reference, ids) for ids in prompts]
    assert len({tuple(ids[-8:]) for ids in expected}) > 4, (
        "a model that repeats itself proves little"
    )
    for batching, options in BATCHINGS.items():
        engine = Engine(model, **{"num_blocks": 256, **options})
        for memory in (*engine.cache.k, *engine.cache.v):
            memory.fill_(torch.nan)  # what nobody wrote must not be read
        tokens = complete(engine, prompts, SamplingParams(max_tokens=STEPS))
        assert tokens == expected, batching
        assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batching", BATCHINGS)
def test_cuda_writes_what_the_cpu_writes(
    batching: str, make_model: Callable[..., Qwen], make_prompts: Complete, complete: Complete
) -> None:
    prompts, model = make_prompts(8), make_model()
    rules: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": {3: -5.0}},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 5, "logprobs": 3},
        {"min_tokens": 30, "stop_token_ids": (1, 2, 3)},
    ]
    params = [SamplingParams(max_tokens=STEPS, **rules[i % 4]) for i in range(8)]
    options = {"num_blocks": 256, **BATCHINGS[batching]}
    expected = complete(Engine(model, **options), prompts, params)
    assert complete(Engine(make_model().cuda(), **options), prompts, params) == expected


def test_repetition_penalty_equals_transformers(
    model: Qwen, make_prompts: Complete, complete: Complete
) -> None:
    prompts = make_prompts(4)
    reference = oracle(model)
    expected = [generate(reference, ids, repetition_penalty=1.3) for ids in prompts]
    params = SamplingParams(max_tokens=STEPS, repetition_penalty=1.3)
    assert complete(Engine(model, num_blocks=64), prompts, params) == expected


def test_yarn_is_on_only_for_requests_that_need_it(
    make_model: Callable[..., Qwen], make_prompts: Complete, complete: Complete
) -> None:
    plain = make_model(max_position_embeddings=64)
    scaled = make_model(max_position_embeddings=64, rope_scaling=YARN)
    short, long = make_prompts(3, longest=20), make_prompts(3, longest=100, seed=5)
    params = [SamplingParams(max_tokens=20)] * 3 + [SamplingParams(max_tokens=100)] * 3
    together = complete(Engine(scaled, num_blocks=128), short + long, params)
    assert together[:3] == complete(Engine(plain, num_blocks=128), short, params[0])
    reference = oracle(scaled)
    for ids, tokens in zip(long, together[3:], strict=True):
        assert tokens[:STEPS] == generate(reference, ids)


def test_every_step_reports_each_token_once(model: Qwen, drain: Drain) -> None:
    engine = Engine(model, num_blocks=64)
    engine.add(Request("a", [5], SamplingParams(max_tokens=1)))
    engine.add(Request("b", [5, 6], SamplingParams(max_tokens=3)))
    outputs = drain(engine)
    assert [len(o.new_ids) for o in outputs["b"]] == [1, 1, 1]
    assert [o.finish_reason for o in outputs["b"]] == [None, None, "length"]
    assert [o.finish_reason for o in outputs["a"]] == ["length"]


def test_stop_ids_end_a_request_and_are_reported(
    model: Qwen, complete: Complete, drain: Drain
) -> None:
    engine = Engine(model, num_blocks=64)
    [free] = complete(engine, [[1, 2, 3]], SamplingParams(max_tokens=20))
    stop = free[4]
    first = free.index(stop)
    engine.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=20, stop_token_ids=(stop,))))
    outputs = drain(engine)["a"]
    assert [t for o in outputs for t in o.new_ids] == free[: first + 1]
    assert outputs[-1].finish_reason == "stop"
    params = SamplingParams(max_tokens=20, stop_token_ids=(stop,), min_tokens=8)
    [later] = complete(engine, [[1, 2, 3]], params)
    assert len(later) >= 8 and stop not in later[:7]


@pytest.mark.parametrize(
    ("ids", "changes", "param"),
    [
        ([], {}, "prompt"),
        ([128], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1.0], {}, "prompt"),
        ([True], {}, "prompt"),
        ([1], {"stop_token_ids": (128,)}, "stop_token_ids"),
        ([1], {"logit_bias": {128: 1.0}}, "logit_bias"),
        ([1] * 200, {"max_tokens": 57}, "prompt"),
    ],
)
def test_bad_requests_are_refused_and_leave_no_trace(
    model: Qwen, ids: list[Any], changes: dict[str, Any], param: str
) -> None:
    engine = Engine(model, num_blocks=64)
    with pytest.raises(RequestError) as caught:
        engine.add(Request("a", ids, SamplingParams(**{"max_tokens": 4, **changes})))
    assert caught.value.param == param
    assert not engine.has_work and engine.step() == []


def test_the_whole_context_can_be_used(model: Qwen, complete: Complete) -> None:
    engine = Engine(model, num_blocks=64)
    [tokens] = complete(engine, [[1] * 200], SamplingParams(max_tokens=56))
    assert len(tokens) == 56
    with pytest.raises(ContextLengthError, match="256 tokens.* 200 .* 57 "):
        engine.add(Request("a", [1] * 200, SamplingParams(max_tokens=57)))


def test_a_request_larger_than_the_cache_is_refused(model: Qwen) -> None:
    engine = Engine(model, num_blocks=4)
    engine.add(Request("fits", [1], SamplingParams(max_tokens=64)))
    with pytest.raises(RequestError, match="needs 65 tokens of cache, which holds 64") as caught:
        engine.add(Request("not", [1], SamplingParams(max_tokens=65)))
    assert caught.value.param == "max_tokens"


def test_an_id_is_used_once_at_a_time(model: Qwen, drain: Drain) -> None:
    engine = Engine(model, num_blocks=64)
    engine.add(Request("a", [1], SamplingParams(max_tokens=2)))
    with pytest.raises(RequestError, match="already running"):
        engine.add(Request("a", [1], SamplingParams(max_tokens=2)))
    drain(engine)
    engine.add(Request("a", [1], SamplingParams(max_tokens=2)))
    assert len(drain(engine)["a"]) == 2


def test_abort_is_idempotent_and_touches_nobody_else(
    model: Qwen, make_prompts: Complete, complete: Complete, drain: Drain
) -> None:
    prompts = make_prompts(3)
    expected = complete(Engine(model, num_blocks=64), prompts, SamplingParams(max_tokens=12))
    engine = Engine(model, num_blocks=64, max_sequences=2)
    for i, ids in enumerate(prompts):
        engine.add(Request(str(i), ids, SamplingParams(max_tokens=12)))
    before = [o for _ in range(3) for o in engine.step()]
    engine.abort("0")
    engine.abort("0")
    engine.abort("nobody")
    after = drain(engine)
    assert [o.finish_reason for o in after["0"]] == ["abort"]
    for i in (1, 2):
        mine = [o for o in before if o.id == str(i)] + after[str(i)]
        assert [t for o in mine for t in o.new_ids] == expected[i]
    assert engine.scheduler.pool.num_free == 64
    engine.abort("1")
    assert not engine.has_work


def test_nan_logits_end_their_request_alone(
    make_model: Callable[..., Qwen], make_prompts: Complete, complete: Complete, drain: Drain
) -> None:
    """The poison is a token with nan as embedding; its keys stay in the freed blocks."""
    model = make_model(tie_word_embeddings=False)
    prompts = [[t % 127 for t in ids] for ids in make_prompts(6)]
    params = SamplingParams(max_tokens=10, logit_bias={127: -100})
    expected = [complete(Engine(model, num_blocks=64), [ids], params)[0] for ids in prompts]
    with torch.no_grad():
        model.model.embed_tokens.weight[127] = torch.nan
    engine = Engine(model, num_blocks=12, block_size=8)
    for repeat in range(3):
        engine.add(Request("poison", [1, 2, 127, 3] * 4, params))
        for i, ids in enumerate(prompts):
            engine.add(Request(str(i), ids, params))
        outputs = drain(engine)
        assert [o.finish_reason for o in outputs["poison"]] == ["error"]
        assert "not finite" in str(outputs["poison"][0].error)
        for i, tokens in enumerate(expected):
            assert [t for o in outputs[str(i)] for t in o.new_ids] == tokens, (repeat, i)


def test_a_forward_that_raises_ends_the_guilty_request_alone(
    model: Qwen,
    make_prompts: Complete,
    complete: Complete,
    drain: Drain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [[t % 127 for t in ids] for ids in make_prompts(4)]
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=3, logit_bias={127: -100})
    expected = complete(Engine(model, num_blocks=64), prompts, params)
    forward = Qwen.forward

    def failing(self: Qwen, batch: Any, rows: Any = None) -> torch.Tensor:
        if bool((batch.input_ids == 127).any()):
            raise RuntimeError("kernel\nfailed")
        return forward(self, batch, rows)

    monkeypatch.setattr(Qwen, "forward", failing)
    engine = Engine(model, num_blocks=64, max_batch_tokens=16, max_sequences=8)
    engine.add(
        Request("bad", [3] * 20 + [127] + [3] * 30, params)
    )  # fails in a chunk that does not sample
    for i, ids in enumerate(prompts):
        engine.add(Request(str(i), ids, params))
    outputs = drain(engine)
    assert [(o.finish_reason, o.error) for o in outputs["bad"]] == [
        ("error", "RuntimeError: kernel failed")
    ]
    for i, tokens in enumerate(expected):
        assert [t for o in outputs[str(i)] for t in o.new_ids] == tokens
    assert engine.scheduler.pool.num_free == 64


def test_pad_rows_of_the_vocabulary_are_never_drawn(
    model: Qwen, complete: Complete, drain: Drain
) -> None:
    engine = Engine(model, num_blocks=64, vocab_size=10)
    params = SamplingParams(max_tokens=40, temperature=5.0, seed=1, logprobs=20)
    engine.add(Request("a", [1], params))
    outputs = drain(engine)["a"]
    assert all(t < 10 for o in outputs for t in o.new_ids)
    assert all(i < 10 for o in outputs for p in o.logprobs or [] for i, _ in p.top)
    with pytest.raises(RequestError, match="from 0 to 9"):
        engine.add(Request("b", [10], params))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_model_len", 257),
        ("max_model_len", 0),
        ("block_size", 0),
        ("kv_bytes", 0),
        ("num_blocks", -1),
        ("max_sequences", 0),
        ("max_sequences", 513),
        ("kv_dtype", "int3"),
    ],
)
def test_options_out_of_range_are_named(model: Qwen, name: str, value: int) -> None:
    with pytest.raises(OptionError, match=f"{name} is {value!r}"):
        Engine(model, **{name: value})  # type: ignore[arg-type]


def test_the_cache_is_sized_by_bytes_or_by_blocks(model: Qwen) -> None:
    per_block = model.config.kv_bytes_per_token(4) * 16
    engine = Engine(model, kv_bytes=per_block * 5 + 1)
    assert engine.cache_tokens == 80 and engine.cache.num_bytes == per_block * 5
    assert Engine(model, max_sequences=3, max_batch_tokens=8).cache_tokens == 3 * 256
    assert (
        Engine(model, max_sequences=3, max_batch_tokens=8, max_model_len=20).cache_tokens == 3 * 32
    )
    with pytest.raises(OutOfMemoryError, match="kv_bytes"):
        Engine(model, kv_bytes=per_block - 1)


def test_cached_beginnings_change_nothing_but_the_work(
    model: Qwen, make_prompts: Complete, drain: Drain
) -> None:
    """Conversations that grow out of one system prompt, of two tenants, in a cache that is too
    small to keep everything.
    """
    system = [7] * 21
    prompts = [system + ids for ids in make_prompts(10, longest=30)]
    prompts += [ids + [1, 2, 3] for ids in prompts]
    params = SamplingParams(max_tokens=8, temperature=0.8, seed=4)

    def run(prefix_cache: bool, num_blocks: int) -> tuple[list[list[int]], list[int]]:
        engine = Engine(
            model,
            num_blocks=num_blocks,
            block_size=4,
            max_batch_tokens=24,
            max_sequences=3,
            prefix_cache=prefix_cache,
        )
        for i, ids in enumerate(prompts):
            engine.add(Request(str(i), ids, params, tenant=str(i % 2)))
        outputs = drain(engine)
        assert engine.stats().kv_usage == 0
        tokens = [[t for o in outputs[str(i)] for t in o.new_ids] for i in range(20)]
        cached = [outputs[str(i)][-1].num_cached for i in range(20)]
        assert engine.stats().cached_tokens == sum(cached)
        return tokens, cached

    expected, none = run(False, 200)
    assert not any(none)
    for num_blocks in (200, 24):
        tokens, cached = run(True, num_blocks)
        assert tokens == expected
        if num_blocks == 200:
            assert cached[:2] == [0, 0] and all(c >= 20 for c in cached[2:]), cached
        assert all(c % 4 == 0 and c < len(ids) for c, ids in zip(cached, prompts, strict=True))


def test_new_weights_and_forgotten_beginnings(
    make_model: Callable[..., Qwen], complete: Complete
) -> None:
    model, prompt, params = make_model(), [[5] * 40], SamplingParams(max_tokens=10)
    engine = Engine(model, num_blocks=64)
    before = complete(engine, prompt, params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.1)
    engine.forget_prefixes()
    after = complete(engine, prompt, params)
    assert after == complete(Engine(model, num_blocks=64), prompt, params) != before


def test_too_small_a_cache_pauses_requests_and_changes_nothing(
    model: Qwen, make_prompts: Complete, complete: Complete
) -> None:
    prompts = make_prompts(8)
    rules: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    ]
    params = [SamplingParams(max_tokens=60, **rules[i % 2]) for i in range(8)]
    expected = complete(Engine(model, num_blocks=256), prompts, params)
    for prefix_cache in (True, False):
        engine = Engine(model, block_size=4, num_blocks=30, prefix_cache=prefix_cache)
        assert complete(engine, prompts, params) == expected
        assert engine.stats().preemptions > 10
        assert engine.stats().kv_usage == 0 and not engine.runner._rows


def test_an_int8_cache_answers_like_a_wide_one(complete: Complete) -> None:
    """tiny-instruct goes on with its own training text; the same text is expected but for a few
    tokens, and half the memory.
    """
    model = load_model(ASSETS / "tiny-instruct", "float32", "cpu")
    tokenizer = Tokenizer.from_dir(ASSETS / "tiny-instruct")
    texts = ["What is 123 + 456?", "Who are you?", "你是谁？", "Translate to French: good morning"]
    texts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in texts]
    prompts = [tokenizer.encode(text, allow_special=True) for text in texts]
    wide = Engine(model, num_blocks=64)
    narrow = Engine(model, num_blocks=64, kv_dtype="int8")
    assert narrow.cache.num_bytes < 0.3 * wide.cache.num_bytes
    expected = complete(wide, prompts, SamplingParams(max_tokens=30))
    found = complete(narrow, prompts, SamplingParams(max_tokens=30))
    same = sum(
        a == b for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert same >= 0.9 * 120, (found, expected)


def test_stats_count_what_happens(model: Qwen, drain: Drain) -> None:
    engine = Engine(model, num_blocks=10, block_size=4, max_sequences=1)
    for name in "ab":
        engine.add(Request(name, [1] * 9, SamplingParams(max_tokens=5)))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage) == (1, 1, 0.3)
    drain(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage, stats.preemptions) == (0, 0, 0, 0)
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generation_tokens) == (18, 8, 10)
