"""The options of `qwenkit serve`: the model, the address, the keys, and every limit of the server.

The limits are the operator's: a request can only ask for less.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import SecretStr, field_validator, model_validator

from qwenkit.options.base import opt
from qwenkit.options.verbs import LoadOptions

MIB = 1 << 20


def _origin(text: str) -> str:
    """As browsers write it (RFC 6454, section 6.2): in lower case, without the usual port."""
    match = re.fullmatch(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:]+\])(?::(\d{1,5}))?", text.lower())
    if match is None:
        raise ValueError(f"{text!r}: give https://name or http://name:port, no path, or *.")
    scheme, host, port = match.groups()
    usual = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" if port in (None, usual) else f"{scheme}://{host}:{port}"


class ServeOptions(LoadOptions):
    """Serve a model over HTTP, as OpenAI's API."""

    verb: ClassVar[str] = "serve"
    host: str = opt("127.0.0.1", "address to listen on; another one needs a key", metavar="ADDRESS")
    port: int = opt(8000, "port; 0 takes a free one", ge=0, le=65535)
    api_key: list[SecretStr] = opt(
        [],
        "key that clients must send; may be repeated (other users see flags: prefer "
        "QWENKIT_API_KEY or --api-key-file)",
        metavar="KEY",
    )
    api_key_file: str | None = opt(
        None, "file with one key a line, a name behind it if wanted", metavar="FILE"
    )
    admin_key_file: str | None = opt(
        None, "file with the keys that may load and unload adapters", metavar="FILE"
    )
    unprotected: bool = opt(False, "listen on any address without a key: everybody may use it")
    served_model_name: list[str] = opt(
        [], "name of the model in requests; may be repeated", metavar="NAME"
    )
    allowed_host: list[str] = opt(
        [],
        "a Host header that is answered without a key besides localhost; may be repeated",
        metavar="NAME",
    )
    allowed_origin: list[str] = opt(
        [],
        "web page (https://name[:port], or * for every one) whose scripts may use the server; may "
        "be repeated",
        aliases=("allowed_origins",),
        metavar="ORIGIN",
    )
    pooling: Literal["last", "mean"] = opt(
        "last", "what an embedding is made of: the last token's state, or the mean of all"
    )
    data_dir: str | None = opt(
        None,
        "folder for files and batches, which then outlive the server; by default they go with it",
        metavar="FOLDER",
    )
    lora: list[str] = opt(
        [],
        "adapter (a folder in PEFT's format) to serve under a name of its own; may be repeated",
        aliases=("lora_modules",),
        metavar="NAME=FOLDER",
    )
    lora_root: str | None = opt(
        None, "folder below which adapters may be loaded while running", metavar="FOLDER"
    )
    drain_timeout: float = opt(
        30, "seconds that running requests get to finish when asked to stop", ge=0, le=3600
    )
    watchdog_timeout: float = opt(
        300, "seconds without an end after which a step of the engine counts as hung", ge=1
    )
    log_format: Literal["text", "json"] = opt("text", "how log lines look", group="logging")
    log_level: Literal["debug", "info", "warning", "error"] = opt(
        "info", "least severe line that is written", group="logging"
    )

    max_sequences: int = opt(
        32,
        "requests computed at once",
        ge=1,
        le=4096,
        aliases=("max_num_seqs",),
        group="engine",
    )
    max_batch_tokens: int = opt(
        512,
        "tokens of one forward",
        ge=1,
        aliases=("max_num_batched_tokens",),
        group="engine",
    )
    kv_mib: int | None = opt(
        None, "size of the cache in MiB; by default from the free memory", ge=1, group="engine"
    )
    max_waiting: int | None = opt(
        None, "requests that may wait; 4 times max_sequences if not given", ge=0, group="limits"
    )
    max_waiting_per_key: int | None = opt(
        None, "requests of one key that may wait; as max_waiting if not given", ge=0, group="limits"
    )
    queue_timeout: float = opt(60, "longest wait for a place, in seconds", gt=0, group="limits")
    requests_per_minute: int | None = opt(
        None, "requests that a key may make in a minute", ge=1, group="limits"
    )
    tokens_per_minute: int | None = opt(
        None, "tokens, read and written, that a key may use in a minute", ge=1, group="limits"
    )
    wrong_keys_per_minute: int = opt(
        300,
        "wrong keys that an address may send in a minute; beyond, its keys are refused unread",
        ge=1,
        group="limits",
    )
    max_body_bytes: int = opt(32 * MIB, "largest request body", ge=1024, group="limits")
    max_bodies_bytes: int = opt(
        256 * MIB, "largest sum of the bodies that are being received", ge=1024, group="limits"
    )
    max_header_bytes: int = opt(64 << 10, "largest head of a request", ge=1024, group="limits")
    max_headers: int = opt(100, "most headers of a request", ge=8, group="limits")
    max_connections: int = opt(2048, "most open connections", ge=1, group="limits")
    header_timeout: float = opt(10, "seconds for the head of a request", gt=0, group="limits")
    body_timeout: float = opt(
        15, "seconds without enough of the body that end a request", gt=0, group="limits"
    )
    write_timeout: float = opt(
        30, "seconds that a reader may stall before its request ends", gt=0, group="limits"
    )
    keep_alive: float = opt(15, "seconds that an idle connection is kept", gt=0, group="limits")
    max_json_depth: int = opt(64, "deepest nesting of a body", ge=8, le=200, group="limits")
    max_json_values: int = opt(1_000_000, "most values in a body", ge=1000, group="limits")
    max_messages: int = opt(
        4096, "most messages of a conversation", ge=1, le=10_000, group="limits"
    )
    max_choices: int = opt(8, "largest n", ge=1, le=128, group="limits")
    max_prompts: int = opt(128, "most prompts of one completion request", ge=1, group="limits")
    max_inputs: int = opt(
        2048, "most inputs of one embeddings request", ge=1, le=2048, group="limits"
    )
    max_embedding_tokens: int = opt(
        300_000,
        "most tokens of one embeddings request; also of prompts with echo, times n and logprobs",
        ge=1,
        group="limits",
    )
    max_stored: int = opt(
        1000, "most responses of one key that are kept", ge=1, le=1_000_000, group="limits"
    )
    max_stored_bytes: int = opt(
        64 * MIB, "most bytes of the responses of one key that are kept", ge=1024, group="limits"
    )
    max_background: int = opt(
        32, "most responses of one key that run in the background", ge=1, group="limits"
    )
    max_file_bytes: int = opt(100 * MIB, "largest file to upload", ge=1024, group="limits")
    max_files: int = opt(1000, "most files of one key", ge=1, group="limits")
    max_files_bytes: int = opt(
        1024 * MIB, "most bytes of all files of one key", ge=1024, group="limits"
    )
    max_batch_lines: int = opt(50_000, "most requests of one batch", ge=1, group="limits")
    batch_concurrency: int = opt(
        8, "requests of batches that run at once", ge=1, le=4096, group="limits"
    )
    max_loras: int = opt(64, "most adapters at once", ge=0, le=1024, group="limits")
    max_stop: int = opt(4, "most stop strings", ge=1, le=16, group="limits")
    max_stop_chars: int = opt(256, "longest stop string", ge=1, le=1024, group="limits")
    max_tools: int = opt(128, "most tools of a request", ge=1, le=128, group="limits")

    @field_validator("lora")
    @classmethod
    def _named(cls, value: list[str]) -> list[str]:
        if not all(name and folder for name, _, folder in (each.partition("=") for each in value)):
            raise ValueError("NAME=FOLDER, such as sql=adapters/sql")
        return value

    @field_validator("allowed_origin")
    @classmethod
    def _pages(cls, value: list[str]) -> list[str]:
        return [each if each == "*" else _origin(each) for each in value]

    @field_validator("served_model_name")
    @classmethod
    def _nameable(cls, value: list[str]) -> list[str]:
        if not all(name.isprintable() and 0 < len(name) <= 256 for name in value):
            raise ValueError("1 to 256 printable characters")
        return value

    @model_validator(mode="after")
    def _different(self) -> ServeOptions:
        own = self.served_model_name or [self.model]
        names = [each.partition("=")[0] for each in self.lora]
        twice = next((name for name in names if name in own or names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"The name {twice!r} is given twice.")
        if len(self.lora) > self.max_loras:
            raise ValueError(f"lora has more than {self.max_loras} entries (max_loras).")
        return self

    @property
    def adapters(self) -> dict[str, str]:
        pairs = (each.partition("=") for each in self.lora)
        return {name: folder for name, _, folder in pairs}
