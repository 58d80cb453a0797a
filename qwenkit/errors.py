"""The errors that users meet: each names what is wrong and what to do about it.

Every error that a user can cause is a `QwenkitError`. Its text is one line; `remedy` says the next
step. The command line prints that line and exits with `exit_code`; the traceback stays hidden
unless asked for. Anything else that escapes is a bug in qwenkit.
"""

from __future__ import annotations


class QwenkitError(Exception):
    """Base of all errors meant for users.

    Args:
        message: what is wrong, with the offending name and value, one line.
        remedy: what to do next, one sentence; shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        self.message = " ".join(message.split())
        self.remedy = " ".join(remedy.split()) if remedy else None
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class OptionError(QwenkitError):
    """A flag, environment variable or YAML key is unknown, misspelt or out of range."""

    exit_code = 2


class ConfigError(QwenkitError):
    """config.json (or generation_config.json) is broken or asks for something unsupported."""


class FormatError(QwenkitError):
    """A file is truncated, hostile, or not what it says it is; nothing of it was used."""


class CheckpointError(QwenkitError):
    """The tensors of a checkpoint do not fit the model: missing, extra or misshapen."""


class HubError(QwenkitError):
    """A model could not be found or fetched from a hub."""


class ModelNotFoundError(HubError):
    """No such model: not a path, not an embedded name, not on the hub."""


class OfflineError(HubError):
    """The network is not reachable (or forbidden) and the model is not in the cache."""


class TokenizerError(QwenkitError):
    """The tokenizer's files are missing or corrupt, or a token id is out of range."""


class TemplateError(QwenkitError):
    """The chat template is missing, hostile, over its bounds, or refuses the messages."""


class RequestError(QwenkitError):
    """One request is invalid; `param` is the name of the offending parameter, if there is one."""

    def __init__(
        self, message: str, remedy: str | None = None, *, param: str | None = None
    ) -> None:
        super().__init__(message, remedy)
        self.param = param


class ContextLengthError(RequestError):
    """Prompt plus max_tokens exceed the context. Nothing is cut silently."""

    def __init__(
        self, prompt_tokens: int, max_tokens: int, context: int, *, param: str = "messages"
    ) -> None:
        self.prompt_tokens, self.max_tokens, self.context = prompt_tokens, max_tokens, context
        super().__init__(
            f"The context holds {context} tokens, but the prompt has {prompt_tokens} and "
            f"max_tokens is {max_tokens} ({prompt_tokens + max_tokens} in all).",
            "Shorten the prompt or lower max_tokens.",
            param=param,
        )


class EngineError(QwenkitError):
    """A valid request was ended by the engine. `code`: "not_finite" (the logits), "out_of_memory",
    "failed" (a kernel or another bug), "grammar" (it allows no token, or became too complex),
    "timeout" (its deadline passed while it waited), "closed".
    """

    def __init__(self, message: str, remedy: str | None = None, *, code: str = "failed") -> None:
        super().__init__(message, remedy)
        self.code = code


class QueueFullError(QwenkitError):
    """Too many requests are there already; no token of this one was computed. `retry_after` is the
    number of seconds after which trying again makes sense; `tenant` says whose limit it is, None
    that it is everybody's; `reason` says what was missing where it is not a waiting place.
    """

    def __init__(
        self, limit: int, retry_after: int, *, tenant: str | None = None, reason: str | None = None
    ) -> None:
        self.limit, self.retry_after, self.tenant = limit, retry_after, tenant
        whose = "All" if tenant is None else "This client's"
        super().__init__(
            reason or f"{whose} {limit} waiting places are taken.", f"Try again in {retry_after} s."
        )


class DataError(QwenkitError):
    """A row of a data set is unusable; the message starts with `file:line`."""


class TrainError(QwenkitError):
    """Training cannot start, go on, or resume."""


class TrainInterrupted(TrainError):
    """Training was asked to stop (SIGTERM: exit code 143, SIGINT: 130) and has saved itself."""

    def __init__(self, signum: int, step: int, checkpoints: str) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f"Stopped by signal {signum} after step {step}; the checkpoint is in {checkpoints}.",
            "Run the same command again to go on.",
        )


class OutOfMemoryError(QwenkitError):
    """The run would not fit, or did not fit, into memory."""
