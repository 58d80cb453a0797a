"""What `POST /v1/responses` takes. It becomes a `ChatRequest`, so that whatever holds for chats
holds here too; errors are told by the names and places that the client used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError

from qwenkit.prompt.messages import MAX_MESSAGES
from qwenkit.server.errors import ApiError, as_api_error, bad_value, unsupported
from qwenkit.server.openai.chat_fields import ChatRequest, ToolName
from qwenkit.server.openai.fields import INT64, Label, Name, StreamOptions, Strict
from qwenkit.server.service import Call
from qwenkit.server.validation import explain

LOGPROBS = "message.output_text.logprobs"
OUTSIDE = "previous_response_id"
"""The place of messages that came with an earlier response."""


class Part(Strict):
    """A part of a message, of either direction. What an answer has beside text may come back with
    it, and is not read.
    """

    type: Literal[
        "input_text", "output_text", "refusal", "input_image", "input_file", "input_audio"
    ]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = Field(None, max_length=1024)
    logprobs: list[Any] | None = Field(None, max_length=1 << 20)
    image_url: Any = None
    detail: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    input_audio: Any = None

    def plain(self) -> dict[str, Any]:
        """The same as a part of a chat message."""
        if self.type in ("input_text", "output_text"):
            return {"type": "text", "text": self.text}
        if self.type == "refusal":
            return {"type": "refusal", "refusal": self.refusal}
        kind = {"input_image": "image_url", "input_file": "file"}.get(self.type, self.type)
        return {"type": kind}


Parts = Annotated[list[Part], Field(max_length=MAX_MESSAGES, fail_fast=True)]
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Strict):
    """A message of somebody."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts
    id: Label | None = None
    status: Status | None = None
    phase: Label | None = None


class CallItem(Strict):
    """A call that the model asked for."""

    type: Literal["function_call"]
    call_id: Label
    name: ToolName
    arguments: str
    id: Label | None = None
    status: Status | None = None


class OutputItem(Strict):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Label
    output: str | Parts
    id: Label | None = None
    status: Status | None = None


class OtherItem(Strict):
    """Names the items that there are."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["message", "function_call", "function_call_output"]


def _item_form(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    known = {None: "<message>", "message": "<message>", "function_call": "<call>"}
    known["function_call_output"] = "<output>"
    return known.get(kind, "<other>") if isinstance(kind, str | None) else "<other>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<call>")]
    | Annotated[OutputItem, Tag("<output>")]
    | Annotated[OtherItem, Tag("<other>")],
    Discriminator(_item_form),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class FunctionTool(Strict):
    """A function that the model may call; other tools do not exist here."""

    type: Literal["function"]
    name: ToolName
    description: Annotated[str, Field(max_length=1 << 20)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    name: ToolName


class TextFormat(Strict):
    """What the text looks like."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    description: Label | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextWishes(Strict):
    """How the text is to be."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "verbosity": "say in the instructions how long answers should be."
    }
    NEUTRAL: ClassVar[dict[str, list[Any]]] = {"verbosity": ["medium"]}
    format: TextFormat | None = None


class ResponseRequest(Strict):
    """Something to be answered, alone or behind an earlier response."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "context_management": "leave it out.",
        "conversation": "chain responses by previous_response_id.",
        "max_tool_calls": "this server runs no tools itself.",
        "prompt": "this server keeps no prompts; give input and instructions.",
        "reasoning": "this model does not reason apart from its answer.",
    }
    NEUTRAL: ClassVar[dict[str, list[Any]]] = {"reasoning": [{}, {"effort": "none"}]}
    model: Name
    input: str | Items
    instructions: str | None = None
    previous_response_id: Label | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 24)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Label] | None = Field(None, max_length=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    background: bool | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=128, fail_fast=True)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextWishes | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(None, max_length=16)
    service_tier: Literal["auto", "default"] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    top_k: int | None = Field(None, ge=-1, le=INT64 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = Field(None, ge=-INT64, le=INT64 - 1)
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return [{"type": "message", **i.model_dump(exclude_none=True)} for i in self.input]

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())

    def check(self) -> None:
        """Errors: ApiError."""
        if self.truncation == "auto":
            raise unsupported("truncation", "'auto' is not supported: nothing is cut silently.")
        for number, name in enumerate(self.include or ()):
            if name != LOGPROBS:
                where = f"include[{number}]"
                text = f"Invalid value for '{where}'. Supported values are: '{LOGPROBS}'."
                raise bad_value(where, text)
        if self.background and self.stream:
            raise unsupported("background", "'background' with stream is not supported.")
        if self.background and self.store is False:
            raise bad_value("background", "A response in the background must be stored.")
        if self.stream_options is not None and not self.stream:
            raise bad_value("stream_options", "stream_options is only for stream: true.")
        form = self.text.format if self.text else None
        if form is not None and form.type == "json_schema":
            for name, value in (("name", form.name), ("schema", form.schema_)):
                if value is None:
                    where = f"text.format.{name}"
                    text = f"Missing required parameter: '{where}'."
                    raise bad_value(where, text, "missing_required_parameter")

    def chat(self, earlier: Sequence[Mapping[str, Any]]) -> tuple[ChatRequest, list[str]]:
        """The chat that it is behind `earlier` items; and of each message, where it came from.

        Errors: ApiError.
        """
        self.check()
        messages: list[dict[str, Any]] = []
        places: list[str] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
            places.append("instructions")
        own = self.items
        single = isinstance(self.input, str)
        add_items(messages, places, earlier, [OUTSIDE] * len(earlier))
        where = ["input"] if single else [f"input[{number}]" for number in range(len(own))]
        add_items(messages, places, own, where)
        asked: dict[str, Any] = {
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
        }
        for name in _SAME:
            asked[name] = getattr(self, name)
        if self.wants_logprobs:
            asked["logprobs"], asked["top_logprobs"] = True, self.top_logprobs or 0
        if self.tools is not None:
            tools = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in self.tools]
            asked["tools"] = [{"type": "function", "function": tool} for tool in tools]
        if isinstance(self.tool_choice, NamedFunction):
            asked["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        asked["response_format"] = self._format()
        asked = {name: value for name, value in asked.items() if value is not None}
        try:
            return ChatRequest.model_validate(asked), places
        except ValidationError as error:
            raise renamed(explain(error, asked), places) from None
        except ApiError as error:
            raise renamed(error, places) from None

    def _format(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if form is None:
            return None
        if form.type != "json_schema":
            return {"type": form.type}
        inner = form.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"type": "json_schema", "json_schema": inner}


_SAME = (
    "model temperature top_p tool_choice parallel_tool_calls metadata user safety_identifier "
    "prompt_cache_key presence_penalty frequency_penalty top_k min_p repetition_penalty seed "
    "chat_template_kwargs"
).split()
_NAMES = {
    "max_tokens": ("max_output_tokens", None),
    "max_completion_tokens": ("max_output_tokens", None),
    "response_format": ("text.format.schema", "invalid_json_schema"),
    "messages": ("input", None),
    "logprobs": ("top_logprobs", None),
}

_WORDS = (
    ("'image_url'", "'input_image'"),
    ("'file'", "'input_file'"),
    (" max_tokens", " max_output_tokens"),
)
"""Names of chats in messages."""


def add_items(
    messages: list[dict[str, Any]],
    places: list[str],
    items: Iterable[Mapping[str, Any]],
    where: Sequence[str],
) -> None:
    """Items as chat messages behind `messages`: a call belongs to the assistant's message before
    it.
    """
    for item, place in zip(items, where, strict=True):
        if item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
                continue
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif item["type"] == "function_call_output":
            content = _content(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        else:
            messages.append({"role": item["role"], "content": _content(item["content"])})
        places.append(place)


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    parts = [Part.model_validate(part).plain() for part in content]
    if all(part["type"] == "text" for part in parts) and len(parts) == 1:
        return parts[0]["text"]
    return parts


def renamed(error: BaseException, places: Sequence[str], call: Call | None = None) -> ApiError:
    """An error of the chat as one of the response: `messages[3].content` → `input[2].content`."""
    told = as_api_error(error, call.request_id if call else "")
    param = told.param
    if param is None:
        return told
    name, code = _NAMES.get(param, (param, None))
    told.code = code or told.code
    if param.startswith("messages["):
        index, _, rest = param[len("messages[") :].partition("]")
        place = places[int(index)] if int(index) < len(places) else "input"
        rest = rest.replace(".tool_call_id", ".call_id")
        own = place.startswith("input") and rest.startswith((".content", ".call_id", ".role"))
        name = place + (rest if own else "")
    elif param.startswith("tools["):
        name = param.replace(".function", "", 1)
    if "[" in param:  # no other word of the message can be meant
        told.message = told.message.replace(param, name)
    for word, better in _WORDS:
        told.message = told.message.replace(word, better)
    told.message = told.message.replace(f"'{param}'", f"'{name}'")
    told.param = name
    return told
