"""The server beside its own engine, and beside llama.cpp's server where that has been built.

    python bench/serve.py [--model FOLDER] [--rounds 3] [--peer llama-server --gguf FILE]

    sixteen    16 clients at once, tokens/s together, over the same work in the engine alone
    overhead   what server and scheduler add to a decode step of one sequence, in ms
    prefill    the longest gap of a stream while a prompt of 2,000 tokens comes in, over its usual
    prefix     time to the first token of a prompt with 1,000 shared tokens, first and second time

What is compared takes turns in one run; medians over the rounds. The engine works in a process of
its own, so both have the machine to themselves in turn. Not covered: GPUs, images.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fuzz_api import KEY, toy_model
from stress_server import Server

from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.llm import LLM
from qwenkit.options import ServeOptions, resolve
from qwenkit.server import run
from qwenkit.server.listen import listen

DEFAULT = Path(__file__).resolve().parents[1] / "build" / "bench" / "0.5B"
CLIENTS, PROMPT, WRITTEN = 16, 32, 64
WORDS = "the of and to in is that it was for on are as with his they at be this from".split()


def prompt(tokens: int, seed: int) -> str:
    """A text of about so many tokens."""
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(tokens))


# The engine alone, in a process of its own


def engine_work(model: str, quantize: str | None) -> None:
    """Reads lines of JSON, {"sequences", "prompt", "tokens"}; answers with seconds."""
    with LLM(model, quantize=quantize) as llm:
        print("ready", flush=True)
        for line in sys.stdin:
            wish = json.loads(line)
            print(json.dumps(_run(llm, **wish)), flush=True)


def _run(llm: LLM, sequences: int, tokens: int, prompts: list[str]) -> dict[str, Any]:
    """One batch: seconds in all, medians of a step and of the forward within it while decoding."""
    engine: Engine = llm.driver.engine
    forwards: list[float] = []
    before = llm.model.register_forward_pre_hook(lambda *_: forwards.append(-time.perf_counter()))
    after = llm.model.register_forward_hook(
        lambda *_: forwards.__setitem__(-1, forwards[-1] + time.perf_counter())
    )
    steps: list[float] = []
    began = time.perf_counter()
    for number in range(sequences):
        ids = llm.tokenize(prompts[number])
        engine.add(Request(str(number), ids, SamplingParams(max_tokens=tokens)))
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - start)
    whole = time.perf_counter() - began
    before.remove()
    after.remove()
    engine.forget_prefixes()
    half = len(steps) // 2
    return {
        "seconds": whole,
        "step": statistics.median(steps[half:]),
        "forward": statistics.median(forwards[half:]),
        "sequences": sequences,
    }


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

    def run(self, sequences: int, tokens: int, prompts: list[str]) -> dict[str, Any]:
        """See `_run`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        wish = {"sequences": sequences, "tokens": tokens, "prompts": prompts}
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        self._process.communicate()


# A server that notes what the model takes


def served_work(model: str, quantize: str | None, notes: str) -> None:
    """`qwenkit serve` with a clock on the model and the sampler; their seconds go to a file."""
    flags = {"model": model, "port": 0, "served_model_name": ["m"], "log_level": "warning"}
    options = resolve(ServeOptions, {**flags, "quantize": quantize})
    listener = listen(options)
    llm = LLM(model, quantize=quantize)
    spent: dict[str, list[float]] = {"forward": [], "sample": []}
    llm.model.register_forward_pre_hook(lambda *_: spent["forward"].append(-time.perf_counter()))
    llm.model.register_forward_hook(
        lambda *_: spent["forward"].__setitem__(-1, spent["forward"][-1] + time.perf_counter())
    )
    sampler = llm.driver.engine.sampler
    sample = sampler.sample

    def timed(*what: Any) -> Any:
        began = time.perf_counter()
        found = sample(*what)
        spent["sample"].append(time.perf_counter() - began)
        return found

    sampler.sample = timed  # type: ignore[assignment,method-assign]
    address = listener.getsockname()
    run.serve(llm, options, listener, lambda: print(f"http://x:{address[1]}/v1\n", flush=True))
    Path(notes).write_text(json.dumps(spent))


# Clients


def stream(port: int, text: str, tokens: int) -> list[float]:
    """Moments of the tokens of one streamed completion; the first entry is when it was asked.

    As light as a client can be: it shares the cores with the server.
    """
    body = {"model": "m", "prompt": text, "max_tokens": tokens, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    times, buffer = [time.perf_counter()], bytearray(1 << 16)
    with socket.create_connection(("127.0.0.1", port), timeout=300) as sock:
        sock.sendall(head.encode() + data)
        tail = b""
        while b"data: [DONE]" not in tail:
            count = sock.recv_into(buffer)
            now, piece = time.perf_counter(), bytes(buffer[:count])
            assert count and b'"error"' not in piece, piece[:500]
            times += [now] * piece.count(b"data: {")
            tail = tail[-16:] + piece
    return times


def together(port: int, prompts: list[str], tokens: int) -> float:
    """Seconds that clients at once take."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        for found in [pool.submit(stream, port, text, tokens) for text in prompts]:
            found.result()
    return time.perf_counter() - began


def gaps(times: list[float]) -> list[float]:
    """Seconds between tokens, without the last piece, which only ends the stream."""
    written = times[1:-1]
    return [later - earlier for earlier, later in zip(written, written[1:], strict=False)]


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
                stream(self.port, "a", 1)
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
        alone = engine.run(CLIENTS, WRITTEN, prompts)["seconds"]
        served = together(server.port, prompts, WRITTEN)
        other = together(peer.port, prompts, WRITTEN) if peer else 0.0
        if number:  # the first round warms up
            found["engine"].append(CLIENTS * WRITTEN / alone)
            found["server"].append(CLIENTS * WRITTEN / served)
            found["peer"] += [CLIENTS * WRITTEN / other] if peer else []
    rate = {name: statistics.median(values) for name, values in found.items() if values}
    shares = [s / e for s, e in zip(found["server"], found["engine"], strict=True)]
    print(
        f"sixteen: server {rate['server']:.1f} tokens/s, engine alone {rate['engine']:.1f}: ",
        end="",
    )
    print(f"{statistics.median(shares):.3f} of it (aim: 0.9)")
    if peer:
        ratios = [s / p for s, p in zip(found["server"], found["peer"], strict=True)]
        print(f"  llama.cpp's server {rate['peer']:.1f}: {statistics.median(ratios):.2f}× (aim: 3)")


def overhead(model: str, quantize: str | None, tokens: int, rounds: int) -> None:
    """One sequence: the time of a token that neither the model nor the sampler took."""
    times = list[float]()
    with tempfile.NamedTemporaryFile("r") as notes:
        words = [sys.executable, __file__, "--model", model, "--served", notes.name]
        words += ["--quantize", quantize] if quantize else []
        server = Server(model, command=words)
        for number in range(rounds):
            times += gaps(stream(server.port, prompt(PROMPT, number), tokens))
        server.end()
        spent = json.load(notes)
    gap, forward, sample = (
        statistics.median(part) * 1000 for part in (times, spent["forward"], spent["sample"])
    )
    print(f"overhead: {gap - forward - sample:.3f} ms a token (aim: 0.3) beside ", end="")
    print(f"{forward:.3f} ms in the model, {sample:.3f} ms in the sampler ({Path(model).name})")


def _interrupted(port: int, text: str, long: str) -> tuple[list[float], float]:
    """Gaps of a stream beside which a long prompt is read; and how long that took."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, port, text, 120)
        time.sleep(0.7)
        other = stream(port, long, 1)
        times = [moment for moment in running.result() if other[0] <= moment <= other[-1]]
    return gaps([0.0, *times, 0.0]), other[-1] - other[0]


def prefill(server: Server, rounds: int) -> None:
    """A stream beside a prompt of 2,000 tokens."""
    ratios, worst, took = list[float](), list[float](), list[float]()
    for number in range(rounds):
        solo = gaps(stream(server.port, prompt(PROMPT, number), 60))
        usual = statistics.median(solo)
        text, long = prompt(PROMPT, 50 + number), prompt(2000, 7000 + number)
        between, seconds = _interrupted(server.port, text, long)
        ratios.append(max(between) / usual)
        worst.append(max(between))
        took.append(seconds)
    print(f"prefill: longest gap {statistics.median(worst) * 1000:.0f} ms, ", end="")
    print(f"{statistics.median(ratios):.2f}× the usual one (aim: under 3); ", end="")
    print(f"the prompt took {statistics.median(took):.1f} s")


def prefix(server: Server, rounds: int) -> None:
    """A long beginning, twice."""
    ratios, firsts, seconds = list[float](), list[float](), list[float]()
    for number in range(rounds):
        shared = prompt(1000, 9000 + number)
        times = [stream(server.port, shared + end, 1) for end in (" one", " two")]
        first, second = (found[1] - found[0] for found in times)
        ratios.append(first / second)
        firsts.append(first)
        seconds.append(second)
    print(f"prefix: first token after {statistics.median(firsts) * 1000:.0f} ms, then ", end="")
    print(f"{statistics.median(seconds) * 1000:.0f}: {statistics.median(ratios):.1f}× (aim: 10)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(DEFAULT), help="a 0.5B checkpoint")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="llama.cpp's llama-server")
    parser.add_argument("--gguf", help="the same model in Q4_0")
    parser.add_argument("--only", nargs="*", default=["sixteen", "overhead", "prefill", "prefix"])
    parser.add_argument("--engine-alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--served", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.served:
        served_work(
            options.model, options.quantize if "--quantize" in sys.argv else None, options.served
        )
        return
    if options.engine_alone:
        engine_work(options.model, options.quantize if "--quantize" in sys.argv else None)
        return
    print(f"{torch.get_num_threads()} threads; {Path(options.model).name} {options.quantize}")
    if "overhead" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            overhead(str(toy_model(Path(folder))), None, 400, options.rounds)
        overhead(options.model, options.quantize, 100, options.rounds)
    if not {"sixteen", "prefill", "prefix"} & set(options.only):
        return
    server = Server(options.model, ("--quantize", options.quantize, "--max-model-len", "4096"))
    if "sixteen" in options.only:
        engine = EngineAlone(options.model, options.quantize)
        peer = Peer(options.peer, options.gguf) if options.peer else None
        sixteen(server, engine, peer, options.rounds)
        engine.end()
        if peer:
            peer.end()
    if "prefill" in options.only:
        prefill(server, options.rounds)
    if "prefix" in options.only:
        prefix(server, options.rounds)
    server.end()


if __name__ == "__main__":
    main()
