"""What a Python user holds: text in, text and tool calls out.

    llm = LLM("tiny-instruct")  # an embedded name, a folder, or org/name on a hub
    print(llm.chat("What is 12 + 30?").text)
    for delta in llm.stream("Tell me a story.", temperature=0.7):
        print(delta.text, end="")

Every method may be called from many threads and coroutines at once: all of them share one batch,
stepped by one thread. `chat_many` and a list given to `generate` run together too. Nothing is ever
cut silently: a prompt that does not fit with its max_tokens is a ContextLengthError with the
counts.
Not covered: images, structured output.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import weakref
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from qwenkit.config import GenerationConfig
from qwenkit.engine import Driver, Engine
from qwenkit.errors import ConfigError, ContextLengthError, RequestError
from qwenkit.io.hub import Progress
from qwenkit.io.hub import resolve as resolve_ref
from qwenkit.llm.files import TemplateLoader, read_files
from qwenkit.llm.job import Job, Query
from qwenkit.llm.queries import Messages, QueryMaker, Tools, as_prompts
from qwenkit.llm.results import ChatResult, Completion, StreamDelta
from qwenkit.llm.run import arun, run
from qwenkit.model.batch import Batch
from qwenkit.model.load import load_model
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
        max_model_len: longest prompt + max_tokens; by default the model's context.
        kv_bytes, block_size, max_batch_tokens, max_sequences: as in `qwenkit.engine.Engine`.

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
        max_model_len: int | None = None,
        kv_bytes: int | None = None,
        block_size: int = 16,
        max_batch_tokens: int = 512,
        max_sequences: int = 32,
    ) -> None:
        self.path: Path | None = None
        if isinstance(model, (str, os.PathLike)):
            self.name = os.fspath(model) + (f"@{revision}" if revision else "")
            self.path = resolve_ref(
                self.name if revision else model, source=source, offline=offline, progress=progress
            )
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
        self._check_vocabulary()
        engine = Engine(
            self.model,
            kv_bytes=kv_bytes,
            block_size=block_size,
            max_batch_tokens=max(max_batch_tokens, max_sequences),
            max_sequences=max_sequences,
            max_model_len=max_model_len,
            vocab_size=self.tokenizer.vocab_size,
        )
        text_side = (self.tokenizer, self.generation, template, load_template)
        self._queries = QueryMaker(engine, *text_side)
        self._driver = Driver(engine)
        self._names = itertools.count()
        # Runs when the object goes, and at the interpreter's exit.
        self._finalizer = weakref.finalize(self, self._driver.close)

    def close(self) -> None:
        """Stop the engine's thread; what still runs ends with EngineError. Closing again changes
        nothing.
        """
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """The model's logits after each of N tokens: (N, V) float32, V rows of the head (pad rows
        included).

        Errors: RequestError for no ids or ids out of range, ContextLengthError.
        """
        ids = list(token_ids)
        if not ids or not all(type(i) is int and 0 <= i < self.config.vocab_size for i in ids):
            raise RequestError(
                f"token_ids must be at least one integer from 0 to {self.config.vocab_size - 1}.",
                param="token_ids",
            )
        if len(ids) > self.config.context_length:
            raise ContextLengthError(len(ids), 0, self.config.context_length, param="token_ids")
        batch = Batch.from_sequences([ids], self.model.device)
        if self.config.yarn and len(ids) > self.config.original_context_length:
            batch.scaled = torch.ones(len(ids), dtype=torch.bool, device=self.model.device)
        with torch.no_grad():
            logits: Tensor = self.model(batch)
        return logits

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
        query = await asyncio.to_thread(
            self._queries.chat, messages, tools, template_kwargs, sampling
        )
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
            raise RequestError(
                f"{len(conversations)} conversations, but {len(offered)} entries of tools.",
                "Give one entry for each conversation.",
                param="tools",
            )
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
        query = await asyncio.to_thread(self._queries.raw, prompt, allow_special, sampling)
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
        query = await asyncio.to_thread(self._queries.either, *what)
        job = Job([query], self.tokenizer, self._names, live=True)
        async with aclosing(arun(self._driver, job)) as deltas:
            async for delta in deltas:
                yield delta
        job.raise_errors()

    # The way to the engine

    def _watch(self, job: Job) -> Generator[StreamDelta, None, None]:
        yield from run(self._driver, job)
        job.raise_errors()

    def _complete(
        self, queries: list[Query], kind: type[Completion], *, strict: bool
    ) -> list[Completion]:
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

    def _check_vocabulary(self) -> None:
        """The tokenizer and the end ids must fit the model's rows."""
        size, rows = self.tokenizer.vocab_size, self.config.vocab_size
        if size > rows:
            raise ConfigError(
                f"{self.name}: the tokenizer has {size} tokens, the model only {rows} rows.",
                "They are not of the same checkpoint; fetch it again.",
            )
        wild = [i for i in self.generation.eos_token_ids if i >= size]
        if wild:
            raise ConfigError(
                f"{self.name}: eos_token_id {wild[0]} is not a token; there are {size}.",
                "Mend generation_config.json or config.json.",
            )
