"""The options of the verbs that answer, fetch and tell: run, chat, pull, list, show, plan, …"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from qwenkit.options.base import Options, opt

DEFAULT_MODEL = "tiny-instruct"
SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)
_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}

Source = Literal["auto", "huggingface", "modelscope"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
_MODEL_HELP = "folder, organisation/name[@revision], or an embedded model"
_SOURCE_HELP = "hub to fetch from; auto tries Hugging Face, then ModelScope"


class ModelOptions(Options):
    """Which model, and where it runs."""

    model: str = opt(DEFAULT_MODEL, _MODEL_HELP, positional=True, metavar="MODEL")
    dtype: Dtype = opt(
        "auto",
        "arithmetic; auto is the checkpoint's own, float32 where bfloat16 would be slow",
        group="loading",
    )
    quantize: Literal["int4", "int8"] | None = opt(
        None, "pack the weights while loading", group="loading", metavar="int4|int8"
    )
    device: str | None = opt(
        None,
        "cpu, cuda or cuda:N; a GPU where there is one if not given",
        group="loading",
        metavar="NAME",
    )
    source: Source = opt("auto", _SOURCE_HELP, group="loading")
    offline: bool | None = opt(None, "use only what is on this machine", group="loading")

    @field_validator("dtype", mode="before")
    @classmethod
    def _spell_dtype(cls, value: Any) -> Any:
        return _DTYPES.get(value, value) if isinstance(value, str) else value

    @field_validator("device", mode="before")
    @classmethod
    def _auto_device(cls, value: Any) -> Any:
        return None if value == "auto" else value


class LoadOptions(ModelOptions):
    """How a model is loaded to answer."""

    threads: int | None = opt(
        None, "CPU threads; all cores if not given", ge=1, le=1024, group="loading"
    )
    max_model_len: int | None = opt(
        None,
        "longest prompt + answer in tokens; the model's context if not given",
        ge=1,
        aliases=("context", "ctx_size"),
        group="loading",
    )
    speculate: Literal["lookup", "draft"] | None = opt(
        None,
        "guess tokens and check several at once, from the text so far or by a draft model; "
        "the answer stays the same",
        group="loading",
        metavar="lookup|draft",
    )
    draft_model: str | None = opt(
        None,
        "smaller model of the same family for --speculate draft",
        group="loading",
        metavar="MODEL",
    )

    @property
    def adapters(self) -> dict[str, str]:
        """Name → folder of the adapters to load with the model."""
        return {}


class AnswerOptions(LoadOptions):
    """What run and chat share: the system message, tools and sampling."""

    lora: str | None = opt(
        None, "adapter to answer with: a folder in PEFT's format", group="loading", metavar="FOLDER"
    )
    system: str | None = opt(None, "system message", metavar="TEXT")
    tools: str | None = opt(
        None, "JSON file with a list of tools (OpenAI's format)", metavar="FILE.json"
    )
    max_tokens: int | None = opt(
        None,
        "longest answer in tokens; up to the end of the context if not given",
        ge=1,
        aliases=("max_new_tokens",),
        group="sampling",
    )
    temperature: float | None = opt(
        None, "randomness; 0 always takes the likeliest token", ge=0, le=100, group="sampling"
    )
    top_p: float | None = opt(
        None,
        "draw from the likeliest tokens of this total probability",
        gt=0,
        le=1,
        group="sampling",
    )
    top_k: int | None = opt(
        None, "draw from this many likeliest tokens; 0 is off", ge=-1, group="sampling"
    )
    min_p: float | None = opt(
        None, "drop tokens below this share of the likeliest", ge=0, le=1, group="sampling"
    )
    repetition_penalty: float | None = opt(
        None, "above 1 makes seen tokens rarer", ge=0.01, le=100, group="sampling"
    )
    presence_penalty: float | None = opt(
        None, "subtracted once from every token that was written", ge=-2, le=2, group="sampling"
    )
    frequency_penalty: float | None = opt(
        None, "subtracted for each time a token was written", ge=-2, le=2, group="sampling"
    )
    seed: int | None = opt(None, "same seed, same answer", ge=-(2**63), lt=2**63, group="sampling")
    stop: list[str] = opt(
        [], "end the answer before this text; may be repeated", group="sampling", metavar="TEXT"
    )

    @property
    def adapters(self) -> dict[str, str]:
        return {} if self.lora is None else {"lora": self.lora}

    def sampling(self) -> dict[str, Any]:
        """The sampling values that somebody has set; the checkpoint's own stay out of it."""
        given = {name: getattr(self, name) for name in SAMPLING}
        given["adapter"] = next(iter(self.adapters), None)
        return {name: value for name, value in given.items() if value is not None and value != []}


class RunOptions(AnswerOptions):
    """Answer one prompt; prints the answer alone."""

    verb: ClassVar[str] = "run"
    prompt: str | None = opt(
        None, "the prompt; `-` or nothing reads standard input", short="p", metavar="TEXT"
    )
    raw: bool = opt(
        False, "continue the prompt as it stands, without chat template; special tokens count"
    )
    as_json: bool = opt(False, "print one JSON object instead of the text", alias="json")


class ChatOptions(AnswerOptions):
    """Talk with a model in the terminal."""

    verb: ClassVar[str] = "chat"
    markdown: bool = opt(True, "render answers as markdown when writing to a terminal")


class PullOptions(Options):
    """Fetch a model from a hub into its cache."""

    verb: ClassVar[str] = "pull"
    model: str = opt(..., "organisation/name[@revision]", positional=True, metavar="MODEL")
    source: Source = opt("auto", _SOURCE_HELP)
    as_json: bool = opt(False, "print one JSON object", alias="json")


class ListOptions(Options):
    """List the models on this machine."""

    verb: ClassVar[str] = "list"
    as_json: bool = opt(False, "print JSON", alias="json")


class ShowOptions(Options):
    """Show a model: shape, context, template, licence, files."""

    verb: ClassVar[str] = "show"
    model: str = opt(DEFAULT_MODEL, _MODEL_HELP, positional=True, metavar="MODEL")
    source: Source = opt("auto", "cache to look into")
    as_json: bool = opt(False, "print one JSON object", alias="json")


class FamilyOptions(Options):
    """List the published models, and what fits this machine."""

    verb: ClassVar[str] = "family"
    kind: Literal["all", "base", "instruct", "coder", "math", "vl", "moe"] = opt(
        "all", "only this series"
    )
    fits: bool = opt(False, "only models that fit the free memory now")
    memory: str | None = opt(
        None, "plan for this much memory, such as 24GiB, instead of this machine's", metavar="SIZE"
    )
    as_json: bool = opt(False, "print JSON", alias="json")


class PlanOptions(Options):
    """Tell the memory that a model takes, before anything runs."""

    verb: ClassVar[str] = "plan"
    model: str = opt(
        DEFAULT_MODEL,
        "name in `qwenkit family`, folder, or config.json",
        positional=True,
        metavar="MODEL",
    )
    max_model_len: int | None = opt(
        None,
        "context in tokens; the model's own if not given",
        ge=1,
        aliases=("context", "ctx_size"),
    )
    concurrency: int = opt(
        1, "sequences at once, each of the full context", ge=1, aliases=("max_sequences",)
    )
    memory: str | None = opt(
        None, "plan for this much memory, such as 24GiB, instead of this machine's", metavar="SIZE"
    )
    as_json: bool = opt(False, "print one JSON object", alias="json")


class BenchOptions(ModelOptions):
    """What the measurements of speed share."""

    group: ClassVar[str] = "bench"
    threads: int | None = opt(
        None, "CPU threads; all cores if not given", ge=1, le=1024, group="loading"
    )
    seconds: float = opt(2.0, "measure for at least so long", gt=0, le=600)
    as_json: bool = opt(False, "print one JSON object", alias="json")


class DecodeOptions(BenchOptions):
    """Measure the decoding of one sequence."""

    verb: ClassVar[str] = "decode"
    context_tokens: int = opt(128, "tokens that stand before the measured ones", ge=1)


class PrefillOptions(BenchOptions):
    """Measure the reading of a prompt."""

    verb: ClassVar[str] = "prefill"
    prompt_tokens: int = opt(512, "tokens of the prompt", ge=1)


class BatchOptions(BenchOptions):
    """Measure the decoding of many sequences at once."""

    verb: ClassVar[str] = "batch"
    sequences: int = opt(16, "sequences at once", ge=1, le=512)
    context_tokens: int = opt(128, "tokens that stand before the measured ones", ge=1)


class RandomCheckpointOptions(Options):
    """Write a model of a published shape with random weights."""

    verb: ClassVar[str] = "random-checkpoint"
    group: ClassVar[str] = "dev"
    size: str = opt(
        ..., "0.5B, 1.5B, 3B … 72B, or a name in `qwenkit family`", positional=True, metavar="SIZE"
    )
    output_dir: str = opt(..., "folder to write", positional=True, metavar="DIR")
    seed: int = opt(0, "same seed, same weights", ge=0, lt=2**63)
    dtype: Literal["bfloat16", "float16", "float32"] = opt("bfloat16", "type of the weights")
    tokenizer: str = opt(
        DEFAULT_MODEL, "folder or embedded model whose tokenizer to copy", metavar="MODEL"
    )


class DoctorOptions(Options):
    """Check machine and installation, and name what is missing."""

    verb: ClassVar[str] = "doctor"
    network: bool = opt(True, "try to reach the hubs")
    as_json: bool = opt(False, "print one JSON object", alias="json")


class SchemaOptions(Options):
    """Print the JSON schema of the options in YAML files."""

    verb: ClassVar[str] = "config-schema"
    name: str | None = opt(None, "a verb; all if not given", positional=True, metavar="VERB")
