"""From options to a loaded model: find or fetch the files first, import torch only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenkit.cli.output import download_bars, status
from qwenkit.errors import OptionError
from qwenkit.io.hub import resolve as find_model
from qwenkit.options import LoadOptions, ModelOptions

if TYPE_CHECKING:
    from qwenkit.llm import LLM

MAX_TOOLS_BYTES = 1 << 20


def load(options: LoadOptions, **engine: Any) -> LLM:
    """The model that the options name; `engine`: further keywords of `LLM`.

    Errors: HubError and its kin before torch is imported; then LLM's own.
    """
    path = find(options)
    draft = find(options, options.draft_model) if options.draft_model else None
    with status(f"loading {options.model}"):
        return _load(options, path, draft, engine)


def find(options: ModelOptions, name: str | None = None) -> Path:
    """The folder or file of the model (or of the one named), fetched if need be. Errors: HubError
    and its kin.
    """
    with download_bars() as progress:
        return find_model(
            name or options.model,
            source=options.source,
            offline=options.offline,
            progress=progress,
        )


def _load(options: LoadOptions, path: Path, draft: Path | None, engine: dict[str, Any]) -> LLM:
    import torch

    from qwenkit.llm import LLM
    from qwenkit.model.adapter import read_config

    for folder in options.adapters.values():  # before a large model is loaded for nothing
        read_config(folder)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    llm = LLM(
        path,
        dtype=options.dtype,
        quantize=options.quantize,
        device=check_device(options.device),
        max_model_len=options.max_model_len,
        draft_model=draft,
        speculate=options.speculate,
        **engine,
    )
    for name, folder in options.adapters.items():
        llm.adapters.load(name, folder)
    return llm


def check_device(device: str | None) -> str | None:
    """The device if it is there. Errors: OptionError when it is not."""
    import torch

    if device is None or device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise OptionError(f"device is {device!r}.", "It can be auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        found = f"torch sees {count} GPUs" if count else "torch sees no GPU here"
        raise OptionError(
            f"device is {device!r}, but {found}.", "Use --device cpu, or see `qwenkit doctor`."
        )
    return device


def read_tools(file: str | None) -> list[dict[str, Any]] | None:
    """A JSON file with a list of tools in OpenAI's form, or bare function objects.

    Errors: OptionError.
    """
    if file is None:
        return None
    path = Path(file)
    advice = 'Write a list of {"type": "function", "function": {"name": …, "parameters": …}}.'
    try:
        if path.stat().st_size > MAX_TOOLS_BYTES:
            raise OptionError(f"{file} is larger than {MAX_TOOLS_BYTES} bytes.", advice)
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{file} is not valid JSON ({error}).", advice) from error
    tools = tools if isinstance(tools, list) else [tools]
    if not tools or not all(isinstance(tool, dict) for tool in tools):
        raise OptionError(f"{file} holds no list of tools.", advice)
    tools = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    for tool in tools:
        function = tool["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise OptionError(f"{file}: a tool has no name.", advice)
    return tools
