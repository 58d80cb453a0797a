"""What a Python user holds: text in, text and tool calls out.

    llm = LLM("tiny-instruct")  # an embedded name, a folder, or org/name on a hub
    print(llm.chat("What is 12 + 30?").text)
    for delta in llm.stream("Tell me a story.", temperature=0.7):
        print(delta.text, end="")

Every method may be called from many threads and coroutines at once: all of them share one batch,
stepped by one thread. `chat_many` and a list given to `generate` run together too. Nothing is ever
cut silently: a prompt that does not fit with its max_tokens is a ContextLengthError.
Not covered: images.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from qwenkit.config import GenerationConfig
from qwenkit.engine import Driver, Engine, EngineOptions
from qwenkit.errors import ConfigError, RequestError
from qwenkit.io.hub import Progress
from qwenkit.io.hub import resolve as resolve_ref
from qwenkit.llm.adapters import Adapters
from qwenkit.llm.draft import load_draft
from qwenkit.llm.embed import Embedder, Embeddings, Pooling
from qwenkit.llm.files import TemplateLoader, check_vocabulary, read_files
from qwenkit.llm.grammars import Grammars
from qwenkit.llm.job import Job, Query
from qwenkit.llm.queries import Messages, QueryMaker, Tools, as_prompts
from qwenkit.llm.results import ChatResult, Completion, StreamDelta
from qwenkit.llm.run import arun, run
from qwenkit.llm.score import Scorer, logits_of
from qwenkit.model.load import load_model
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare
from qwenkit.prompt.chat import ChatTemplate, Prompt
from qwenkit.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qwenkit.llm.sampling import Sampling


class LLM:
    """A model with its tokenizer, chat template and engine.

    Args:
        model: "tiny", "tiny-instruct", a folder, a .gguf file, or org/name[@revision] on a hub; or
            a `Qwen` already in memory (then `tokenizer` is needed, and `template` to chat).
        dtype: "auto" (the checkpoint's, as `load_model` says), "bfloat16", "float32", "float16",
            or a torch.dtype.
        quantize: "int4" or "int8" packs the weights while loading.
        device: "cpu", "cuda" …; by default CUDA where there is a GPU.
        revision, source, offline, progress: as in `qwenkit.io.hub.resolve`.
        draft_model: a smaller model of the family, to guess what this one then checks.
        max_waiting, max_waiting_per_tenant: requests that may wait for a place, of all and of one
            tenant; one more is a QueueFullError. By default there is no limit.
        engine_options: max_model_len, kv_bytes … as in `qwenkit.engine.Engine`.

    Errors: ModelNotFoundError, HubError, FormatError, ConfigError, CheckpointError, TokenizerError,
        OutOfMemoryError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Qwen = "tiny-instruct",
        *,
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        source: str = "auto",
        offline: bool | None = None,
        progress: Progress | None = None,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        generation: GenerationConfig | None = None,
        draft_model: str | os.PathLike[str] | Qwen | None = None,
        max_waiting: int | None = None,
        max_waiting_per_tenant: int | None = None,
        **engine_options: Unpack[EngineOptions],
    ) -> None:
        self.path: Path | None = None
        hub: Any = {"source": source, "offline": offline, "progress": progress}
        if isinstance(model, (str, os.PathLike)):
            self.name = os.fspath(model) + (f"@{revision}" if revision else "")
            self.path = resolve_ref(self.name if revision else model, **hub)
            files = read_files(self.path, tokenizer, generation)
            self.tokenizer, self.generation = files.tokenizer, files.generation
            load_template: TemplateLoader | None = files.load_template
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model = load_model(files.weights, dtype, device, quantize=quantize, prepack=True)
            prepare(self.model)
        else:
            if tokenizer is None:
                raise ConfigError("A model in memory needs its tokenizer.", "Give tokenizer=….")
            self.name, self.model, self.tokenizer = "in-memory", model, tokenizer
            self.generation = generation or GenerationConfig(model.config.eos_token_ids)
            load_template = None
        self.config = self.model.config
        check_vocabulary(self.name, self.tokenizer, self.generation, self.config.vocab_size)
        sequences = engine_options.setdefault("max_sequences", 32)
        if engine_options.setdefault("max_batch_tokens", 512) < sequences:
            engine_options["max_batch_tokens"] = sequences
        how: Any = {"dtype": dtype, "quantize": quantize, "device": self.model.device}
        draft = load_draft(draft_model, self.tokenizer, **how, **hub)
        size = self.tokenizer.vocab_size
        engine = Engine(self.model, vocab_size=size, draft_model=draft, **engine_options)
        text_side = (self.tokenizer, self.generation, template, load_template)
        self.adapters = Adapters(self.model)
        self._queries = QueryMaker(engine, self.adapters, *text_side)
        self._driver = Driver(
            engine, max_waiting=max_waiting, max_waiting_per_tenant=max_waiting_per_tenant
        )
        self._embedder = Embedder(self._driver, self.tokenizer)
        self.scorer = Scorer(self._driver, self.tokenizer, self.adapters)
        self._grammars = Grammars(self.tokenizer, self._queries.end_ids)
        self._names = itertools.count()
        # Runs when the object goes, and at the interpreter's exit.
        self._finalizer = weakref.finalize(self, _close, self._driver, self._grammars)

    def close(self) -> None:
        """Stop the engine's thread; what still runs ends with EngineError. Closing again changes
        nothing.
        """
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare_grammars(self) -> None:
        """Make ready what answers with a grammar need: up to half a second in which nothing else
        runs, so a server calls it before there is traffic.
        """
        self._grammars.prepare()

    @property
    def driver(self) -> Driver:
        """The engine's thread: `driver.healthy`, `driver.engine.stats()`,
        `driver.engine.forget_prefixes()` when a model in memory has been trained on.
        """
        return self._driver

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._driver.engine.context_length

    @property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template. Errors: TemplateError when it is unusable."""
        return self._queries.template

    # Text and ids

    def tokenize(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Text → ids; special tokens in it stay text unless `allow_special`."""
        return self.tokenizer.encode(text, allow_special=allow_special)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Ids → text."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def render(
        self,
        messages: str | Messages,
        tools: Tools | None = None,
        *,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> Prompt:
        """Messages → the prompt that `chat` sends. Errors: TemplateError, RequestError."""
        options = {"add_generation_prompt": add_generation_prompt, **template_kwargs}
        return self._queries.render(messages, tools, **options)

    def logits(self, token_ids: Sequence[int], *, adapter: str | None = None) -> Tensor:
        """The model's logits after each of N tokens: (N, V) float32, V rows of the head, pad rows
        included. Errors: RequestError for no ids or ids out of range, ContextLengthError.
        """
        return logits_of(self.model, list(token_ids), self.adapters.find(adapter))

    # Chat

    def chat(
        self,
        messages: str | Messages,
        tools: Tools | None = None,
        *,
        template_kwargs: dict[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> ChatResult:
        """The assistant's answer to a conversation (or to one user message given as text).

        Errors: RequestError naming the parameter, ContextLengthError, TemplateError; EngineError
        when the engine gave up a valid request.
        """
        query = self._queries.chat(messages, tools, template_kwargs, sampling)
        return cast(ChatResult, self._complete([query], ChatResult, strict=True)[0])

    async def achat(
        self,
        messages: str | Messages,
        tools: Tools | None = None,
        *,
        template_kwargs: dict[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> ChatResult:
        """`chat` for coroutines; cancelling it aborts the request."""
        query = await self._prepared(self._queries.chat, messages, tools, template_kwargs, sampling)
        return cast(ChatResult, (await self._acomplete([query], ChatResult))[0])

    def chat_many(
        self,
        conversations: Sequence[str | Messages],
        tools: Sequence[Tools | None] | None = None,
        *,
        template_kwargs: dict[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[ChatResult]:
        """Answers to many conversations at once, in order. `tools` has one entry for each
        conversation.

        A bad input raises before anything runs. A request that the engine gives up raises nothing:
        its result has finish_reason "error" and `error`.
        """
        offered = list(tools) if tools is not None else [None] * len(conversations)
        if len(offered) != len(conversations):
            text = f"{len(conversations)} conversations, but {len(offered)} entries of tools."
            raise RequestError(text, "Give one entry for each conversation.", param="tools")
        queries = [
            self._queries.chat(messages, own, template_kwargs, sampling)
            for messages, own in zip(conversations, offered, strict=True)
        ]
        return cast("list[ChatResult]", self._complete(queries, ChatResult, strict=False))

    # Raw completion

    @overload
    def generate(
        self, prompt: str, *, allow_special: bool = ..., **sampling: Unpack[Sampling]
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        allow_special: bool = ...,
        **sampling: Unpack[Sampling],
    ) -> Any: ...

    def generate(self, prompt: Any, *, allow_special: bool = False, **sampling: Any) -> Any:
        """Go on from a text or ids: a `Completion`; from a list of texts or of id lists: a list of
        them.

        Special tokens in text stay text unless `allow_special`. A prompt with the
        fill-in-the-middle tokens also stops at the ids that end a hole. Errors as in `chat`; in a
        list as in `chat_many`.
        """
        prompts, single = as_prompts(prompt)
        queries = [self._queries.raw(each, allow_special, sampling) for each in prompts]
        results = self._complete(queries, Completion, strict=single)
        return results[0] if single else results

    async def agenerate(
        self,
        prompt: str | Sequence[int],
        *,
        allow_special: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """`generate` of one prompt for coroutines; cancelling it aborts the request."""
        query = await self._prepared(self._queries.raw, prompt, allow_special, sampling)
        return (await self._acomplete([query], Completion))[0]

    # Streams

    def stream(
        self,
        messages: str | Messages | None = None,
        tools: Tools | None = None,
        *,
        prompt: str | Sequence[int] | None = None,
        allow_special: bool = False,
        template_kwargs: dict[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generator[StreamDelta, None, None]:
        """The answer to `messages` (as `chat`), or the completion of `prompt` (as `generate`),
        piece by piece.

        The input is checked here, not at the first piece. Closing the iterator aborts the request.
        """
        query = self._queries.either(
            messages, tools, template_kwargs, prompt, allow_special, sampling
        )
        query = self._grammars.add_to(query)
        return self._watch(Job([query], self.tokenizer, self._names, live=True))

    async def astream(
        self,
        messages: str | Messages | None = None,
        tools: Tools | None = None,
        *,
        prompt: str | Sequence[int] | None = None,
        allow_special: bool = False,
        template_kwargs: dict[str, Any] | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerator[StreamDelta, None]:
        """`stream` for coroutines. Errors in the input come with the first piece."""
        what = (messages, tools, template_kwargs, prompt, allow_special, sampling)
        query = await self._prepared(self._queries.either, *what)
        job = Job([query], self.tokenizer, self._names, live=True)
        async with aclosing(arun(self._driver, job)) as deltas:
            async for delta in deltas:
                yield delta
        job.raise_errors()

    # Vectors

    def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        pooling: Pooling = "last",
        dimensions: int | None = None,
        adapter: str | Adapter | None = None,
    ) -> Embeddings:
        """Vectors of texts or id lists, as `qwenkit.llm.embed` makes them. Errors: RequestError,
        ContextLengthError, QueueFullError, EngineError.
        """
        self._embedder.check(pooling, dimensions)
        ids, own = self._embedder.ids(inputs, None), self.adapters.find(adapter)
        return self._embedder.start(ids, pooling, dimensions, own).result()

    async def aembed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        pooling: Pooling = "last",
        dimensions: int | None = None,
        max_tokens: int | None = None,
        adapter: str | Adapter | None = None,
    ) -> Embeddings:
        """`embed` for coroutines; cancelling it ends the work. `max_tokens`: of all inputs
        together.
        """
        self._embedder.check(pooling, dimensions)
        own = self.adapters.find(adapter)
        ids = await asyncio.to_thread(self._embedder.ids, inputs, max_tokens)
        return await asyncio.wrap_future(self._embedder.start(ids, pooling, dimensions, own))

    # The way to the engine

    async def _prepared(self, make: Callable[..., Query], *what: Any) -> Query:
        """A query, made where the event loop need not wait for it."""
        return await self._grammars.aadd_to(await asyncio.to_thread(make, *what))

    def _watch(self, job: Job) -> Generator[StreamDelta, None, None]:
        yield from run(self._driver, job)
        job.raise_errors()

    def _complete(
        self, queries: list[Query], kind: type[Completion], *, strict: bool
    ) -> list[Completion]:
        queries = [self._grammars.add_to(query) for query in queries]
        job = Job(queries, self.tokenizer, self._names, live=False)
        with closing(run(self._driver, job)) as deltas:
            for _ in deltas:
                pass
        if strict:
            job.raise_errors()
        return job.results(kind)

    async def _acomplete(self, queries: list[Query], kind: type[Completion]) -> list[Completion]:
        job = Job(queries, self.tokenizer, self._names, live=False)
        async with aclosing(arun(self._driver, job)) as deltas:
            async for _ in deltas:
                pass
        job.raise_errors()
        return job.results(kind)


def _close(driver: Driver, grammars: Grammars) -> None:
    driver.close()
    grammars.close()
