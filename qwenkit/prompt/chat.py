"""A conversation → the prompt: text, token ids and loss mask from one rendering of the template.

Contract: `ChatTemplate.from_dir(path, tokenizer).render(messages, tools)` → `Prompt`. The text is
byte-equal to what `transformers` renders. The ids are those of that text, with one difference,
which is the point: only special tokens that the *template itself* writes become special ids.
Whatever comes from outside (messages, tools, arguments, names) is encoded as plain text, so
nobody can close a turn or open another role by typing `<|im_end|>`, in one piece or spread over
several strings. For that the template's own tokens carry a mark, a noncharacter that no input
has while it renders (inputs that do contain it lend it for that time).

`loss_mask` is True on what the assistant must produce: where the template has `{% generation %}`
tags, the tokens in them; otherwise, in ChatML, everything behind `<|im_start|>assistant\\n` up to
and including `<|im_end|>`. A token that straddles the beginning (content that starts with a line
break) is not the assistant's.

The template is searched in `chat_template.jinja`, `tokenizer_config.json`, `chat_template.json`. A
base model without any, but with ChatML's tokens, gets plain ChatML without a system prompt
(`is_fallback` says so).

Not covered: images and videos; templates that write control tokens in pieces (refused when
loading); continuing an unfinished assistant message.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError

from qwenkit.errors import FormatError, RequestError, TemplateError
from qwenkit.prompt.messages import canonical, check_messages, check_tools, plain
from qwenkit.prompt.rewrite import GENERATION_END, GENERATION_START, MARK, RESERVED
from qwenkit.prompt.sandbox import LIMIT_SOURCE, MessagesRefusedError, Sandbox
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.utils import read_json, read_text

PLAIN_CHATML = (
    "{%- if tools %}"
    "{{- raise_exception('This model has no chat template, so it takes no tools.') }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
REMEDY = "Use the template that the model was published with."
_INTERNAL = frozenset(
    "messages tools documents add_generation_prompt continue_final_message chat_template tokenize "
    "tokenizer return_tensors return_dict return_assistant_tokens_mask padding truncation "
    "max_length range dict namespace joiner raise_exception strftime_now loop caller "
    "bos_token eos_token pad_token unk_token self".split()
)
_HEADER = "assistant\n"
_PROBE_TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
    }
]
_PROBE_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
_PROBES: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    ([{"role": "user", "content": "a"}], None),
    (
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]},
            {"role": "tool", "content": "r"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        _PROBE_TOOLS,
    ),
)


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: `ids` and `loss_mask` have the same length."""

    ids: list[int]
    text: str
    loss_mask: list[bool]


@dataclass
class _Segment:
    """Plain text, or one special token; `turns` are (character, inside the assistant's text)."""

    text: str
    token: int | None
    wanted: bool
    turns: list[tuple[int, bool]]


def check_template_kwargs(kwargs: Any, *, param: str = "chat_template_kwargs") -> dict[str, Any]:
    """Extra variables for a template. Errors: RequestError for a reserved name, or no JSON."""
    if not isinstance(kwargs, Mapping):
        raise RequestError(f"{param} must be an object.", param=param)
    for name in kwargs:
        if (
            not isinstance(name, str)
            or not name.isidentifier()
            or name.startswith("_")
            or name in _INTERNAL
        ):
            raise RequestError(
                f"{param}: the name {name!r:.60} is reserved.", "Choose another name.", param=param
            )
    checked: dict[str, Any] = plain(kwargs, param)
    return checked


class ChatTemplate:
    """A compiled chat template with its tokenizer. Immutable, so threads may share it."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        tool_source: str | None = None,
        is_fallback: bool = False,
    ) -> None:
        """Compile a template, and try it on two small conversations.

        Args:
            source: the Jinja source.
            tool_source: another one, used when tools are offered.
            is_fallback: the checkpoint had none.

        Errors: TemplateError when it is hostile, over its bounds, or writes special tokens in
            pieces.
        """
        self.source, self.tokenizer, self.is_fallback = source, tokenizer, is_fallback
        sandbox = Sandbox()
        self._program = sandbox.program(source, self._mark)
        self._tool_source = source if tool_source is None else tool_source
        self._tool_program = sandbox.program(self._tool_source, self._mark)
        self._constants = {name: self._mark(text) for name, text in tokenizer.named_tokens.items()}
        self._marked_ids = {
            self._mark(text): index for text, index in tokenizer.special_ids.items()
        }
        longest_first = [
            *sorted(self._marked_ids, key=len, reverse=True),
            MARK,
            GENERATION_START,
            GENERATION_END,
        ]
        self._pieces = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._start_id = tokenizer.special_ids.get("<|im_start|>")
        self._end_id = tokenizer.special_ids.get("<|im_end|>")
        for messages, tools in _PROBES:
            self._probe(messages, tools)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str], tokenizer: Tokenizer) -> ChatTemplate:
        """Load the template of a model directory.

        Errors: TemplateError when there is none (and the tokenizer does not speak ChatML), or it is
            unusable.
        """
        return cls.of(_find_template(Path(path)), tokenizer, str(path))

    @classmethod
    def of(
        cls, found: tuple[str, str | None] | None, tokenizer: Tokenizer, where: str
    ) -> ChatTemplate:
        """From the sources (the template, the one for tools) that `where` has, or None.

        Errors: TemplateError as `from_dir`.
        """
        if found is not None:
            return cls(found[0], tokenizer, tool_source=found[1])
        if {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids.keys():
            return cls(PLAIN_CHATML, tokenizer, is_fallback=True)
        raise TemplateError(
            f"{where} has no chat template.",
            "Put the chat_template.jinja of its family there, or use it for plain completion.",
        )

    def render(
        self,
        messages: Any,
        tools: Any = None,
        *,
        add_generation_prompt: bool = False,
        **template_kwargs: Any,
    ) -> Prompt:
        """Render a conversation.

        Args:
            messages: `{"role", "content", "tool_calls"?, "tool_call_id"?}` each; see `messages.py`.
            tools: function descriptions in JSON schema, as templates print them.
            add_generation_prompt: end with the header of the assistant's next turn.
            template_kwargs: further variables that the template reads (as `add_vision_id`).

        Errors: RequestError naming the part that is wrong; MessagesRefusedError when the template
            itself objects (it is both a TemplateError and a RequestError); TemplateError when the
            template fails or exceeds its bounds.
        """
        extra = check_template_kwargs(template_kwargs, param="template_kwargs")
        checked, offered = check_messages(messages), check_tools(tools)
        return self._encode(self._segments(checked, offered, add_generation_prompt, extra))

    def _segments(
        self, messages: list[dict[str, Any]], tools: Any, generate: bool, extra: dict[str, Any]
    ) -> list[_Segment]:
        """Render, then cut the output at the template's own special tokens."""
        outside = {"messages": messages, "tools": tools, "documents": None, **extra}
        spelt = canonical(outside)
        lent = _stand_ins(spelt)
        outside = _translate(outside, str.maketrans(lent)) if lent else outside
        variables = {**self._constants, **outside, "add_generation_prompt": generate}
        program, source = (
            (self._tool_program, self._tool_source) if tools else (self._program, self.source)
        )
        try:
            output = program.run(variables, len(spelt), spelt.count("{") + spelt.count(","))
        except MessagesRefusedError as error:
            raise MessagesRefusedError(error.message.replace(MARK, ""), param="messages") from error
        segments = self._cut(output, chatml="endgeneration" not in source)
        back = str.maketrans({value: key for key, value in lent.items()})
        for segment in segments if lent else ():
            segment.text = segment.text.translate(back)
        return segments

    def _cut(self, output: str, chatml: bool) -> list[_Segment]:
        """Segments of the output, with what the assistant must produce marked as wanted."""
        segments: list[_Segment] = []
        plain_text, turns, wanted, opened = "", [], False, False
        for piece in [*self._pieces.split(output), None]:
            token = None if piece is None else self._marked_ids.get(piece)
            if piece is not None and token is None:
                if piece in (GENERATION_START, GENERATION_END):
                    turns.append((len(plain_text), piece == GENERATION_START))
                elif piece != MARK:  # a lone mark: the template itself cut its token in two
                    plain_text += piece
                continue
            if chatml and opened and plain_text.startswith(_HEADER):
                turns = [(len(_HEADER), True)]
            if plain_text:
                segments.append(_Segment(plain_text, None, wanted, turns))
            wanted = turns[-1][1] if turns else wanted
            plain_text, turns = "", []
            if piece is not None and token is not None:
                opened = chatml and token == self._start_id
                wanted = wanted and not opened
                segments.append(_Segment(piece.replace(MARK, ""), token, wanted, []))
                wanted = wanted and not (chatml and token == self._end_id)
        return segments

    def _encode(self, segments: list[_Segment]) -> Prompt:
        ids: list[int] = []
        mask: list[bool] = []
        for segment in segments:
            if segment.token is not None:
                ids.append(segment.token)
                mask.append(segment.wanted)
            elif segment.turns:
                new, starts = self.tokenizer.encode_with_starts(segment.text)
                offsets = [offset for offset, _ in segment.turns]
                states = [segment.wanted, *(state for _, state in segment.turns)]
                ids.extend(new)
                mask.extend(states[bisect_right(offsets, start)] for start in starts)
            else:
                new = self.tokenizer.encode(segment.text)
                ids.extend(new)
                mask.extend([segment.wanted] * len(new))
        return Prompt(ids, "".join(segment.text for segment in segments), mask)

    def _mark(self, text: str) -> str:
        """Put the mark into every special token of the template's own text."""
        pieces = self.tokenizer.split_special(text)
        return "".join(p[0] + MARK + p[1:] if special else p for p, special in pieces)

    def _probe(self, messages: list[dict[str, Any]], tools: Any) -> None:
        """Find out at load, not at the first request, that a template is unusable."""
        try:
            segments = self._segments(messages, tools, True, {})
        except TemplateError as error:
            if isinstance(error.__cause__, SecurityError):
                raise
            return  # it may rightly object to these messages, or need a request's variables
        odd = [s.text for s in segments if s.token is None and self.tokenizer.has_special(s.text)]
        if odd:
            raise TemplateError(
                f"The chat template writes a special token in pieces (near {odd[0]:.40}).", REMEDY
            )


def _stand_ins(text: str) -> dict[str, str]:
    """Reserved noncharacters in the input → characters that do not occur in it."""
    reserved = set(RESERVED.findall(text))
    if not reserved:
        return {}
    used = set(text) | {MARK, GENERATION_START, GENERATION_END}
    free = (chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0x10FFFE)))
    return dict(zip(sorted(reserved), (char for char in free if char not in used), strict=False))


def _translate(value: Any, table: dict[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict):
        return {_translate(key, table): _translate(item, table) for key, item in value.items()}
    if isinstance(value, list):
        return [_translate(item, table) for item in value]
    return value


def _find_template(directory: Path) -> tuple[str, str | None] | None:
    """(template, template for tools or None), or None if the checkpoint has no template."""
    single = directory / "chat_template.jinja"
    if os.path.lexists(single):  # a link to nothing is a fault, not an absence
        try:
            return read_text(single, max_bytes=4 * LIMIT_SOURCE), None
        except FormatError as error:
            raise TemplateError(error.message, error.remedy) from error
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = directory / name
        if not os.path.lexists(file):
            continue
        try:
            config = read_json(file)
        except FormatError as error:
            raise TemplateError(error.message, error.remedy) from error
        found = config.get("chat_template") if isinstance(config, dict) else None
        if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
            found = {entry.get("name"): entry.get("template") for entry in found}
        if isinstance(found, dict):
            default, tool_use = found.get("default"), found.get("tool_use")
            if not isinstance(default, str) or not isinstance(tool_use, str | None):
                raise TemplateError(f"{file}: chat_template has no entry named default.", REMEDY)
            return default, tool_use
        if isinstance(found, str):
            return found, None
        if found is not None:
            raise TemplateError(
                f"{file}: chat_template is neither text nor a list of named templates.", REMEDY
            )
    return None
