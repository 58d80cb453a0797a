"""`qwenkit show`: what a model is, read from its files without loading it (and without torch).

A model that is not on this machine is shown from the table of the published family. What cannot be
read is said on its own line; the rest is shown all the same.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from qwenkit.cli.output import hint, pairs, print_json
from qwenkit.config import FamilyEntry, GenerationConfig, ModelConfig, find_family
from qwenkit.config.quantization import Quantization
from qwenkit.errors import ModelNotFoundError, OfflineError, QwenkitError
from qwenkit.io.gguf_config import generation_of
from qwenkit.io.gguf_parts import is_gguf, read_gguf
from qwenkit.io.header import read_header
from qwenkit.io.hub import resolve
from qwenkit.io.index import find_weights
from qwenkit.io.names import directory_bytes
from qwenkit.options import ShowOptions
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_gguf import end_ids_of_gguf, spec_of_gguf, template_of_gguf
from qwenkit.utils import human_bytes, human_count, read_json

_CARD_BYTES = 1 << 20


def show(options: ShowOptions) -> int:
    """Print what is known about one model."""
    try:
        path = resolve(options.model, source=options.source, offline=True)
    except (OfflineError, ModelNotFoundError):
        entry = find_family(options.model)
        if entry is None:
            raise
        _print(options, facts_of_entry(entry))
        hint(f"qwenkit pull {entry.repo}")
        return 0
    facts = facts_of_gguf(path) if is_gguf(path) else facts_of_folder(path)
    _print(options, {"model": options.model, **facts})
    hint(f"qwenkit plan {options.model}")
    return 0


def facts_of_entry(entry: FamilyEntry) -> dict[str, Any]:
    """What the family's table says about a model that is not here."""
    return {
        "model": entry.repo,
        "path": "not on this machine",
        **facts_of_config(entry.config),
        "context_with_yarn": entry.yarn_context,
        "licence": entry.licence,
        "released": entry.released,
    }


def facts_of_config(config: ModelConfig) -> dict[str, Any]:
    """Shape, size and context."""
    facts: dict[str, Any] = {
        "model_type": config.model_type,
        "parameters": config.num_parameters,
        "context": config.context_length,
        "dtype": config.torch_dtype,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocabulary_rows": config.vocab_size,
        "tied_embeddings": config.tie_word_embeddings,
        "kv_bytes_per_token": config.kv_bytes_per_token(
            4 if config.torch_dtype == "float32" else 2
        ),
    }
    if config.is_moe:
        facts["experts"] = config.num_experts
        facts["experts_per_token"] = config.num_experts_per_tok
        facts["active_parameters"] = config.num_active_parameters
    if config.use_sliding_window:
        facts["sliding_window"] = config.sliding_window
    if config.yarn:
        facts["context_without_yarn"] = config.original_context_length
    return facts


def facts_of_folder(path: Path) -> dict[str, Any]:
    """Everything that a model's folder tells."""
    raw = read_json(path / "config.json")
    raw = raw if isinstance(raw, dict) else {}
    quantisation = raw.pop("quantization_config", None)
    facts: dict[str, Any] = {"path": str(path)}
    facts |= facts_of_config(ModelConfig.from_dict(raw, source=str(path / "config.json")))
    facts["quantisation"] = _quantisation(quantisation)
    facts |= _weights(path)
    facts |= _text_side(path)
    try:
        facts |= _generation(GenerationConfig.from_dir(path))
    except QwenkitError as error:
        facts["sampling"] = f"unreadable: {error}"
    facts["licence"] = licence(path)
    facts["size_bytes"] = directory_bytes(path)
    facts["files"] = {
        file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()
    }
    return facts


def facts_of_gguf(path: Path) -> dict[str, Any]:
    """Everything that a GGUF file's header tells."""
    gguf = read_gguf(path)
    facts: dict[str, Any] = {"path": str(path), **facts_of_config(gguf.config())}
    kinds = Counter(info.type.upper() for info in gguf.tensors.values())
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    facts["quantisation"] = f"GGUF version {gguf.parts[0].header.version}"
    files = {part.path.name: part.header.file_size for part in gguf.parts}
    facts["weights"] = f"{counted} tensors in {len(files)} file{'s' if len(files) > 1 else ''}"
    try:
        tokenizer = Tokenizer(spec_of_gguf(gguf.metadata, gguf.path))
        facts |= _tokenizer(tokenizer)
        facts["chat_template"] = "yes" if template_of_gguf(gguf.metadata) else "none"
    except QwenkitError as error:
        facts["tokenizer"] = f"unreadable: {error}"
    end_ids = end_ids_of_gguf(gguf.metadata)
    try:
        facts |= _generation(generation_of(gguf.metadata, end_ids, str(path)))
    except QwenkitError as error:
        facts["sampling"] = f"unreadable: {error}"
    licence_name = gguf.metadata.get("general.license")
    facts["licence"] = licence_name if isinstance(licence_name, str) else None
    facts["size_bytes"] = sum(files.values())
    facts["files"] = files
    return facts


def _generation(generation: GenerationConfig) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    sampling = {name: getattr(generation, name) for name in names}
    return {
        "sampling": sampling if generation.do_sample else "greedy",
        "end_tokens": list(generation.eos_token_ids),
    }


def _quantisation(value: Any) -> str | None:
    if value is None:
        return None
    try:
        how = Quantization.from_dict(value)
    except QwenkitError as error:
        return f"this version cannot run it: {error}"
    return f"{how.method}, {how.bits} bits, groups of {how.group_size or 'whole rows'}"


def _weights(path: Path) -> dict[str, Any]:
    try:
        files = sorted(set(find_weights(path).shards.values()))
        dtypes: Counter[str] = Counter()
        for file in files:
            dtypes.update(info.dtype for info in read_header(file).tensors.values())
    except QwenkitError as error:
        return {"weights": f"unreadable: {error}"}
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    return {"weights": f"{kinds} tensors in {len(files)} file{'s' if len(files) > 1 else ''}"}


def _text_side(path: Path) -> dict[str, Any]:
    try:
        tokenizer = Tokenizer.from_dir(path)
    except QwenkitError as error:
        return {"tokenizer": f"unreadable: {error}"}
    facts = _tokenizer(tokenizer)
    try:
        fallback = ChatTemplate.from_dir(path, tokenizer).is_fallback
        facts["chat_template"] = "none; turns are plain ChatML" if fallback else "yes"
    except QwenkitError as error:
        facts["chat_template"] = f"none: {error.message}"
    return facts


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    special = len(tokenizer.special_ids)
    return {"tokenizer": f"{tokenizer.vocab_size} tokens, {special} of them special"}


def licence(path: Path) -> str | None:
    """The licence that the model card's header names, or the first words of LICENSE."""
    card = path / "README.md"
    if card.is_file():
        with card.open("rb") as opened:
            text = opened.read(_CARD_BYTES).decode("utf-8", errors="replace")
        parts = text.split("---", 2)
        try:
            header = (
                yaml.safe_load(parts[1]) if text.startswith("---") and len(parts) == 3 else None
            )
        except yaml.YAMLError:
            header = None  # a card is prose first; a broken header only hides the licence
        if isinstance(header, dict) and header.get("license"):
            return str(header.get("license_name") or header["license"])
    if (path / "LICENSE").is_file():
        with (path / "LICENSE").open(encoding="utf-8", errors="replace") as file:
            words = (line.strip() for line in file)
            return next((line for line in words if line), None)
    return None


def _print(options: ShowOptions, facts: dict[str, Any]) -> None:
    if options.as_json:
        print_json(facts)
        return
    readable = {
        "parameters": human_count,
        "active_parameters": human_count,
        "kv_bytes_per_token": human_bytes,
        "size_bytes": human_bytes,
    }
    lines = []
    for key, value in facts.items():
        if key == "files":
            value = ", ".join(f"{name} ({human_bytes(size)})" for name, size in value.items())
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {item:g}" for name, item in value.items())
        elif key in readable:
            value = readable[key](value)
        elif isinstance(value, list):
            value = ", ".join(str(item) for item in value)
        if value is not None:
            lines.append((_label(key), _words(value)))
    pairs(lines)


def _label(key: str) -> str:
    return {"size_bytes": "size", "kv_bytes_per_token": "cache per token"}.get(
        key, key.replace("_", " ")
    )


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)
