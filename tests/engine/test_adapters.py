"""Requests with adapters: several in a batch, each as alone; the others as if there were none."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.io.hub import ASSETS
from qwenkit.model.adapter import read_adapter
from qwenkit.model.load import load_model
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare

Make = Callable[..., Adapter]
Logits = dict[str, list[Tensor]]
KINDS = ("float32", "bfloat16", "int4", "int8")


def tiny_of(kind: str) -> Qwen:
    packed = kind.startswith("int")
    dtype, quantize = ("auto", kind) if packed else (kind, None)
    model = load_model(ASSETS / "tiny-instruct", dtype, quantize=quantize)
    prepare(model)
    return model


@pytest.fixture(scope="module")
def make_adapter(
    tmp_path_factory: pytest.TempPathFactory, write_adapter: Callable[..., Path]
) -> Make:
    """make_adapter(model, seed, **settings) → a random adapter of it."""

    def make(model: Qwen, seed: int, **settings: Any) -> Adapter:
        folder = tmp_path_factory.mktemp("adapter")
        size = 0.3 if model.config.hidden_size == 32 else 0.05
        settings = {"size": size, "seed": seed, **settings}
        return read_adapter(write_adapter(folder, model.config, **settings), model)

    return make


def record(engine: Engine, requests: list[Request]) -> Logits:
    """Run them all at once; the logits behind every token of each."""
    found: Logits = {request.id: [] for request in requests}
    forward = engine.runner.forward

    def recording(plan: Any) -> Tensor:
        logits = forward(plan)
        counts = [1 + len(span.drafts) for span in plan.spans if span.samples]
        for request, rows in zip(plan.sampling, torch.split(logits, counts), strict=True):
            found[request.id] += rows.clone()
        return logits

    engine.runner.forward = recording  # type: ignore[method-assign]
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
    engine.runner.forward = forward  # type: ignore[method-assign]
    assert all(r.finish_reason == "length" for r in requests)
    return found


def requests_of(vocab: int, adapters: list[Adapter | None], count: int = 9) -> list[Request]:
    """In turn with each of the adapters, prompts of 1 to 60 tokens."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(count):
        ids = torch.randint(0, vocab, (1 + 7 * i,), generator=generator).tolist()
        params = SamplingParams(max_tokens=12)
        made.append(Request(str(i), ids, params, adapter=adapters[i % len(adapters)]))
    return made


def again(request: Request, **changes: Any) -> Request:
    return Request(request.id, request.prompt_ids, request.params, **changes)


def ids(requests: list[Request]) -> list[list[int]]:
    return [request.token_ids[request.num_prompt :] for request in requests]


@pytest.mark.parametrize("kind", KINDS)
def test_in_one_batch_each_is_as_alone(kind: str, make_adapter: Make) -> None:
    """In the deterministic mode to the same bits, those without an adapter too."""
    model = tiny_of(kind)
    adapters = [None, make_adapter(model, 1, rank=8), make_adapter(model, 2, targets=["v_proj"])]
    requests = requests_of(1000, adapters)
    options: dict[str, Any] = {"kv_bytes": 8 << 20, "deterministic": True, "max_batch_tokens": 64}
    mixed = record(Engine(model, **options), requests)
    for request in requests:
        alone = again(request, adapter=request.adapter)
        found = record(Engine(model, **options), [alone])
        assert alone.token_ids == request.token_ids
        for one, other in zip(found[request.id], mixed[request.id], strict=True):
            assert torch.equal(one, other)
        if request.adapter is not None:
            plain = record(Engine(model, **options), [again(request)])
            assert (plain[request.id][0] - found[request.id][0]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_no_adapter_does_not_notice_those_of_others(kind: str, make_adapter: Make) -> None:
    """To the same bits, in the ordinary mode: beside others with adapters, or without."""
    model = tiny_of(kind)
    assert model.fused
    first, second = make_adapter(model, 1), make_adapter(model, 2)
    ours = requests_of(1000, [None], 3)
    found = []
    for adapters in ([None], [first, second]):
        # Those beside them come and go at the same steps.
        others = requests_of(1000, adapters, 6)
        for i, other in enumerate(others):
            other.id = f"other {i}"
        mine = [again(request) for request in ours]
        logits = record(Engine(model, kv_bytes=8 << 20), [*others[:3], *mine, *others[3:]])
        found.append((ids(mine), {request.id: logits[request.id] for request in mine}))
    assert found[0][0] == found[1][0]
    for name, rows in found[0][1].items():
        assert all(map(torch.equal, rows, found[1][1][name]))


def test_toy_models_without_kernels(make_model: Callable[..., Qwen], make_adapter: Make) -> None:
    """Not fused: one forward for all."""
    model = make_model(tie_word_embeddings=False)
    adapters = [None, make_adapter(model, 1), make_adapter(model, 2)]
    requests = requests_of(128, adapters, 6)
    engine = Engine(model, num_blocks=64, max_batch_tokens=16, max_sequences=8)
    mixed = record(engine, requests)
    for request in requests:
        alone = again(request, adapter=request.adapter)
        found = record(Engine(model, num_blocks=64), [alone])
        assert alone.token_ids == request.token_ids
        for one, other in zip(found[request.id], mixed[request.id], strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_no_cached_beginning_is_shared_between_adapters(
    make_model: Callable[..., Qwen], make_adapter: Make
) -> None:
    model = make_model()
    prompt = list(range(60))
    params = SamplingParams(max_tokens=4)
    first, second = make_adapter(model, 1), make_adapter(model, 2)
    same_file = make_adapter(model, 1)  # unloaded and loaded again, say
    engine = Engine(model, num_blocks=64)
    hits, texts = [], []
    for i, adapter in enumerate([None, first, second, same_file, None, first, second]):
        request = Request(str(i), prompt, params, adapter=adapter)
        record(engine, [request])
        hits.append(request.num_cached)
        texts.append(request.token_ids)
    assert hits == [0, 0, 0, 0, 48, 48, 48]
    assert texts[0] == texts[4] and texts[1] == texts[5] == texts[3] and texts[2] == texts[6]
    assert len({tuple(text) for text in texts}) == 3


def test_a_paused_request_goes_on_with_its_adapter(
    make_model: Callable[..., Qwen], make_adapter: Make
) -> None:
    model = make_model()
    adapters = [None, make_adapter(model, 1), make_adapter(model, 2)]
    requests = requests_of(128, adapters, 6)
    engine = Engine(model, num_blocks=9, block_size=8, prefix_cache=False, max_batch_tokens=32)
    record(engine, requests)
    assert engine.stats().preemptions > 0
    roomy = [again(request, adapter=request.adapter) for request in requests]
    record(Engine(model, num_blocks=64), roomy)
    assert ids(roomy) == ids(requests)


def test_the_stats_tell_whose_requests_run_and_wait(
    make_model: Callable[..., Qwen], make_adapter: Make, drain: Callable[[Engine], Any]
) -> None:
    model = make_model()
    first, second = make_adapter(model, 1), make_adapter(model, 2)
    engine = Engine(model, num_blocks=64, max_sequences=2)
    for request in requests_of(128, [None, first, second], 3):
        engine.add(request)
    assert engine.stats().waiting_adapters == {first.id, second.id}
    engine.step()
    stats = engine.stats()
    assert (stats.running_adapters, stats.waiting_adapters) == ({first.id}, {second.id})
    drain(engine)
    stats = engine.stats()
    assert not stats.running_adapters and not stats.waiting_adapters


@pytest.mark.parametrize("speculate", ["lookup", "draft"])
def test_guesses_change_nothing(
    make_model: Callable[..., Qwen], make_adapter: Make, speculate: Any
) -> None:
    model = make_model()
    adapters = [None, make_adapter(model, 1, size=0.1), make_adapter(model, 2, size=0.1)]
    plain = requests_of(128, adapters, 6)
    record(Engine(model, num_blocks=64), plain)
    # As the draft of itself it is often right for those without an adapter.
    draft = model if speculate == "draft" else None
    engine = Engine(model, num_blocks=64, speculate=speculate, draft_model=draft)
    guessed = [again(request, adapter=request.adapter) for request in plain]
    record(engine, guessed)
    assert ids(guessed) == ids(plain)
    assert sum(request.num_drafted for request in guessed) > 0


def test_an_adapter_goes_with_the_last_who_holds_it(
    make_model: Callable[..., Qwen], make_adapter: Make
) -> None:
    model = make_model()
    adapter = make_adapter(model, 1)
    engine = Engine(model, num_blocks=64)
    engine.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=5), adapter=adapter))
    held = weakref.ref(adapter)
    engine.step()
    del adapter
    gc.collect()
    assert held() is not None
    while engine.has_work:
        engine.step()
    gc.collect()
    assert held() is None


def test_one_that_does_not_fit_ends_its_own_request_alone(
    make_model: Callable[..., Qwen], make_adapter: Make
) -> None:
    model, other = make_model(), make_model(hidden_size=64)
    wrong = make_adapter(other, 1)
    engine = Engine(model, num_blocks=64)
    bad, good = requests_of(128, [wrong, None], 2)
    reasons = {}
    for request in (bad, good):
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            reasons[output.id] = output.finish_reason
    assert reasons == {bad.id: "error", good.id: "length"}


def test_rows_that_lie_apart(make_model: Callable[..., Qwen], make_adapter: Make) -> None:
    """A slice where the rows are together, else their numbers."""
    model = make_model()
    one, other = make_adapter(model, 1), make_adapter(model, 2)
    seen = []
    engine = Engine(model, num_blocks=64)
    build = engine.runner._batch

    def watching(spans: Any) -> Any:
        batch = build(spans)
        seen.append([r if isinstance(r, slice) else r.tolist() for r, _ in batch.adapters])
        return batch

    engine.runner._batch = watching  # type: ignore[method-assign]
    for i, adapter in enumerate([one, None, other, one, other]):
        params = dataclasses.replace(SamplingParams(), max_tokens=2)
        engine.add(Request(str(i), [i + 1, i + 2], params, adapter=adapter))
    while engine.has_work:
        engine.step()
    assert seen == [[[0, 1, 6, 7], [4, 5, 8, 9]], [[0, 3], [2, 4]]]
    engine.add(Request("a", [1, 2], SamplingParams(max_tokens=1), adapter=one))
    engine.step()
    assert seen[-1] == [slice(0, 2)]
