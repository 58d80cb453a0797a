"""The engine under what users do to it, long: `python bench/stress_engine.py` (`make stress`).

    --disconnects 1000   clients of tiny-instruct that leave at a random moment: while they wait,
                         during the prompt, between tokens, at the end. Blocks, places and every
                         other trace must be gone within a second.
    --preemptions 1000   requests paused because the cache is too small: nobody's output changes.
    --pairs 10000        a poisonous request beside a victim: logits that are not finite, ids out of
                         the vocabulary, extreme parameters, failing forwards, aborts, deadlines.
                         The victim's greedy output and log-probabilities are those it has alone.

Ends with code 1 and the first difference when something is wrong; `--seed` repeats a run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor

from qwenkit.config import ModelConfig
from qwenkit.engine import Engine, Request, RequestOutput, SamplingParams
from qwenkit.errors import RequestError
from qwenkit.llm import LLM
from qwenkit.model.batch import Batch
from qwenkit.model.load import init_model
from qwenkit.model.qwen import Qwen
from qwenkit.ops import cpu

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.3,
    tie_word_embeddings=False,
    torch_dtype="float32",
)
NAN, BOOM = 126, 127
"""Tokens that no victim has: one has nan as its embedding, at the other the forward raises."""
Outputs = dict[str, list[RequestOutput]]


class Fragile(Qwen):
    """A random model that fails at `BOOM`."""

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        if bool((batch.input_ids == BOOM).any()):
            raise RuntimeError("a kernel failed")
        return super().forward(batch, rows)


def fragile() -> Qwen:
    model = init_model(CONFIG, seed=1)
    model.__class__ = Fragile
    with torch.no_grad():
        model.model.embed_tokens.weight[NAN] = torch.nan
    return model.eval()


def drain(engine: Engine) -> Outputs:
    outputs: Outputs = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


def told(outputs: list[RequestOutput]) -> tuple[Any, ...]:
    """All that a client hears, exactly."""
    ids = [token for output in outputs for token in output.new_ids]
    logprobs = [p for output in outputs for p in output.logprobs or []]
    return ids, logprobs, outputs[-1].finish_reason


def traces(engine: Engine) -> list[str]:
    """What an engine without work still holds on to."""
    s = engine.scheduler
    held = {
        "blocks": s.pool.num_blocks - s.pool.num_free,
        "running": len(s.running),
        "waiting": len(s.waiting),
        "paused": len(s.paused),
        "table rows": len(engine.runner._rows),
        "seen": len(engine.sampler._seen),
        "seeds": len(engine.sampler._seeds),
        "requests": len(engine._requests),
        "underway": len(s._underway),
        "tenants": len(s.waiting._active) + len(s.waiting._served) + len(s.waiting._queues),
    }
    return [f"{count} {name}" for name, count in held.items() if count]


def check(good: bool, text: str) -> None:
    if not good:
        print(f"FAILED: {text}")
        sys.exit(1)


# Clients that leave


async def visit(llm: LLM, rng: random.Random) -> str:
    """Ask something and leave after a random time, or stay to the end."""
    question = "Count. " + "one two three " * rng.choice((1, 1, 10, 40))
    sampling: Any = {"max_tokens": rng.choice((1, 20, 80)), "temperature": 1.0}
    enough = rng.choice((1, 2, 10, 40, 1000))
    pieces = 0

    async def listen() -> None:
        nonlocal pieces
        answer = llm.astream(question, tenant=rng.choice("abc"), ignore_eos=True, **sampling)
        async with aclosing(answer) as deltas:
            async for _ in deltas:
                pieces += 1
                if pieces == enough:
                    return

    task = asyncio.create_task(listen())
    patience = rng.choice((0.0, 0.05, 1.0, 60.0, 600.0)) * rng.random()
    done, _ = await asyncio.wait({task}, timeout=patience)
    if done:
        await task
        return "left while decoding" if pieces == enough else "stayed"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return "left while decoding" if pieces else "left before the first token"


def disconnects(count: int, seed: int) -> None:
    rng, began = random.Random(seed), time.perf_counter()
    llm = LLM("tiny-instruct", kv_bytes=1 << 20, max_sequences=12, max_batch_tokens=64)
    engine, question = llm.driver.engine, "What is 12 + 30?"
    before = llm.chat(question, temperature=0.0).text

    async def all_of_them() -> list[str]:
        gate = asyncio.Semaphore(24)

        async def one() -> str:
            async with gate:
                return await visit(llm, rng)

        return await asyncio.gather(*(one() for _ in range(count)))

    ends = asyncio.run(all_of_them())
    limit = time.monotonic() + 1.0
    while time.monotonic() < limit and (engine.has_work or llm.driver._open):
        time.sleep(0.005)
    left = traces(engine) + [f"{len(llm.driver._open)} open"] * bool(llm.driver._open)
    check(not left, f"after {count} visits the engine still holds {', '.join(left)}")
    check(llm.chat(question, temperature=0.0).text == before, "the answer has changed")
    kinds = {end: ends.count(end) for end in sorted(set(ends))}
    paused = engine.stats().preemptions
    llm.close()
    print(
        f"{count} visits in {time.perf_counter() - began:.0f} s, {paused} pauses: {kinds}",
        flush=True,
    )


# Pauses


def preemptions(count: int, seed: int) -> None:
    rng, began, model = random.Random(seed), time.perf_counter(), fragile()
    wide = Engine(model, num_blocks=600, block_size=4, deterministic=cpu.available())
    paused = compared = 0
    while paused < count:
        requests = [
            (
                [rng.randrange(120) for _ in range(rng.randint(1, 60))],
                SamplingParams(
                    max_tokens=rng.randint(1, 60),
                    temperature=rng.choice((0.0, 1.0)),
                    seed=rng.randrange(100),
                    repetition_penalty=rng.choice((1.0, 1.2)),
                    logprobs=2,
                ),
            )
            for _ in range(10)
        ]
        narrow = Engine(
            model,
            num_blocks=rng.randint(30, 50),
            block_size=4,
            max_batch_tokens=rng.choice((16, 64)),
            max_sequences=10,
            prefix_cache=rng.random() < 0.5,
            deterministic=cpu.available(),
        )
        found = []
        for engine in (wide, narrow):
            for i, (ids, params) in enumerate(requests):
                engine.add(Request(str(i), ids, params))
            outputs = drain(engine)
            check(not traces(engine), f"the engine still holds {traces(engine)}")
            found.append([told(outputs[str(i)]) for i in range(10)])
        check(found[0] == found[1], f"pauses changed an output (seed {seed}, pause {paused})")
        paused += narrow.stats().preemptions
        compared += 10
    print(
        f"{paused} pauses in {time.perf_counter() - began:.0f} s, {compared} outputs unchanged",
        flush=True,
    )


# Poison


def poisons(rng: random.Random, shared: list[int]) -> tuple[str, list[int], dict[str, Any]]:
    """A request that may hurt: its kind, its prompt, and its parameters."""
    ids = shared + [rng.randrange(120) for _ in range(rng.randint(1, 20))]
    at = rng.randrange(len(shared), len(ids))
    kind = rng.choice(("nan", "boom", "wild id", "extreme", "abort", "late", "plain"))
    params: dict[str, Any] = {"max_tokens": rng.randint(1, 30), "seed": rng.randrange(9)}
    if kind == "nan":
        ids[at] = NAN
    elif kind == "boom":
        ids[at] = BOOM
    elif kind == "wild id":
        ids[at] = rng.choice((128, 151936, -1, 2**31, 2**63))
    elif kind == "extreme":
        params |= {
            "temperature": rng.choice((0.0, 1e-5, 100.0)),
            "top_p": rng.choice((1e-9, 1.0)),
            "min_p": rng.choice((0.0, 1.0)),
            "top_k": rng.choice((-1, 1, 10**9)),
            "repetition_penalty": rng.choice((0.01, 100.0)),
            "presence_penalty": rng.choice((-2.0, 2.0)),
            "frequency_penalty": rng.choice((-2.0, 2.0)),
            "logit_bias": {t: rng.choice((-100.0, 100.0)) for t in range(rng.randrange(120))},
            "logprobs": rng.choice((None, 0, 20)),
        }
        params["min_tokens"] = rng.randint(0, params["max_tokens"])
        params["stop_token_ids"] = tuple(range(rng.randrange(60)))
    return kind, ids, params


def pair(engine: Engine, rng: random.Random, victim: Request, shared: list[int]) -> tuple[str, Any]:
    """Run the two together; the kind of poison and what the victim was told."""
    kind, ids, params = poisons(rng, shared)
    deadline = 0.0 if kind == "late" else None
    poison = Request("poison", ids, SamplingParams(**params), deadline=deadline)
    outputs: Outputs = {}
    order = [poison, victim] if rng.random() < 0.5 else [victim, poison]
    for request in order:
        if request is victim:
            for _ in range(rng.choice((0, 0, 1, 5))):
                for output in engine.step():
                    outputs.setdefault(output.id, []).append(output)
        try:
            engine.add(request)
        except RequestError:
            check(kind == "wild id" and request is poison, f"{kind} was refused")
    if kind == "abort":
        for _ in range(rng.randrange(12)):
            for output in engine.step():
                outputs.setdefault(output.id, []).append(output)
        engine.abort("poison")
    for name, more in drain(engine).items():
        outputs.setdefault(name, []).extend(more)
    if kind in ("nan", "boom", "late"):
        check(outputs["poison"][-1].finish_reason == "error", f"{kind} did not end with an error")
    return kind, told(outputs["victim"])


def pairs(count: int, seed: int) -> None:
    rng, began, model = random.Random(seed), time.perf_counter(), fragile()
    options: dict[str, Any] = {"block_size": 4, "deterministic": cpu.available()}
    alone = Engine(model, num_blocks=100, prefix_cache=False, **options)
    kinds: dict[str, int] = {}
    engine = Engine(model, num_blocks=100, **options)
    for number in range(count):
        if number % 500 == 0:  # other sizes, and a cache without the past
            blocks = rng.choice((24, 100))
            tokens = rng.choice((8, 64))
            engine = Engine(
                model, num_blocks=blocks, max_batch_tokens=tokens, max_sequences=4, **options
            )
        shared = [rng.randrange(120) for _ in range(rng.choice((0, 0, 9, 17)))]
        own = [rng.randrange(120) for _ in range(rng.randint(1, 12))]
        bias = {NAN: -100.0, BOOM: -100.0}
        params = SamplingParams(max_tokens=rng.randint(1, 16), logprobs=3, logit_bias=bias)
        alone.add(Request("victim", shared + own, params))
        expected = told(drain(alone)["victim"])
        kind, found = pair(engine, rng, Request("victim", shared + own, params), shared)
        check(found == expected, f"pair {number} (seed {seed}): {kind} changed the victim's output")
        check(not traces(engine), f"pair {number}: {kind} left {traces(engine)}")
        kinds[kind] = kinds.get(kind, 0) + 1
    print(f"{count} pairs in {time.perf_counter() - began:.0f} s, every victim unharmed: {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--preemptions", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("qwenkit.engine").setLevel(logging.CRITICAL)  # failures are what is asked for
    if options.disconnects:
        disconnects(options.disconnects, options.seed)
    torch.set_num_threads(1)  # toy matrices are slower on two
    if options.preemptions:
        preemptions(options.preemptions, options.seed)
    if options.pairs:
        pairs(options.pairs, options.seed)


if __name__ == "__main__":
    main()
