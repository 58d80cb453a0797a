"""A model, loaded once and measured when told to: one JSON object a line, in and out.

    python bench/worker.py qwenkit PATH [--quantize int4] [--dtype bfloat16] [--threads 2]
    python bench/worker.py openvino|transformers PATH [--threads 2]

The first line out says that the model is loaded. Requests, each answered by one line:

    {"what": "decode", "sequences": 16, "context": 128, "seconds": 2}    seconds of a step, tokens
    {"what": "prefill", "tokens": 512, "seconds": 2}                     seconds of a prompt, tokens
    {"what": "prefill_many", "sequences": 4, "tokens": 128, "seconds": 2}          (openvino) as one
    {"what": "about"}               what there is to tell; of qwenkit: bytes of weights and process

All of them decode greedily after random prompts, none of which comes twice, and count whole steps.
transformers runs in bfloat16 where the machine has instructions for it, else in float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Protocol

ROOM = 64
"""Tokens that each sequence decodes in a measurement."""


class Timed(Protocol):
    @property
    def seconds(self) -> float: ...
    @property
    def tokens(self) -> int: ...


class Measured:
    def __init__(self, seconds: float, tokens: int) -> None:
        self.seconds, self.tokens = seconds, tokens


class Engine(Protocol):
    """What a request is turned into."""

    def decode(self, sequences: int, context: int, seconds: float) -> Timed: ...
    def prefill(self, tokens: int, seconds: float) -> Timed: ...
    def about(self) -> dict[str, Any]: ...


class Qwenkit:
    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from qwenkit.eval import speed

        torch.set_num_threads(options.threads)
        self.speed = speed
        self.engine = speed.load_engine(
            options.path,
            dtype=options.dtype,
            device=options.device,
            quantize=options.quantize,
            sequences=options.sequences,
            longest=options.longest,
        )

    def decode(self, sequences: int, context: int, seconds: float) -> Timed:
        return self.speed.decode(self.engine, sequences=sequences, context=context, seconds=seconds)

    def prefill(self, tokens: int, seconds: float) -> Timed:
        return self.speed.prefill(self.engine, tokens=tokens, seconds=seconds)

    def about(self) -> dict[str, Any]:
        return self.speed.footprint(self.engine)


class OpenVino:
    def __init__(self, options: argparse.Namespace) -> None:
        openvino = importlib.import_module("openvino")  # in the environment of the peers only
        openvino_genai = importlib.import_module("openvino_genai")

        self.genai, self.openvino = openvino_genai, openvino
        cache = openvino_genai.SchedulerConfig()
        cache.cache_size = 1  # GB
        cache.max_num_batched_tokens = 2048
        cache.max_num_seqs = options.sequences
        cache.enable_prefix_caching = False
        self.pipe = openvino_genai.ContinuousBatchingPipeline(
            options.path, cache, "CPU", {"INFERENCE_NUM_THREADS": options.threads}
        )
        self.count, self.handles = 0, list[Any]()
        config = json.loads((Path(options.path) / "config.json").read_text())
        self.vocabulary = int(config["vocab_size"])

    def _add(self, sequences: int, prompt: int, new: int) -> None:
        import numpy

        config = self.genai.GenerationConfig(max_new_tokens=new, ignore_eos=True)
        self.handles = []  # a request whose handle is gone is dropped
        for _ in range(sequences):
            ids = numpy.array([random_ids(self.vocabulary, prompt)], dtype=numpy.int64)
            handle = self.pipe.add_request(self.count, self.openvino.Tensor(ids), config)
            self.handles.append(handle)
            self.count += 1

    def decode(self, sequences: int, context: int, seconds: float) -> Timed:
        taken: list[float] = []
        while sum(taken) < seconds:
            self._add(sequences, context, ROOM)
            steps = []
            while self.pipe.has_non_finished_requests():
                start = time.perf_counter()
                self.pipe.step()
                steps.append(time.perf_counter() - start)
            taken += steps[-ROOM // 2 :]  # the prompts' steps are before these
        return Measured(statistics.median(taken), sequences)

    def prefill(self, tokens: int, seconds: float) -> Timed:
        return self.prefill_many(1, tokens, seconds)

    def prefill_many(self, sequences: int, tokens: int, seconds: float) -> Timed:
        taken: list[float] = []
        while len(taken) < 3 or sum(taken) < seconds:
            self._add(sequences, tokens, 1)
            start = time.perf_counter()
            while self.pipe.has_non_finished_requests():
                self.pipe.step()
            taken.append(time.perf_counter() - start)
        return Measured(statistics.median(taken[1:]), sequences * tokens)

    def about(self) -> dict[str, Any]:
        return {"version": self.openvino.__version__}


class Transformers:
    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        import transformers

        from qwenkit import ops

        torch.set_num_threads(options.threads)
        self.torch, self.version = torch, transformers.__version__
        device = torch.device(options.device)
        native = ops.native_bfloat16(device)
        self.dtype = torch.bfloat16 if native else torch.float32
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            options.path, dtype=self.dtype
        )
        self.model = model.to(device)
        self.vocabulary = int(self.model.config.vocab_size)

    def _forward(self, ids: Any, cache: Any) -> tuple[Any, Any, float]:
        start = time.perf_counter()
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        following = out.logits[:, -1].argmax(-1, keepdim=True)
        following.tolist()
        return following, out.past_key_values, time.perf_counter() - start

    def _prompt(self, sequences: int, tokens: int) -> Any:
        rows = [random_ids(self.vocabulary, tokens) for _ in range(sequences)]
        return self.torch.tensor(rows, device=self.model.device)

    def decode(self, sequences: int, context: int, seconds: float) -> Timed:
        taken: list[float] = []
        with self.torch.inference_mode():
            while sum(taken) < seconds:
                ids, cache, _ = self._forward(self._prompt(sequences, context), None)
                steps: list[float] = []
                while len(steps) < 3 or (sum(steps) < seconds and len(steps) < ROOM):
                    ids, cache, spent = self._forward(ids, cache)
                    steps.append(spent)
                taken += steps[1:]
        return Measured(statistics.median(taken), sequences)

    def prefill(self, tokens: int, seconds: float) -> Timed:
        taken: list[float] = []
        with self.torch.inference_mode():
            while len(taken) < 2 or sum(taken) < seconds:
                taken.append(self._forward(self._prompt(1, tokens), None)[2])
        return Measured(statistics.median(taken[1:]), tokens)

    def about(self) -> dict[str, Any]:
        return {"version": self.version, "dtype": str(self.dtype)}


def random_ids(vocabulary: int, count: int) -> list[int]:
    return [random.randrange(vocabulary) for _ in range(count)]


ENGINES: dict[str, type[Qwenkit] | type[OpenVino] | type[Transformers]] = {
    "qwenkit": Qwenkit,
    "openvino": OpenVino,
    "transformers": Transformers,
}


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    what = request.pop("what")
    if what == "about":
        return engine.about()
    timed: Timed = getattr(engine, what)(**request)
    seconds, tokens = timed.seconds, timed.tokens
    return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("path")
    parser.add_argument("--quantize")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--longest", type=int, default=512)
    options = parser.parse_args()
    start = time.perf_counter()
    engine: Engine = ENGINES[options.engine](options)
    loaded = {"loaded_in": time.perf_counter() - start, **engine.about()}
    print(json.dumps(loaded), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
