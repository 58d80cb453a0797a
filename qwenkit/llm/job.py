"""The requests of one call, and the texts that grow out of their tokens. No threads here.

A `Job` is fed engine outputs and gives stream deltas; when it is done it gives the result. One that
is not `live` (nobody watches, no stop string to find) collects ids and decodes once at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from qwenkit.engine import Request, RequestOutput, TokenLogprob
from qwenkit.errors import EngineError
from qwenkit.llm.results import (
    ChatResult,
    Choice,
    Completion,
    FinishReason,
    Logprob,
    StreamDelta,
    Timing,
    TokenProb,
    Usage,
)
from qwenkit.llm.sampling import Resolved
from qwenkit.model.lora import Adapter
from qwenkit.prompt.constraint import Constraint
from qwenkit.prompt.grammar import Grammar
from qwenkit.prompt.stream import Delta, TextStream, ToolCallParser, collect
from qwenkit.prompt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Query:
    """One prompt to be completed. `tools`: names of the offered tools; without any, nothing is
    parsed. `constraint`: what the answer must look like, `grammar`: the same, compiled. `adapter`:
    what the tokens are computed with beside the model.
    """

    ids: Sequence[int]
    sampling: Resolved
    tools: Collection[str] = ()
    constraint: Constraint | None = None
    grammar: Grammar | None = None
    adapter: Adapter | None = None


class Writer:
    """One choice: token ids → text, tool calls, log-probabilities."""

    def __init__(self, index: int, tokenizer: Tokenizer, query: Query) -> None:
        self.index, self.ids, self.num_tokens = index, list[int](), 0
        self.num_cached = self.num_drafted = self.num_accepted = 0
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.code: str | None = None
        self._tokenizer = tokenizer
        self._stops = bool(query.sampling.stop)
        self._stream = TextStream(tokenizer, query.sampling.stop)
        # Where nothing but calls can come, arguments go out while they come, and a call that is cut
        # off stays as far as it came. Everywhere else it would have to be taken back as text.
        self._only_calls = query.constraint is not None and query.constraint.param == "tool_choice"
        self._parser: ToolCallParser | None = None
        if query.tools:
            self._parser = ToolCallParser(query.tools, eager=self._only_calls)
        self._deltas: list[Delta] = []
        self._logprobs: list[Logprob] | None = None
        self._end: Logprob | None = None
        if query.sampling.params.logprobs is not None:
            self._logprobs = []

    def push(self, outputs: Iterable[RequestOutput]) -> list[StreamDelta]:
        """Take outputs of one request in order; after the end, more of them change nothing."""
        ids, fresh, reason, ends = list[int](), list[Logprob](), None, 0
        for output in outputs:
            reason, self.error, self.code = output.finish_reason, output.error, output.code
            self.num_cached = max(self.num_cached, output.num_cached)
            self.num_drafted, self.num_accepted = output.num_drafted, output.num_accepted
            ends = int(reason == "stop")
            kept = output.new_ids[: len(output.new_ids) - ends]
            ids += kept
            found = [self._logprob(p) for p in output.logprobs or []]
            fresh += found[: len(kept)]
            self._end = found[-1] if found and ends else None
        text, count = self._text(ids)
        if self._stream.stopped:  # what came behind the stop string in one step is not wanted
            reason, ends, self._end = "stop", 0, None
            del ids[count:], fresh[count:]
        self.ids += ids
        self.num_tokens += len(ids) + ends
        if self._logprobs is not None:
            self._logprobs += fresh
        deltas = self._read(text)
        if reason is not None:
            deltas += self._read(self._stream.finish())
            deltas += self._parser.finish() if self._parser else []
            if self._only_calls:
                deltas = list(itertools.takewhile(lambda delta: not delta.retracted, deltas))
            self.finish_reason = reason
        self._deltas += deltas
        if reason == "stop" and any(d.index is not None for d in self._deltas):
            self.finish_reason = "tool_calls"
        return self._news(deltas, tuple(fresh))

    def _text(self, ids: list[int]) -> tuple[str, int]:
        """The ids' text, up to a stop string, and how many of them it took."""
        if not self._stops:
            return self._stream.push(ids), len(ids)
        text, count = "", 0
        while count < len(ids) and not self._stream.stopped:
            text += self._stream.push(ids[count : count + 1])
            count += 1
        return text, count

    def _read(self, text: str) -> list[Delta]:
        if self._parser:
            return self._parser.push(text)
        return [Delta(content=text)] if text else []

    def _news(self, deltas: list[Delta], logprobs: tuple[Logprob, ...]) -> list[StreamDelta]:
        news = [
            StreamDelta(self.index, text=d.content)
            if d.index is None
            else StreamDelta(self.index, tool_call=d)
            for d in deltas
        ]
        if self.finish_reason is not None or (logprobs and not news):
            news.append(StreamDelta(self.index, finish_reason=self.finish_reason))
        if logprobs:
            news[0] = StreamDelta(
                self.index, news[0].text, news[0].tool_call, logprobs, news[0].finish_reason
            )
        return news

    def choice(self) -> Choice:
        assert self.finish_reason is not None
        content, calls = collect(self._deltas)
        logprobs = None if self._logprobs is None else tuple(self._logprobs)
        return Choice(
            self.index,
            content,
            self.finish_reason,
            tuple(self.ids),
            tuple(calls),
            logprobs,
            self.error,
            self._end,
        )

    def _logprob(self, found: TokenLogprob) -> Logprob:
        name = self._tokenizer.id_to_bytes
        top = tuple(TokenProb(i, name(i), value) for i, value in found.top)
        return Logprob(found.id, name(found.id), found.logprob, top)


class Job:
    """All choices of all prompts of one call."""

    def __init__(
        self, queries: Sequence[Query], tokenizer: Tokenizer, names: Iterator[int], *, live: bool
    ) -> None:
        self.live = live or any(query.sampling.stop for query in queries)
        self.queries = queries
        self.requests: list[Request] = []
        self.writers: list[list[Writer]] = []
        self._open: dict[str, Writer] = {}
        self._begun, self._first = time.monotonic(), 0.0
        for query in queries:
            writers = [Writer(i, tokenizer, query) for i in range(query.sampling.n)]
            self.writers.append(writers)
            for writer in writers:
                request = Request(
                    str(next(names)),
                    query.ids,
                    query.sampling.choice(writer.index),
                    tenant=query.sampling.tenant,
                    deadline=query.sampling.deadline,
                    adapter=query.adapter,
                    matcher=None if query.grammar is None else query.grammar.matcher(),
                )
                self.requests.append(request)
                self._open[request.id] = writer

    def note(self) -> None:
        """A token has come; the engine's thread tells."""
        self._first = self._first or time.monotonic()

    @property
    def open_ids(self) -> list[str]:
        """Requests that still run for this job."""
        return list(self._open)

    def push(self, outputs: list[RequestOutput]) -> tuple[list[StreamDelta], list[str]]:
        """Take outputs of one request; returns the news, and ids that the engine need not go on
        with.
        """
        request_id = outputs[0].id
        writer = self._open.get(request_id)
        if writer is None:  # its stop string was found before the engine heard of it
            return [], []
        news = writer.push(outputs)
        if writer.finish_reason is None:
            return news, []
        del self._open[request_id]
        if not self._open:
            last = news[-1]
            usage = (
                self._usage(self.queries[0], self.writers[0]) if len(self.queries) == 1 else None
            )
            news[-1] = dataclasses.replace(last, usage=usage, timing=self._timing())
        return news, [] if outputs[-1].finished else [request_id]

    def results(self, kind: type[Completion] = ChatResult) -> list[Completion]:
        """One result a prompt, once nothing is open."""
        timing = self._timing()
        return [
            kind(tuple(writer.choice() for writer in writers), self._usage(query, writers), timing)
            for query, writers in zip(self.queries, self.writers, strict=True)
        ]

    def raise_errors(self) -> None:
        """EngineError for the first choice that the engine gave up."""
        for writers in self.writers:
            for writer in writers:
                if writer.finish_reason in ("error", "abort"):
                    raise EngineError(
                        f"The request was ended: {writer.error or 'aborted'}",
                        code=writer.code or "failed",
                    )

    def _timing(self) -> Timing:
        now = time.monotonic()
        return Timing((self._first or now) - self._begun, now - self._begun)

    def _usage(self, query: Query, writers: list[Writer]) -> Usage:
        """The choices share their prompt: cached is what not even the first one had to compute."""
        return Usage(
            len(query.ids),
            sum(writer.num_tokens for writer in writers),
            min(writer.num_cached for writer in writers),
            sum(writer.num_drafted for writer in writers),
            sum(writer.num_accepted for writer in writers),
        )
