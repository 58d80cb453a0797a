"""The tokenizer and chat template in a GGUF file's metadata.

Contract: `spec_of_gguf(metadata, source)` → `TokenizerSpec`, checked like that of a model's folder;
`template_of_gguf` → the template's source. The merges and tokens are those of the published files;
the normaliser and the splitting regex, which GGUF names only (`tokenizer.ggml.pre`), are the
family's own. Rows without a token, which converters fill with unused ones at the end, are dropped.

Not covered: `pre` other than qwen2, SentencePiece and WordPiece, a begin token put before texts.
Source: docs/gguf.md in the ggml project, and llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from qwenkit.errors import TokenizerError
from qwenkit.prompt.tokenizer_files import (
    ONLY_BYTE_BPE,
    PULL_AGAIN,
    TokenizerSpec,
    check_ids,
    pipeline_json,
)

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"


def spec_of_gguf(metadata: Mapping[str, Any], source: Path) -> TokenizerSpec:
    """Read the tokenizer. Errors: TokenizerError naming the key at fault."""

    def refuse(key: str, fault: str, remedy: str = PULL_AGAIN) -> NoReturn:
        raise TokenizerError(f"{source}: {_KEY}{key} {fault}.", remedy)

    if metadata.get(_KEY + "model") != "gpt2":
        refuse("model", f"is {metadata.get(_KEY + 'model')!r:.40}, not 'gpt2'", ONLY_BYTE_BPE)
    pre = metadata.get(_KEY + "pre", "qwen2")
    if pre != "qwen2":
        refuse("pre", f"is {pre!r:.40}; supported is 'qwen2'", ONLY_BYTE_BPE)
    if metadata.get(_KEY + "add_bos_token"):
        refuse("add_bos_token", "is true; this family has no begin token", ONLY_BYTE_BPE)
    tokens, merges = (metadata.get(_KEY + key) for key in ("tokens", "merges"))
    if not (isinstance(tokens, list) and tokens):
        refuse("tokens", "is no list of texts")
    if not isinstance(merges, list):
        refuse("merges", "is no list of texts")
    types = metadata.get(_KEY + "token_type")
    if not (isinstance(types, memoryview) and types.format == "i" and len(types) == len(tokens)):
        refuse("token_type", f"is no list of {len(tokens)} whole numbers")
    kinds = list(types)
    while kinds and kinds[-1] == _UNUSED:
        kinds.pop()
    tokens = tokens[: len(kinds)]
    if len(set(tokens)) != len(tokens):
        refuse("tokens", "has a token twice")
    broken = next((text for text in merges if text.count(" ") != 1), None)
    if broken is not None:
        refuse("merges", f"has {broken!r:.40}, which is no pair")
    special = (_CONTROL, _USER_DEFINED, _UNUSED)
    added = {text: i for i, text in enumerate(tokens) if kinds[i] in special}
    vocab = {text: i for i, text in enumerate(tokens) if kinds[i] not in special}
    if "" in added:
        refuse("tokens", "has an empty token")
    check_ids(vocab, {text: (i, False) for text, i in added.items()}, source)
    skipped = frozenset(i for i, kind in enumerate(kinds) if kind in (_CONTROL, _UNUSED))
    named = {}
    for name in ("eos", "padding"):
        index = metadata.get(f"{_KEY}{name}_token_id")
        if index is not None:
            known = type(index) is int and 0 <= index < len(tokens)
            if not known or tokens[index] not in added:
                refuse(f"{name}_token_id", f"is {index!r:.40}, which is no special token")
            named["eos_token" if name == "eos" else "pad_token"] = tokens[index]
    return TokenizerSpec(pipeline_json(vocab, merges), vocab, added, skipped, named, source)


def end_ids_of_gguf(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: end of text, and end of turn where it is told separately."""
    found = (metadata.get(f"{_KEY}{name}_token_id") for name in ("eos", "eot"))
    return tuple(dict.fromkeys(index for index in found if type(index) is int))


def template_of_gguf(metadata: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """The chat template and, if it is another, the one for tools; None where there is none."""
    plain = metadata.get(_TEMPLATE)
    with_tools = metadata.get(_TEMPLATE + ".tool_use")
    if not isinstance(plain, str):
        return None
    return plain, with_tools if isinstance(with_tools, str) else None
