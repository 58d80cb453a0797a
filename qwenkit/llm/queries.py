"""From messages, texts or ids, and sampling parameters, to checked queries. No threads, nothing
runs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from qwenkit.config import GenerationConfig
from qwenkit.engine import Engine, Request
from qwenkit.errors import ConfigError, ContextLengthError, RequestError
from qwenkit.llm.adapters import Adapters
from qwenkit.llm.files import TemplateLoader
from qwenkit.llm.job import Query
from qwenkit.llm.sampling import SHAPE, resolve
from qwenkit.prompt.chat import ChatTemplate, Prompt
from qwenkit.prompt.constraint import Constraint, constraint_of
from qwenkit.prompt.fim import fim_stop_ids
from qwenkit.prompt.messages import tool_names
from qwenkit.prompt.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
END_OF_TURN = ("<|im_end|>", "<|endoftext|>")
"""A chat turn is over at these whatever generation_config.json says; a base model's lists only the
second.
"""


class QueryMaker:
    """Holds what a prompt is made with; `engine` only to ask what fits, `adapters` for names."""

    def __init__(
        self,
        engine: Engine,
        adapters: Adapters,
        tokenizer: Tokenizer,
        generation: GenerationConfig,
        template: ChatTemplate | None,
        load_template: TemplateLoader | None,
    ) -> None:
        self.tokenizer, self.generation, self.engine = tokenizer, generation, engine
        self.adapters = adapters
        self._template, self._load_template = template, load_template
        self._config = engine.model.config
        special = tokenizer.special_ids
        self._turn_ends = [special[token] for token in END_OF_TURN if token in special]
        self.end_ids = tuple(dict.fromkeys((*generation.eos_token_ids, *self._turn_ends)))
        """Whatever ends an answer that is held to a grammar."""

    @cached_property
    def template(self) -> ChatTemplate:
        """Loaded when first needed: a base model may have none and still complete. Errors:
        TemplateError.
        """
        if self._template is not None:
            return self._template
        if self._load_template is None:
            raise ConfigError("A model in memory needs a template to chat.", "Give template=….")
        return self._load_template()

    def render(self, messages: str | Messages, tools: Tools | None, **options: Any) -> Prompt:
        """A text is one user message."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.template.render(messages, tools, **options)

    def chat(
        self,
        messages: str | Messages,
        tools: Tools | None,
        template_kwargs: Mapping[str, Any] | None,
        sampling: Mapping[str, Any],
    ) -> Query:
        shape = {name: sampling[name] for name in SHAPE if name in sampling}
        constraint = constraint_of(tools=tools, **shape)
        if shape.get("tool_choice") == "none":
            tools = None
        options = {"add_generation_prompt": True, **(template_kwargs or {})}
        prompt = self.render(messages, _without_strict(tools), **options)
        query = self._query(prompt.ids, sampling, self._turn_ends, constraint, "messages")
        return replace(query, tools=tool_names(tools))

    def raw(
        self, prompt: str | Sequence[int], allow_special: bool, sampling: Mapping[str, Any]
    ) -> Query:
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, allow_special=allow_special)
        else:
            ids = list(prompt)
        fills = self.tokenizer.special_ids.get("<|fim_middle|>") in ids
        ends = fim_stop_ids(self.tokenizer) if fills else ()
        shape = {name: sampling[name] for name in SHAPE if sampling.get(name) is not None}
        for name in ("tool_choice", "parallel_tool_calls"):
            if name in shape:
                raise RequestError(f"{name} goes with messages and tools.", param=name)
        return self._query(ids, sampling, ends, constraint_of(**shape), "prompt")

    def either(
        self,
        messages: str | Messages | None,
        tools: Tools | None,
        template_kwargs: Mapping[str, Any] | None,
        prompt: str | Sequence[int] | None,
        allow_special: bool,
        sampling: Mapping[str, Any],
    ) -> Query:
        """`chat` or `raw`, by which of `messages` and `prompt` is given."""
        if (messages is None) == (prompt is None):
            raise RequestError("Give either messages or prompt.", param="messages")
        if prompt is not None:
            return self.raw(prompt, allow_special, sampling)
        assert messages is not None
        return self.chat(messages, tools, template_kwargs, sampling)

    def _query(
        self,
        ids: Sequence[int],
        sampling: Mapping[str, Any],
        ends: Sequence[int],
        constraint: Constraint | None,
        param: str,
    ) -> Query:
        """Resolve the parameters and hold the sizes against the context.

        max_tokens by default: what generation_config says, but no more than what is left of the
            context, of the
        cache, and of the original context where YaRN would extend it (answers are better without).
        """
        adapter = self.adapters.find(sampling.get("adapter"))
        count, context = len(ids), self.engine.context_length
        limits = [context - count, self.engine.cache_tokens + 1 - count]
        if count < self._config.original_context_length:
            limits.append(self._config.original_context_length - count)
        if self.generation.max_new_tokens:
            limits.append(self.generation.max_new_tokens)
        end_ids = list(dict.fromkeys((*self.generation.eos_token_ids, *ends)))
        if constraint is not None:
            if sampling.get("ignore_eos"):
                raise RequestError(
                    "ignore_eos and a grammar go against each other.",
                    "Leave ignore_eos out.",
                    param="ignore_eos",
                )
            end_ids = list(dict.fromkeys((*end_ids, *self.end_ids)))
        default = max(min(limits), 1)
        resolved = resolve(sampling, self.generation, max_tokens=default, end_ids=end_ids)
        if count + resolved.params.max_tokens > context:
            raise ContextLengthError(count, resolved.params.max_tokens, context, param=param)
        self.engine.check(Request("", ids, resolved.params))
        return Query(ids, resolved, constraint=constraint, adapter=adapter)


def _without_strict(tools: Tools | None) -> Tools | None:
    """`strict` is for the grammar; no model has seen it in its prompt."""
    if tools is None:
        return None
    functions = [tool.get("function", tool) for tool in tools]
    bare = [{key: f[key] for key in f if key != "strict"} for f in functions]
    return [
        {**tool, "function": function} if "function" in tool else function
        for tool, function in zip(tools, bare, strict=True)
    ]


def as_prompts(prompt: Any) -> tuple[list[Any], bool]:
    """Prompts as a list, and whether it was a single one. Errors: RequestError."""
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, Sequence) and prompt:
        if all(isinstance(each, Sequence) for each in prompt):
            return list(prompt), False
        if not any(isinstance(each, Sequence) for each in prompt):
            return [prompt], True
    raise RequestError(
        "prompt must be a text, a list of token ids, or a list of those; and not empty.",
        param="prompt",
    )
