"""What `POST /v1/chat/completions` takes, and the question to the `LLM` that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from qwenkit.options.serve import ServeOptions
from qwenkit.prompt.chat import check_template_kwargs
from qwenkit.prompt.messages import MAX_MESSAGES
from qwenkit.server.errors import bad_value, unsupported
from qwenkit.server.openai.fields import Label, SamplingFields, Strict
from qwenkit.server.service import Call, Service

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ContentPart(Strict):
    """A part of a message."""

    type: Literal["text", "refusal", "image_url", "video_url", "input_audio", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    video_url: Any = None
    input_audio: Any = None
    file: Any = None


Parts = Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class FunctionCall(Strict):
    """The function of a call; `arguments` is the JSON text of an object."""

    name: str
    arguments: str | dict[str, Any]


class ToolCallField(Strict):
    """A call that the assistant made before."""

    id: Label | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: FunctionCall


class ChatMessage(Strict):
    """A message of the conversation. What an answer has beside content and calls may come back with
    it, and is not read.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: Label | None = None
    tool_calls: list[ToolCallField] | None = Field(None, max_length=128, fail_fast=True)
    tool_call_id: Label | None = None
    refusal: str | None = None
    annotations: list[Any] | None = Field(None, max_length=1024)
    audio: None = None
    function_call: None = None
    reasoning_content: str | None = None

    def texts(self) -> list[str]:
        """What it says, in one or in parts."""
        if isinstance(self.content, list):
            return [part.text or "" for part in self.content]
        return [self.content or ""]

    def plain(self) -> dict[str, Any]:
        """As `LLM` takes it."""
        role = "system" if self.role == "developer" else self.role
        content: Any = self.content
        if isinstance(content, list):
            content = [part.model_dump(exclude_none=True) for part in content]
            content = [
                {"type": "text", "text": part.get("refusal", "")}
                if part["type"] == "refusal"
                else part
                for part in content
            ]
        message: dict[str, Any] = {"role": role, "content": content}
        if self.tool_calls is not None:
            calls = [call.model_dump(exclude_none=True) for call in self.tool_calls]
            message["tool_calls"] = calls
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class FunctionField(Strict):
    """A function that the model may call."""

    name: ToolName
    description: Annotated[str, Field(max_length=1 << 20)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that is offered."""

    type: Literal["function"]
    function: FunctionField

    def plain(self) -> dict[str, Any]:
        """As `LLM` takes it, and the template prints it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True)}


class FunctionName(Strict):
    """Which function."""

    name: ToolName


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Strict):
    """The schema that the answer follows."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Label | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        inner = self.json_schema
        if self.type == "json_schema" and (inner is None or inner.schema_ is None):
            text = "Missing required parameter: 'response_format.json_schema.schema'."
            raise bad_value("response_format", text, None)
        return self


class ChatRequest(SamplingFields):
    """A conversation to be answered."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "audio": "this model writes text only.",
        "function_call": "use tool_choice.",
        "functions": "use tools.",
        "modalities": "this model writes text only; leave it out.",
        "prediction": "leave it out.",
        "reasoning_effort": "this model does not reason apart from its answer.",
        "verbosity": "say in the system message how long answers should be.",
        "web_search_options": "this server does not reach out.",
    }
    NEUTRAL: ClassVar[dict[str, list[Any]]] = {
        "modalities": [["text"]],
        "reasoning_effort": ["none"],
        "verbosity": ["medium"],
    }
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 24)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128, fail_fast=True)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(None, max_length=16)
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check_limits(self, options: ServeOptions) -> None:
        super().check_limits(options)
        for name, given, most in (
            ("messages", self.messages, options.max_messages),
            ("tools", self.tools, options.max_tools),
        ):
            if len(given or ()) > most:
                text = f"Invalid '{name}': it must have at most {most} entries."
                raise bad_value(name, text, "array_above_max_length")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            text = "Give max_completion_tokens or max_tokens, not both."
            raise bad_value("max_tokens", text)
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_value("top_logprobs", "top_logprobs is only for logprobs: true.")
        if self.store:
            raise unsupported("store", "'store' is not supported: chat completions are not kept.")
        names = [tool.function.name for tool in self.tools or ()]
        match self.tool_choice:
            case None | "none":
                pass
            case _ if not names:
                raise bad_value("tool_choice", "tool_choice is only for requests with tools.")
            case NamedTool(function=function) if function.name not in names:
                text = f"tool_choice names the tool {function.name!r}, which is not among tools."
                raise bad_value("tool_choice", text)

    def shape(self) -> dict[str, tuple[str, Any]]:
        found = super().shape()
        if self.response_format is not None and self.response_format.type != "text":
            if found:
                field = next(iter(found.values()))[0]
                raise bad_value(field, f"response_format and {field} go against each other.")
            form = self.response_format.model_dump(by_alias=True, exclude_none=True)
            found["response_format"] = ("response_format", form)
        return found

    def question(self, call: Call, service: Service) -> dict[str, Any]:
        """Keywords for `LLM.achat` and `LLM.astream`. Errors: ApiError."""
        adapter = service.check_model(self.model)
        self.check_limits(service.options)
        service.check_size((text for m in self.messages for text in m.texts()), "messages")
        check_results(self.messages)
        asked = {**self.sampling(call, service.options), "adapter": adapter}
        if self.max_completion_tokens is not None:
            asked["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            asked["logprobs"] = self.top_logprobs or 0
        asked["messages"] = [message.plain() for message in self.messages]
        if self.tools and self.tool_choice != "none":
            asked["tools"] = [tool.plain() for tool in self.tools]
            asked["parallel_tool_calls"] = self.parallel_tool_calls
            choice = self.tool_choice
            asked["tool_choice"] = choice.model_dump() if isinstance(choice, NamedTool) else choice
        if self.chat_template_kwargs is not None:
            asked["template_kwargs"] = check_template_kwargs(self.chat_template_kwargs)
        return asked


def check_results(messages: Sequence[ChatMessage]) -> None:
    """Behind calls come their results, before anybody else speaks. Errors: ApiError."""
    open_calls: list[str | None] = []
    asker = 0
    for number, message in enumerate(messages):
        if message.role != "tool":
            _check_answered(open_calls, asker)
            open_calls, asker = [call.id for call in message.tool_calls or ()], number
        elif message.tool_call_id in open_calls:
            open_calls.remove(message.tool_call_id)
        elif message.tool_call_id is None:
            where = f"messages[{number}].tool_call_id"
            text = f"Missing required parameter: '{where}'."
            raise bad_value(where, text, "missing_required_parameter")
    _check_answered(open_calls, asker)


def _check_answered(open_calls: Sequence[str | None], asker: int) -> None:
    if open_calls:
        where = f"messages[{asker}].tool_calls"
        missing = ", ".join(repr(call) if call else "without an id" for call in open_calls[:8])
        text = f"'{where}': the result of the call {missing} is missing; it comes right behind."
        raise bad_value(where, text)
