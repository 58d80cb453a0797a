"""The fields that the generating endpoints share, and what becomes of them.

Models are strict: no text for a number, no unknown field. What OpenAI documents and this server
does not have is refused by name (`UNSUPPORTED`), unless it asks for nothing. A request can only ask
for less than the operator's limits, and is told so before anything is computed.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qwenkit.options.serve import ServeOptions
from qwenkit.server.errors import ApiError, bad_value, unsupported
from qwenkit.server.service import Call

INT64 = 2**63
Name = Annotated[str, Field(max_length=1024)]
Label = Annotated[str, Field(max_length=512)]


def _name_unsupported(schema: dict[str, Any], model: type[Any]) -> None:
    """What is refused stands in the document with the values that are not."""
    for name, why in model.UNSUPPORTED.items():
        only: dict[str, Any] = {"enum": [None, *model.NEUTRAL.get(name, ())]}
        if len(only["enum"]) == 1:
            only = {"type": "null"}
        schema["properties"][name] = {**only, "description": f"Not supported: {why}"}


class Strict(BaseModel):
    """Base of everything that a client sends."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_name_unsupported
    )
    UNSUPPORTED: ClassVar[dict[str, str]] = {}
    """Documented fields that this server refuses: name → why."""
    NEUTRAL: ClassVar[dict[str, list[Any]]] = {}
    """Values of them that ask for nothing else than what is done anyway."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        """Null is the same as nothing; a documented field that is not here is named."""
        if not isinstance(values, dict):
            return values
        for name, why in cls.UNSUPPORTED.items():
            value = values.get(name)
            if value is not None and value not in cls.NEUTRAL.get(name, ()):
                raise unsupported(name, f"'{name}' is not supported: {why}")
        if cls.UNSUPPORTED:
            return {key: value for key, value in values.items() if key not in cls.UNSUPPORTED}
        return values


class StreamOptions(Strict):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Strict):
    """What the answer looks like: one of the four."""

    json_: dict[str, Any] | bool | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(default=None, max_length=1000, fail_fast=True)
    grammar: str | None = None


class SamplingFields(Strict):
    """How an answer is drawn: OpenAI's fields, and the usual extras behind them."""

    model: Name
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024
    )
    max_tokens: int | None = Field(None, ge=1, le=1 << 24)
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-INT64, le=INT64 - 1)
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Label | None = None
    top_k: int | None = Field(None, ge=-1, le=INT64 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    min_tokens: int | None = Field(None, ge=0, le=1 << 24)
    stop_token_ids: list[int] | None = Field(None, max_length=64, fail_fast=True)
    ignore_eos: bool | None = None
    guided_json: dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, max_length=1000, fail_fast=True)
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    def shape(self) -> dict[str, tuple[str, Any]]:
        """What the answer must look like: keyword of `LLM` → (the client's field, its value)."""
        inner = self.structured_outputs or StructuredOutputs(json=None)
        prefix = "structured_outputs."
        given = {
            "guided_json": ("json", self.guided_json),
            "guided_regex": ("regex", self.guided_regex),
            "guided_choice": ("choice", self.guided_choice),
            "guided_grammar": ("grammar", self.guided_grammar),
            f"{prefix}json": ("json", inner.json_),
            f"{prefix}regex": ("regex", inner.regex),
            f"{prefix}choice": ("choice", inner.choice),
            f"{prefix}grammar": ("grammar", inner.grammar),
        }
        found = [(field, *pair) for field, pair in given.items() if pair[1] is not None]
        if len(found) > 1:
            raise bad_value(found[1][0], f"{found[0][0]} and {found[1][0]} go against each other.")
        for field, name, value in found:
            if name == "json":
                form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
                return {"response_format": (field, form)}
            return {name: (field, value)}
        return {}

    def check_limits(self, options: ServeOptions) -> None:
        """Errors: ApiError for what the operator does not allow."""
        if self.n is not None and self.n > options.max_choices:
            raise _above("n", options.max_choices)
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(texts) > options.max_stop:
            text = f"Invalid 'stop': it must have at most {options.max_stop} entries."
            raise bad_value("stop", text, "array_above_max_length")
        for number, stop in enumerate(texts):
            where = "stop" if isinstance(self.stop, str) else f"stop[{number}]"
            if not stop:
                raise bad_value(where, f"Invalid '{where}': it is empty.", "empty_string")
            if len(stop) > options.max_stop_chars:
                most = options.max_stop_chars
                text = f"Invalid '{where}': it must have at most {most} characters."
                raise bad_value(where, text, "string_above_max_length")
        if self.stream_options is not None and not self.stream:
            raise bad_value("stream_options", "stream_options is only for stream: true.")

    def sampling(self, call: Call, options: ServeOptions) -> dict[str, Any]:
        """Keywords for `LLM`. Errors in them are told by the names that the client used."""
        names = (
            "temperature top_p presence_penalty frequency_penalty max_tokens n seed stop top_k "
            "min_p repetition_penalty min_tokens stop_token_ids ignore_eos"
        )
        given = {name: getattr(self, name) for name in names.split()}
        given["logit_bias"] = _bias(self.logit_bias)
        given["tenant"], given["queue_timeout"] = call.caller.tenant, options.queue_timeout
        for name, (field, value) in self.shape().items():
            given[name], call.spelling[name] = value, field
        return {name: value for name, value in given.items() if value is not None}


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    for key in given:
        if not key.isascii() or not key.isdecimal() or len(key) > 10 or str(int(key)) != key:
            raise bad_value("logit_bias", f"Invalid 'logit_bias': {key[:40]!r} is no token id.")
    return {int(key): value for key, value in given.items()}


def _above(name: str, most: int) -> ApiError:
    text = f"Invalid '{name}': integer above maximum value. Expected at most {most}."
    return bad_value(name, text, "integer_above_max_value")
