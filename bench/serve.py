"""The server beside its own engine, and beside llama.cpp's server where that has been built.

    python bench/serve.py [--model FOLDER] [--rounds 3] [--peer llama-server --gguf FILE]

    sixteen      16 clients at once, tokens/s together, over the same work in the engine alone; and
                 over llama.cpp's server with 16 places, which is to be given the same model as GGUF
    overhead     what server and scheduler add to a decode step of one sequence, in ms
    prefill      gaps of a stream while a prompt of 2,000 tokens comes in, over its usual gap
    prefix       time to the first token behind a system prompt of 1,000 tokens, first and second
    speculation  a text repeated with one word changed, with prompt lookup and without

One line for each goal; the exit code is 1 when one is missed. What is compared takes turns in one
run; medians over the rounds. The engine works in a process of its own, so both have the machine to
themselves in turn. The model of `speculation` has the shape of the other one, but its next token
depends on the last one only, so that it repeats exactly what it is made for (`repeater`); what
lookup brings to other answers is measured by bench/speculate.py. Not covered: GPUs, images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import checkpoint
from fuzz_api import KEY, toy_model
from goals import at_least, at_most, exactly, finish
from stress_server import Server, percentile

from qwenkit.config import ModelConfig
from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.engine.driver import leave_cores_to_kernels
from qwenkit.io.hub import resolve as find_model
from qwenkit.llm import LLM
from qwenkit.model.load import init_model, save_model
from qwenkit.options import ServeOptions, resolve
from qwenkit.server import run
from qwenkit.server.listen import listen

CLIENTS, PROMPT, WRITTEN = 16, 32, 64
REPEATED, CHANGED = 160, 70
"""Tokens of the text that is repeated, and which of them is changed."""
ALL = ["sixteen", "overhead", "prefill", "prefix", "speculation"]


def prompt(tokens: int, seed: int) -> list[int]:
    """Token ids that are no special ones, in every vocabulary."""
    chance = random.Random(seed)
    return [chance.randrange(300, 8000) for _ in range(tokens)]


def clocked(llm: LLM) -> dict[str, list[float]]:
    """From now on, in seconds: when each forward began, what it took, and the sampler after it."""
    spent: dict[str, list[float]] = {"start": [], "forward": [], "sample": []}
    forward = llm.model.forward

    def timed_forward(*what: Any) -> Any:
        began = time.perf_counter()
        found = forward(*what)
        spent["start"].append(began)
        spent["forward"].append(time.perf_counter() - began)
        spent["sample"].append(0.0)
        return found

    llm.model.forward = timed_forward  # type: ignore[assignment,method-assign]
    sampler = llm.driver.engine.sampler
    sample = sampler.sample

    def timed_sample(*what: Any) -> Any:
        began = time.perf_counter()
        found = sample(*what)
        spent["sample"][-1] = time.perf_counter() - began
        return found

    sampler.sample = timed_sample  # type: ignore[assignment,method-assign]
    return spent


# The engine alone, in a process of its own


def engine_work(model: str, quantize: str | None) -> None:
    """Reads lines of JSON, {"sequences", "prompt", "tokens"}; answers with seconds."""
    with LLM(model, quantize=quantize) as llm:
        if llm.model.fused:
            leave_cores_to_kernels()  # as the server's driver does
        spent = clocked(llm)
        print("ready", flush=True)
        for line in sys.stdin:
            wish = json.loads(line)
            print(json.dumps(_run(llm, spent, **wish)), flush=True)


def _run(
    llm: LLM, spent: dict[str, list[float]], tokens: int, prompts: list[list[int]]
) -> dict[str, float]:
    """One batch: seconds in all, and while decoding the medians of model and of sampler."""
    engine: Engine = llm.driver.engine
    for values in spent.values():
        values.clear()
    began = time.perf_counter()
    for number, ids in enumerate(prompts):
        engine.add(Request(str(number), ids, SamplingParams(max_tokens=tokens)))
    while engine.has_work:
        engine.step()
    whole = time.perf_counter() - began
    engine.forget_prefixes()
    half = len(spent["forward"]) // 2
    medians = {name: statistics.median(spent[name][half:]) for name in ("forward", "sample")}
    return {"seconds": whole, **medians}


class EngineAlone:
    """The process of `engine_work`."""

    def __init__(self, model: str, quantize: str | None) -> None:
        words = [sys.executable, __file__, "--model", model, "--engine-alone"]
        words += ["--quantize", quantize] if quantize else []
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(self, tokens: int, prompts: list[list[int]]) -> dict[str, float]:
        """See `_run`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"tokens": tokens, "prompts": prompts}) + "\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        self._process.communicate()


# A server that notes what the model takes


def served_work(model: str, quantize: str | None, notes: str) -> None:
    """`qwenkit serve` with a clock on model and sampler; when each step's forward began, and
    what forward and sampler took of it, go to a file.
    """
    flags = {"model": model, "port": 0, "served_model_name": ["m"], "log_level": "warning"}
    options = resolve(ServeOptions, {**flags, "quantize": quantize})
    listener = listen(options)
    llm = LLM(model, quantize=quantize)
    spent = clocked(llm)
    address = listener.getsockname()
    run.serve(llm, options, listener, lambda: print(f"http://x:{address[1]}/v1\n", flush=True))
    Path(notes).write_text(json.dumps(spent))


# Clients


def stream(
    port: int,
    wish: dict[str, Any],
    path: str = "/v1/completions",
    stop: threading.Event | None = None,
) -> tuple[list[float], bytes]:
    """Moments of the pieces of a streamed answer, the first entry is when it was asked; and the
    answer's bytes. Ends early when `stop` is set.

    As light as a client can be: it shares the cores with the server.
    """
    body = {"model": "m", "stream": True, "ignore_eos": True, "temperature": 0, **wish}
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    times, buffer, pieces = [time.perf_counter()], bytearray(1 << 16), list[bytes]()
    with socket.create_connection(("127.0.0.1", port), timeout=300) as sock:
        sock.sendall(head.encode() + data)
        tail = b""
        while b"data: [DONE]" not in tail and not (stop and stop.is_set()):
            count = sock.recv_into(buffer)
            now, piece = time.perf_counter(), bytes(buffer[:count])
            assert count and b'"error"' not in piece, piece[:500]
            times += [now] * piece.count(b"data: {")
            tail = tail[-16:] + piece
            pieces.append(piece)
    return times, b"".join(pieces)


def raw(ids: list[int], tokens: int) -> dict[str, Any]:
    """The wish for so many tokens behind a prompt."""
    return {"prompt": ids, "max_tokens": tokens}


def together(port: int, prompts: list[list[int]], tokens: int) -> float:
    """Seconds that clients at once take."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        for found in [pool.submit(stream, port, raw(ids, tokens)) for ids in prompts]:
            found.result()
    return time.perf_counter() - began


def gaps(times: list[float]) -> list[float]:
    """Seconds between tokens, without the last piece, which only ends the stream."""
    written = times[1:-1]
    return [later - earlier for earlier, later in zip(written, written[1:], strict=False)]


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A JSON answer."""
    head = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data = json.dumps({"model": "m", **body}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, head)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


class Peer:
    """llama.cpp's server with a place for each client."""

    def __init__(self, binary: str, gguf: str) -> None:
        words = [binary, "-m", gguf, "--port", "0", "-np", str(CLIENTS), "-c", str(CLIENTS * 512)]
        words += ["-t", str(os.cpu_count()), "--api-key", KEY]
        self.port = _free_port()
        words[words.index("--port") + 1] = str(self.port)
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                stream(self.port, raw([1000], 1))
                return
            except (OSError, AssertionError):
                time.sleep(0.1)
        raise SystemExit("the peer does not start")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# What is measured


def sixteen(server: Server, engine: EngineAlone, peer: Peer | None, rounds: int) -> None:
    """16 clients at once."""
    found: dict[str, list[float]] = {"server": [], "engine": [], "peer": []}
    for number in range(rounds + 1):
        prompts = [prompt(PROMPT, 100 * number + i) for i in range(CLIENTS)]
        alone = engine.run(WRITTEN, prompts)["seconds"]
        served = together(server.port, prompts, WRITTEN)
        other = together(peer.port, prompts, WRITTEN) if peer else 0.0
        if number:  # the first round warms up
            found["engine"].append(CLIENTS * WRITTEN / alone)
            found["server"].append(CLIENTS * WRITTEN / served)
            found["peer"] += [CLIENTS * WRITTEN / other] if peer else []
    rates = [f"{name} {statistics.median(all_):.1f}" for name, all_ in found.items() if all_]
    print(f"sixteen: tokens/s together: {', '.join(rates)}")
    at_least("sixteen: share of the engine's rate", over(found["server"], found["engine"]), 0.9)
    if peer:
        at_least("sixteen: llama.cpp's rate", over(found["server"], found["peer"]), 3, " ×")


def over(ours: list[float], others: list[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def overhead(model: str, quantize: str | None, tokens: int, rounds: int) -> None:
    """One sequence: the time from step to step that neither the model nor the sampler took. Shown
    besides: what a client, on the same cores, waits beyond what both take where nothing else runs;
    in that, what goes on beside the kernels counts: delivery, JSON, sockets, the client itself.
    """
    alone = EngineAlone(model, quantize)
    waits, least = list[float](), list[float]()
    with tempfile.NamedTemporaryFile("r") as notes:
        words = [sys.executable, __file__, "--model", model, "--served", notes.name]
        words += ["--quantize", quantize] if quantize else []
        server = Server(model, command=words)
        for number in range(rounds):
            ids = prompt(PROMPT, number)
            waits += gaps(stream(server.port, raw(ids, tokens))[0])
            found = alone.run(tokens, [ids])
            least.append(found["forward"] + found["sample"])
        server.end()
        spent = json.load(notes)
    alone.end()
    start = spent["start"]
    rest = [
        (later - began - forward - sample) * 1000
        for began, later, forward, sample in zip(
            start, start[1:], spent["forward"], spent["sample"], strict=False
        )
    ]
    forward, sample = (statistics.median(spent[part]) * 1000 for part in ("forward", "sample"))
    gap, both = statistics.median(waits) * 1000, statistics.median(least) * 1000
    name = Path(model).name
    print(f"overhead: {name}: model {forward:.3f} ms, sampler {sample:.3f} ms a token; ", end="")
    print(f"a client's gap {gap:.3f} ms, {gap - both:.3f} beyond what both take alone")
    at_most(f"overhead: server and scheduler, {name}", statistics.median(rest), 0.3, " ms a token")


def _interrupted(port: int, ids: list[int], long: list[int]) -> tuple[list[float], float]:
    """Gaps of a stream while a long prompt is read; and how long that took."""
    enough = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, port, raw(ids, 2000 - PROMPT), stop=enough)
        time.sleep(0.3)
        other = stream(port, raw(long, 1))[0]
        enough.set()
        times = running.result()[0]
    at = [number for number, moment in enumerate(times) if other[0] <= moment <= other[1]]
    assert at, "the stream had ended before"
    return gaps([0.0, *times[max(at[0] - 1, 1) : at[-1] + 2], 0.0]), other[1] - other[0]


def prefill(server: Server, rounds: int) -> None:
    """A stream beside a prompt of 2,000 tokens."""
    solo, beside, took = list[float](), list[float](), list[float]()
    for number in range(rounds):
        solo += gaps(stream(server.port, raw(prompt(PROMPT, number), 100))[0])
        ids, long = prompt(PROMPT, 50 + number), prompt(2000, 7000 + number)
        between, seconds = _interrupted(server.port, ids, long)
        beside += between
        took.append(seconds)
    usual = statistics.median(solo)
    print(f"prefill: usual gap {usual * 1000:.1f} ms, longest {max(solo) * 1000:.1f}; ", end="")
    print(f"the prompt took {statistics.median(took):.1f} s, {len(beside)} gaps beside it")
    at_most(
        "prefill: p99 of the gaps over the usual one", percentile(beside, 0.99) / usual, 3, " ×"
    )
    at_most("prefill: longest gap over the usual one", max(beside) / usual, 3, " ×")


def system_prompt(port: int, tokens: int, seed: int) -> str:
    """A text of so many tokens, or one more."""
    ids = prompt(3 * tokens, seed)
    while True:
        text: str = post(port, "/detokenize", {"tokens": ids})["prompt"].replace("\ufffd", "")
        count = len(post(port, "/tokenize", {"prompt": text})["tokens"])
        if count <= tokens + 1:
            return text
        ids = ids[: min(len(ids) * tokens // count, len(ids) - 1)]


def prefix(server: Server, rounds: int) -> None:
    """A system prompt, twice."""
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        system = {"role": "system", "content": system_prompt(server.port, 1000, 9000 + number)}
        for own, question in zip(times, ("One?", "Two?"), strict=True):
            wish = {"messages": [system, {"role": "user", "content": question}], "max_tokens": 1}
            found = stream(server.port, wish, "/v1/chat/completions")[0]
            own.append(found[1] - found[0])
    first, second = (statistics.median(own) * 1000 for own in times)
    print(f"prefix: first token after {first:.1f} ms, the second time {second:.1f} ms")
    at_least("prefix: less time the second time", over(*times), 10, " ×")


def repeater(model: str, folder: Path) -> tuple[list[int], list[int]]:
    """A checkpoint of the shape of `model` that goes on from each token with a certain other one:
    its residual stream stays the embedding, and the head's rows are the embeddings of the tokens
    before. Behind the prompt it writes the prompt again with one token changed.

    Returns the prompt and what comes behind it.
    """
    config = dataclasses.replace(ModelConfig.from_dir(Path(model)), tie_word_embeddings=False)
    found = init_model(config, seed=1, dtype=torch.bfloat16)
    *text, other, begin = random.Random(4).sample(range(300, 8000), REPEATED + 2)
    changed = [*text[:CHANGED], other, *text[CHANGED + 1 :]]
    head = found.lm_head
    assert head is not None
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1e-4)
        torch.nn.init.normal_(found.model.embed_tokens.weight)
        before = [begin, *changed[:-1]]
        head.weight[changed] = found.model.embed_tokens.weight[before]
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if (Path(model) / name).exists():
            shutil.copy(Path(model) / name, folder)
    save_model(found, folder)
    return [*text, begin], changed


def speculation(model: str, quantize: str, rounds: int) -> None:
    """A text repeated with one word changed."""
    with tempfile.TemporaryDirectory() as scratch:
        ids, wanted = repeater(model, Path(scratch))
        servers = [
            Server(scratch, ("--quantize", quantize, *flags))
            for flags in ((), ("--speculate", "lookup"))
        ]
        said = post(servers[0].port, "/detokenize", {"tokens": wanted})["prompt"]
        rates: list[list[float]] = [[], []]
        unlike = 0
        for number in range(rounds + 1):
            for server, own in zip(servers, rates, strict=True):
                times, answer = stream(server.port, raw(ids, REPEATED))
                events = [line[6:] for line in answer.splitlines() if line.startswith(b"data: {")]
                text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
                unlike += text != said
                if number:  # the first round warms up
                    own.append((REPEATED - 1) / (times[-1] - times[1]))
        for server in servers:
            server.end()
    without, lookup = (statistics.median(own) for own in rates)
    print(f"speculation: {without:.1f} tokens/s, with prompt lookup {lookup:.1f}")
    exactly("speculation: answers that are not the text with one word changed", unlike, 0)
    at_least("speculation: faster with prompt lookup", over(rates[1], rates[0]), 1.8, " ×")


def main() -> None:
    """Measure and print; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint; 0.5B with random weights if not given")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="llama.cpp's llama-server")
    parser.add_argument("--gguf", help="the same model in Q4_0")
    parser.add_argument("--only", nargs="*", default=ALL, choices=ALL)
    parser.add_argument("--engine-alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--served", help=argparse.SUPPRESS)
    options = parser.parse_args()
    own = options.quantize if "--quantize" in sys.argv else None
    if options.served:
        served_work(options.model, own, options.served)
    elif options.engine_alone:
        engine_work(options.model, own)
    else:
        found = find_model(options.model) if options.model else checkpoint("0.5B")
        options.model = str(found)
        print(f"{torch.get_num_threads()} threads; {found.name} {options.quantize}")
        measure(options)
        finish()


def measure(options: argparse.Namespace) -> None:
    """The parts that were asked for."""
    model, quantize, rounds, parts = options.model, options.quantize, options.rounds, options.only
    if "overhead" in parts:
        with tempfile.TemporaryDirectory() as folder:
            toy = Path(folder) / "toy"
            toy.mkdir()
            overhead(str(toy_model(toy)), None, 400, rounds)
        overhead(model, quantize, 100, rounds)
    if {"sixteen", "prefill", "prefix"} & set(parts):
        server = Server(model, ("--quantize", quantize))
        if "sixteen" in parts:
            engine = EngineAlone(model, quantize)
            peer = Peer(options.peer, options.gguf) if options.peer else None
            sixteen(server, engine, peer, rounds)
            engine.end()
            if peer:
                peer.end()
        if "prefill" in parts:
            prefill(server, rounds)
        if "prefix" in parts:
            prefix(server, rounds)
        server.end()
    if "speculation" in parts:
        speculation(model, quantize, rounds)


if __name__ == "__main__":
    main()
