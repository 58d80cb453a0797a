"""From logits to tokens: penalties, bias, greedy or random choice, log-probabilities; each row by
its own request.

Order, as in Transformers and vLLM: repetition penalty (prompt and output), frequency and presence
penalty (output), logit_bias, the grammar (`qwenkit.engine.grammar`), then `ops.sample`
(temperature, top_k, top_p, min_p). Rows of the vocabulary that the tokenizer has no token for are
cut off first, so they can neither be drawn nor take probability. A random number depends on the
request's seed and on how many tokens it has, and on nothing else: a seeded request draws the same
whoever else is in the batch, whether it was paused or a step was tried twice. A row whose logits
are not finite, or whose grammar has come to a dead end, yields an error for its request and leaves
the other rows alone. Legend: M sampling rows, V vocab.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.engine.grammar import constrain
from qwenkit.engine.request import ErrorCode, Request, TokenLogprob

NOT_FINITE = "The model's logits are not finite; load it with dtype bfloat16 or float32."


Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(slots=True)
class Draw:
    """One row's outcome: a token, or an error."""

    token: int | None
    logprob: TokenLogprob | None = None
    error: str | None = None
    code: ErrorCode | None = None


class _Seen:
    """The distinct tokens of one request and how often the output has each, growing in place."""

    def __init__(self, request: Request, vocab_size: int) -> None:
        prompt = request.token_ids[: request.num_prompt]
        known = dict.fromkeys(prompt)
        room = min(vocab_size, len(known) + request.params.max_tokens)
        self._index = {token: i for i, token in enumerate(known)}
        self._ids = np.zeros(room, dtype=np.int64)
        self._ids[: len(known)] = list(known)
        self._counts = np.zeros(room, dtype=np.float32)
        self._num_tokens = len(prompt)

    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Count what the request has got since it was last asked for."""
        for token in token_ids[self._num_tokens :]:
            at = self._index.setdefault(token, len(self._index))
            self._ids[at] = token
            self._counts[at] += 1
        self._num_tokens = len(token_ids)

    @property
    def ids(self) -> Array:
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> Array:
        return self._counts[: len(self._index)]


class Sampler:
    """Holds what sampling must remember of each request: the tokens it has seen, and a seed for one
    that gave none.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self._host = device.type == "cpu"
        self._seeds: dict[str, int] = {}
        self._seen: dict[str, _Seen] = {}

    def forget(self, request: Request) -> None:
        """Drop the state of a request that has ended."""
        self._seeds.pop(request.id, None)
        self._seen.pop(request.id, None)

    def rewind(self, request: Request) -> None:
        """The request has lost tokens that were already looked at."""
        self._seen.pop(request.id, None)
        if request.matcher is not None and request.num_matched > request.num_output:
            request.matcher.rollback(request.num_matched - request.num_output)
            request.num_matched = request.num_output

    def sample(self, requests: Sequence[Request], logits: Tensor) -> list[Draw]:
        """One draw for each row. `logits` (M, ≥ vocab_size) float32 are changed in place."""
        if not requests:
            return []
        logits = logits[:, : self.vocab_size]
        if all(r.params.plain and r.matcher is None for r in requests):
            return _draws(*ops.argmax(logits))
        reported = [i for i, r in enumerate(requests) if r.params.logprobs is not None]
        logprobs = logits[reported].log_softmax(-1) if reported else None
        self._adjust(requests, logits)
        unmatched = constrain(requests, logits)
        tokens, peaks = ops.argmax(logits)
        if not all(r.params.greedy for r in requests):
            tokens = ops.sample(logits, *self._draw_parameters(requests))
        draws = _draws(tokens, peaks)
        for i, error in unmatched.items():
            draws[i] = Draw(None, error=error, code="grammar")
        if logprobs is not None:
            self._report(requests, reported, logprobs, tokens, draws)
        return draws

    def _adjust(self, requests: Sequence[Request], logits: Tensor) -> None:
        penalised = [(i, r) for i, r in enumerate(requests) if r.params.penalised]
        if penalised:
            self._penalise(penalised, logits)
        rows: list[int] = []
        ids: list[int] = []
        biases: list[float] = []
        for i, request in enumerate(requests):
            params = request.params
            if params.logit_bias:
                rows += [i] * len(params.logit_bias)
                ids += params.logit_bias.keys()
                biases += params.logit_bias.values()
            if params.min_tokens > request.num_output and request.matcher is None:
                rows += [i] * len(params.stop_token_ids)
                ids += params.stop_token_ids
                biases += [-torch.inf] * len(params.stop_token_ids)
        if rows:
            where = torch.tensor([rows, ids], dtype=torch.int64).to(self.device)
            bias = torch.tensor(biases, dtype=torch.float32).to(self.device)
            logits.index_put_((where[0], where[1]), bias, accumulate=True)

    def _penalise(self, penalised: list[tuple[int, Request]], logits: Tensor) -> None:
        """Touch only the entries of tokens that were seen: a few hundred instead of the whole
        vocabulary.
        """
        for _, request in penalised:
            if request.id not in self._seen:
                self._seen[request.id] = _Seen(request, self.vocab_size)
            self._seen[request.id].catch_up(request.token_ids)
        seen = [self._seen[request.id] for _, request in penalised]
        sizes = [len(s.ids) for s in seen]
        params = [request.params for _, request in penalised]

        def spread(values: Iterable[float], dtype: type = np.float32) -> Array | Tensor:
            """One number for each entry, from one for each request."""
            return self._place(np.array(list(values), dtype=dtype).repeat(sizes))

        x: Array | Tensor = logits.numpy() if self._host else logits
        row = spread((i for i, _ in penalised), np.int64)
        ids = self._place(np.concatenate([s.ids for s in seen]))
        counts = self._place(np.concatenate([s.counts for s in seen]))
        values = x[row, ids]
        repetition = spread(p.repetition_penalty for p in params)
        values = (np if self._host else torch).where(
            values < 0, values * repetition, values / repetition
        )
        if any(p.frequency_penalty or p.presence_penalty for p in params):
            values -= spread(p.frequency_penalty for p in params) * counts
            values -= spread(p.presence_penalty for p in params) * (counts > 0)
        x[row, ids] = values

    def _place(self, values: Array) -> Array | Tensor:
        """Where the logits are: small steps on the CPU are much cheaper in numpy than in torch."""
        return values if self._host else torch.from_numpy(values).to(self.device)

    def _draw_parameters(
        self, requests: Sequence[Request]
    ) -> tuple[list[float], list[int], list[float], list[float], list[float]]:
        """temperature, top_k, top_p, min_p, uniform: what `ops.sample` takes, each (M)."""
        params = [request.params for request in requests]
        return (
            [0.0 if p.greedy else p.temperature for p in params],
            [min(max(p.top_k, 0), self.vocab_size) for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
            [0.0 if r.params.greedy else self._uniform(r) for r in requests],
        )

    def _uniform(self, request: Request) -> float:
        """The request's number for its next token."""
        seed = request.params.seed
        if seed is None:
            if request.id not in self._seeds:
                self._seeds[request.id] = secrets.randbits(63)
            seed = self._seeds[request.id]
        return uniform(seed, request.num_output)

    def _report(
        self,
        requests: Sequence[Request],
        reported: list[int],
        logprobs: Tensor,
        tokens: list[int],
        draws: list[Draw],
    ) -> None:
        own = logprobs[range(len(reported)), [tokens[i] for i in reported]].tolist()
        most = min(max(requests[i].params.logprobs or 0 for i in reported), self.vocab_size)
        values, ids = logprobs.topk(most, -1)
        rows = zip(reported, own, values.tolist(), ids.tolist(), strict=True)
        for i, logprob, top_values, top_ids in rows:
            draw, count = draws[i], requests[i].params.logprobs or 0
            if draw.token is not None:
                top = tuple(zip(top_ids[:count], top_values[:count], strict=True))
                draw.logprob = TokenLogprob(draw.token, logprob, top)


def _draws(tokens: list[int], peaks: list[float]) -> list[Draw]:
    """The tokens; an error for rows whose largest value is not finite (nan counts as largest)."""
    return [
        Draw(token) if math.isfinite(peak) else Draw(None, error=NOT_FINITE, code="not_finite")
        for token, peak in zip(tokens, peaks, strict=True)
    ]


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for one token of a request: 24 bits, which float32 holds exactly and
    cannot round up to 1. Seeds from -2**63 to 2**63 - 1 are all different.
    """
    digest = hashlib.blake2b(struct.pack("<qq", seed, step), digest_size=3).digest()
    return int.from_bytes(digest, "little") / 2**24
