"""Token ids in, token ids out: many requests at once over one model object.

    engine = Engine(model, kv_bytes=1 << 30)
    engine.add(Request("a", prompt_ids, SamplingParams(max_tokens=64)))
    while engine.has_work:
        for output in engine.step():
            print(output.id, output.new_ids, output.finish_reason)

The model is used as it is. Its weights may change while nothing runs, as reinforcement learning
does; call `forget_prefixes` then, since the cache still has what the old ones computed.
Whatever goes wrong with one request ends that request alone: a bad one is refused by `add`, one
with NaN logits ends with "error", and when a forward raises, its sequences are tried again one by
one so that only the guilty ones end. Not thread-safe: one thread calls everything
(`qwenkit.engine.driver` is that thread). Not covered: text.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

import torch

from qwenkit.engine.blocks import BlockPool
from qwenkit.engine.draft import DraftModel, check_speculation, make_speculation, own_share
from qwenkit.engine.kv_cache import KVCache, blocks_in, default_kv_bytes
from qwenkit.engine.pace import PrefillPace
from qwenkit.engine.request import ErrorCode, Request, RequestOutput
from qwenkit.engine.runner import Runner
from qwenkit.engine.sampler import Draw, Sampler
from qwenkit.engine.scheduler import Plan, Scheduler
from qwenkit.engine.speculate import Speculation
from qwenkit.engine.stats import Stats
from qwenkit.engine.verify import verify
from qwenkit.errors import ContextLengthError, OptionError, RequestError
from qwenkit.model.qwen import Qwen

KV_DTYPES = ("auto", "int8")
LATE = "The request was still waiting when its deadline passed; nothing was computed."

_log = logging.getLogger("qwenkit.engine")


class Engine:
    """Continuous batching over a paged cache.

    Args:
        model: its device and dtype are where and how the cache is kept.
        num_blocks, kv_bytes: size of the cache, one or the other; by default room for
            `max_sequences` full contexts, within a quarter of the free memory and 4 GiB (CUDA:
            within 80 % of the free memory).
        block_size: tokens of a cache block.
        kv_dtype: "auto" keeps the model's dtype; "int8" takes half of bfloat16's memory, with a
            scale for each token and head.
        max_batch_tokens: tokens of one forward; longer prompts are computed in chunks.
        max_sequences: sequences that run at once; more wait.
        max_model_len: longest prompt + max_tokens; by default and at most what config.json allows.
        vocab_size: tokens of the tokenizer; rows of the head above it are never drawn.
        prefix_cache: whether requests of one tenant that begin alike share what is cached of it.
        deterministic: compute a request's logits to the same bits whatever else is in the batch,
            however its prompt is cut and whether it was paused. On the CPU only; where that
            costs speed, see docs/en/engine.md.
        speculate: "lookup" guesses tokens from the request's own text, "draft" (as without it)
            by `draft_model`, a smaller one with the same tokens; the model checks several at once
            (`qwenkit.engine.speculate`), and what it says stays the same.

    Errors: OptionError naming what is out of range, OutOfMemoryError.
    """

    def __init__(
        self,
        model: Qwen,
        *,
        num_blocks: int | None = None,
        kv_bytes: int | None = None,
        block_size: int = 16,
        kv_dtype: str = "auto",
        max_batch_tokens: int = 512,
        max_sequences: int = 32,
        max_model_len: int | None = None,
        vocab_size: int | None = None,
        prefix_cache: bool = True,
        deterministic: bool = False,
        speculate: Literal["lookup", "draft"] | None = None,
        draft_model: Qwen | None = None,
    ) -> None:
        config = model.config
        most = config.context_length
        _check_options(
            ("num_blocks", num_blocks, None),
            ("kv_bytes", kv_bytes, None),
            ("block_size", block_size, 4096),
            ("max_batch_tokens", max_batch_tokens, None),
            ("max_sequences", max_sequences, max_batch_tokens),
            ("max_model_len", max_model_len, most),
            kv_dtype=kv_dtype,
        )
        dtype = torch.int8 if kv_dtype == "int8" else model.dtype
        self.model = model
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        check_speculation(speculate, draft_model, self.vocab_size)
        self.context_length = max_model_len or most
        if num_blocks is None:
            if kv_bytes is None:
                tokens = max_sequences * -(-self.context_length // block_size) * block_size
                kv_bytes = default_kv_bytes(config, tokens, dtype, model.device)
            if draft_model is not None:
                kv_bytes = int(kv_bytes * own_share(model, draft_model))
            num_blocks = blocks_in(config, kv_bytes, block_size, dtype)
        pool = BlockPool(num_blocks, block_size)
        self.pace = PrefillPace(max_batch_tokens)
        sizes = {"max_batch_tokens": max_batch_tokens, "max_sequences": max_sequences}
        self.scheduler = Scheduler(
            pool, **sizes, share_prefixes=prefix_cache, prefill_limit=self.pace.limit
        )
        self.cache = KVCache(config, num_blocks, block_size, dtype=dtype, device=model.device)
        widest = min(num_blocks, pool.blocks_for(self.context_length))
        limits: Any = {"max_sequences": max_sequences, "max_blocks": widest}
        self.runner = Runner(model, self.cache, invariant=deterministic, **limits)
        if deterministic:
            self.runner.probe()
        self.sampler = Sampler(self.vocab_size, model.device)
        self.speculation: Speculation | None = None
        if speculate is not None or draft_model is not None:
            self.speculation = make_speculation(model, draft_model, self.sampler, pool, **limits)
        self._requests: dict[str, Request] = {}
        self._aborted: list[RequestOutput] = []

    @property
    def runners(self) -> list[Runner]:
        """Whoever runs kernels in a step: for the model, and for a draft model."""
        drafts = self.speculation.proposer if self.speculation else None
        return [self.runner, drafts.runner] if isinstance(drafts, DraftModel) else [self.runner]

    @property
    def has_work(self) -> bool:
        """Whether `step` would bring something."""
        return self.scheduler.has_work or bool(self._aborted)

    @property
    def cache_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.scheduler.pool.num_tokens

    def stats(self) -> Stats:
        """What is going on. Any thread may ask."""
        s = self.scheduler
        return Stats(
            running=len(s.running),
            waiting=len(s.waiting) + len(s.paused),
            kv_usage=(s.pool.num_blocks - s.pool.num_free) / s.pool.num_blocks,
            prompt_tokens=s.num_prompt_tokens,
            cached_tokens=s.num_cached_tokens,
            generation_tokens=s.num_drawn_tokens,
            preemptions=s.num_preemptions,
            draft_tokens=self.speculation.num_drafted if self.speculation else 0,
            accepted_tokens=self.speculation.num_accepted if self.speculation else 0,
            running_adapters=_adapters(list(s.running)),
            waiting_adapters=_adapters([*s.waiting.requests(), *list(s.paused)]),
        )

    def check(self, request: Request) -> None:
        """Refuse what can never run, without touching any state (so any thread may call it).

        Errors: RequestError naming the parameter; ContextLengthError with the counts.
        """
        params = request.params
        if not request.prompt_ids:
            raise RequestError("The prompt is empty.", "Give at least one token.", param="prompt")
        for name, ids in (
            ("prompt", request.prompt_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
        ):
            for token in ids:
                if type(token) is not int or not 0 <= token < self.vocab_size:
                    raise RequestError(
                        f"{name} has the token id {token!r:.40}; "
                        f"ids are integers from 0 to {self.vocab_size - 1}.",
                        param=name,
                    )
        if request.num_prompt + params.max_tokens > self.context_length:
            raise ContextLengthError(
                request.num_prompt, params.max_tokens, self.context_length, param="prompt"
            )
        if not self.scheduler.fits(request):
            raise RequestError(
                f"The request needs {request.capacity} tokens of cache, "
                f"which holds {self.cache_tokens}.",
                "Lower max_tokens or give a larger kv_bytes.",
                param="max_tokens",
            )

    def add(self, request: Request) -> None:
        """Queue a request. Errors: those of `check`; RequestError when its id already runs."""
        self.check(request)
        if request.id in self._requests:
            raise RequestError(
                f"A request with the id {request.id!r} is already running.", param="id"
            )
        config = self.model.config
        longest = request.num_prompt + request.params.max_tokens
        request.scaled = config.yarn is not None and longest > config.original_context_length
        self._requests[request.id] = request
        self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """End a request; the next step reports it with "abort". Unknown and ended ids change
        nothing.
        """
        request = self._requests.get(request_id)
        if request is None:
            return
        self.scheduler.finish(request, "abort")
        self._forget(request)
        self._aborted.append(RequestOutput(request_id, finish_reason="abort"))

    def forget_prefixes(self) -> None:
        """Share nothing that is cached now with later requests: the weights have changed."""
        self.scheduler.pool.forget_all()

    def step(self) -> list[RequestOutput]:
        """Compute one batch. An output for each request that drew a token or ended."""
        if torch.is_inference_mode_enabled():  # as on a driver's thread: entering it takes a while
            return self._step()
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[RequestOutput]:
        outputs, self._aborted = self._aborted, []
        plan = self.scheduler.schedule(time.monotonic())
        for request in plan.paused:
            self.runner.release(request)
        for request in plan.late:
            outputs.append(RequestOutput(request.id, [], None, "error", LATE, "timeout"))
            self._forget(request)
        if not plan.spans:
            return outputs
        self._guess(plan)
        began = time.perf_counter()
        try:
            draws = self._draw(plan)
            self.pace.observe(*plan.shape, time.perf_counter() - began)
        except Exception as error:  # a kernel or the allocator failed: find out for whom
            _log.warning("a forward of %d tokens failed: %s", plan.num_tokens, error)
            draws = self._one_by_one(plan)
        self.scheduler.commit(plan, [each[-1].token for each in draws])
        if self.speculation is not None:
            self.speculation.learn(plan)
        for request, drawn in zip(plan.sampling, draws, strict=True):
            outputs.append(_output(request, drawn))
            if request.finish_reason is not None:
                self._forget(request)
        return outputs

    def _guess(self, plan: Plan) -> None:
        """Draft tokens for the plan; none when guessing fails, which is nobody's fault."""
        if self.speculation is None:
            return
        try:
            self.speculation.extend(plan, self.scheduler)
        except Exception as error:
            _log.warning("draft tokens could not be made: %s", error)
            for span in plan.spans:
                span.drop_drafts()

    def _draw(self, plan: Plan) -> list[list[Draw]]:
        spans = [span for span in plan.spans if span.samples]
        return verify(self.sampler, spans, self.runner.forward(plan))

    def _one_by_one(self, plan: Plan) -> list[list[Draw]]:
        """Every span alone. Storing keys twice in the same slots is harmless, so nothing needs
        undoing.

        A span that does not sample has no draw to carry its error; it is made to sample, so that
        `commit` and `step` end it like any other.
        """
        draws: list[list[Draw]] = []
        for span in plan.spans:
            span.drop_drafts()
            try:
                draws += self._draw(Plan([span]))
            except Exception as error:
                _log.error("request %s failed: %s", span.request.id, error)
                span.samples = True
                draws.append([Draw(None, error=_one_line(error), code=_code(error))])
        return draws

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.id, None)
        self.runner.release(request)
        self.sampler.forget(request)
        if self.speculation is not None:
            self.speculation.forget(request)


def _output(request: Request, draws: list[Draw]) -> RequestOutput:
    """What the draws of one step brought; only the last one can be an error."""
    return RequestOutput(
        request.id,
        [draw.token for draw in draws if draw.token is not None],
        [draw.logprob for draw in draws if draw.logprob is not None] or None,
        request.finish_reason,
        draws[-1].error,
        draws[-1].code,
        request.num_cached,
        request.num_drafted,
        request.num_accepted,
    )


def _check_options(*numbers: tuple[str, int | None, int | None], kv_dtype: str) -> None:
    for name, value, limit in numbers:
        _check_option(name, value, limit)
    if kv_dtype not in KV_DTYPES:
        raise OptionError(f"kv_dtype is {kv_dtype!r}.", f"Use one of {', '.join(KV_DTYPES)}.")


def _check_option(name: str, value: int | None, limit: int | None) -> None:
    if value is None or 1 <= value <= (value if limit is None else limit):
        return
    bounds = "at least 1" if limit is None else f"from 1 to {limit}"
    raise OptionError(f"{name} is {value}; it must be {bounds}.")


def _code(error: Exception) -> ErrorCode:
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return "out_of_memory" if memory else "failed"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if _code(error) == "out_of_memory":
        return "Out of memory; give a smaller max_batch_tokens, kv_bytes or max_tokens."
    return f"{type(error).__name__}: {text[:200]}"


def _adapters(requests: list[Request]) -> frozenset[int]:
    return frozenset(each.adapter.id for each in requests if each.adapter is not None)
