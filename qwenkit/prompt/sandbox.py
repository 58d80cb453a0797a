"""Renders an untrusted Jinja template: no way out, no way to run long, no way to grow large.

Chat templates come with checkpoints, so they are foreign code that runs in the server's process.
Contract: `Sandbox.program(source, mark)` checks and compiles, `Program.run(variables)` renders;
both raise TemplateError.

- No way out: Jinja's immutable sandbox; filters, methods and globals are an allow-list; include,
  import, extends, block, and every attribute that begins with an underscore are refused when
  compiling.
- Time: `rewrite.py` puts a clock check into every loop, call, operator and attribute access, and no
  single operation between two checks is unbounded, so nothing has to be killed from outside. It
  works in any thread. The clock is the thread's CPU time: a busy machine does not fail a harmless
  template.
- Size: every string and container is measured before it is made (`LIMIT_CHARS` plus twice the
  input); a container's size counts what it refers to as often as it would be printed, which stops
  exponential nesting.

Undefined variables may be tested (`{% if x %}`, `x is defined`, loops), as published templates do;
printing or computing with one is an error. Rendered like `transformers`: trim_blocks,
lstrip_blocks, loop controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, the
`generation` tag.

Not covered: templates that inherit; the filters that chat templates do not use (`format`, `attr`,
`pprint` …).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwenkit.errors import RequestError, TemplateError
from qwenkit.prompt.budget import ACTIVE, BoundError, Budget
from qwenkit.prompt.filters import FILTERS, join_texts, replace_text
from qwenkit.prompt.rewrite import RESERVED, GenerationTag, Rewriter, check_brackets

LIMIT_SOURCE = 1 << 17
LIMIT_BITS = 10_000

_STR_METHODS = frozenset(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit "
    "islower isnumeric isprintable isspace istitle isupper join lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper".split()
)
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}
_DATE_FORMAT = re.compile(r"(?:[^%]|%[-A-Za-z%])*")


class MessagesRefusedError(TemplateError, RequestError):
    """The template itself refused the conversation, for instance the order of its roles."""


class _Undefined(jinja2.Undefined):
    """Testable, loopable, but an error when printed."""

    __slots__ = ()

    def __str__(self) -> str:
        self._fail_with_undefined_error()
        return ""

    __hash__ = jinja2.Undefined.__hash__


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscore names, whose printed form says nothing of its contents."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"namespace attribute {name!r} is refused")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _raise_exception(message: object) -> None:
    raise _Refusal(ACTIVE.get().text(message))


class _Refusal(Exception):
    """Carries the message of `raise_exception`."""


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200 or not _DATE_FORMAT.fullmatch(pattern):
        raise SecurityError("strftime_now takes plain date formats only")
    return datetime.datetime.now().strftime(pattern)


def _make_dict(*args: Any, **kwargs: Any) -> Any:
    return ACTIVE.get().box(dict(*args, **kwargs))


class Sandbox(ImmutableSandboxedEnvironment):
    """The only Jinja environment of the package."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            undefined=_Undefined,
            cache_size=0,
        )
        self.filters = dict(FILTERS)
        self.globals = {
            "range": self.globals["range"],
            "dict": _make_dict,
            "namespace": _Namespace,
            "joiner": self.globals["joiner"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    # The functions that `rewrite.py` inserts into templates.

    def tick(self) -> bool:
        """One turn of a loop or one call of a macro."""
        ACTIVE.get().tick()
        return True

    def noted(self, value: Any) -> Any:
        """Something was compared or sliced."""
        ACTIVE.get().tick()
        return value

    def emit(self, value: object) -> str:
        """A piece of output."""
        budget = ACTIVE.get()
        text = budget.text(value)
        budget.charge(len(text))
        return text

    def box(self, value: Any) -> Any:
        """A list, tuple or dict literal."""
        return ACTIVE.get().box(value)

    def concat_texts(self, *values: object) -> str:
        """The operator `~`."""
        budget = ACTIVE.get()
        texts = [budget.text(value) for value in values]
        budget.charge(sum(map(len, texts)))
        return "".join(texts)

    # Jinja's own hooks.

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`, with the clock checked."""
        ACTIVE.get().tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`, with the clock checked."""
        ACTIVE.get().tick()
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> None:
        """No `str.format`: not even in the harmless form that Jinja would put in its place."""
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of built-in types by allow-list; nothing that begins with an underscore."""
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template. Text methods that can grow are computed under measure."""
        budget = ACTIVE.get()
        budget.tick()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return join_texts(owner, *args)
        if isinstance(owner, str) and name == "replace":
            return replace_text(owner, *args, **kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(owner, str):
            if isinstance(result, str):
                budget.charge(len(result))
            elif isinstance(result, list):
                budget.count(len(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators, with the size of the result known before it is made."""
        budget = ACTIVE.get()
        budget.tick()
        numbers = isinstance(left, int) and isinstance(right, int)
        if (
            operator == "+"
            and isinstance(left, (str, list, tuple))
            and isinstance(right, (str, list, tuple))
        ):
            budget.charge(budget.size(left) + budget.size(right))
            if not isinstance(left, str):
                return budget.box(super().call_binop(context, operator, left, right))
        elif operator == "*" and not numbers:
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    size = len(value) if isinstance(value, str) else budget.size(value)
                    budget.charge(size * max(times, 0))
        elif operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("formatting with % is refused; join texts with ~")
        elif operator == "*" and left.bit_length() + right.bit_length() > LIMIT_BITS:
            raise BoundError("it multiplies numbers that are too large")
        elif operator == "**" and numbers and left.bit_length() * abs(right) > LIMIT_BITS:
            raise BoundError("it computes a power that is too large")
        return super().call_binop(context, operator, left, right)

    def program(self, source: str, mark: Callable[[str], str]) -> Program:
        """Check and compile a template.

        Args:
            source: the template.
            mark: applied to every piece of the template's own text that may be printed.

        Errors: TemplateError.
        """
        if len(source) > LIMIT_SOURCE:
            raise TemplateError(
                f"The chat template has {len(source)} characters.",
                f"At most {LIMIT_SOURCE} are taken.",
            )
        token = ACTIVE.set(Budget(len(source), 0))
        try:
            check_brackets(source)
            if RESERVED.search(source):
                raise SecurityError("it contains noncharacters of Unicode")
            tree = Rewriter(mark).visit(self.parse(source))
            template = jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))
        except Exception as error:  # a template is foreign code: whatever it breaks is its fault
            raise _as_template_error(error) from error
        finally:
            ACTIVE.reset(token)
        return Program(template)


class Program:
    """A compiled template."""

    def __init__(self, template: jinja2.Template) -> None:
        self._template = template

    def run(self, variables: Mapping[str, Any], input_chars: int, items: int) -> str:
        """Render. `input_chars` and `items` say how large the input is; they widen the bounds.

        Errors: MessagesRefusedError with the template's own words; TemplateError for everything
            else.
        """
        budget = Budget(input_chars, items)
        token = ACTIVE.set(budget)
        try:
            pieces, total = [], 0
            for piece in self._template.generate(variables):
                pieces.append(piece)
                total += len(piece)
                budget.tick()
                if total > budget.max_chars:
                    raise BoundError(f"it prints more than {budget.max_chars} characters")
            return "".join(pieces)
        except _Refusal as refusal:
            raise MessagesRefusedError(
                f"The chat template refuses the messages: {str(refusal):.500}"
            ) from refusal
        except Exception as error:  # a template is foreign code: whatever it breaks is its fault
            raise _as_template_error(error) from error
        finally:
            ACTIVE.reset(token)


def _as_template_error(error: Exception) -> TemplateError:
    if isinstance(error, TemplateError):
        return error
    if isinstance(error, (RecursionError, MemoryError)):
        reason = "it is nested too deeply"
    elif isinstance(error, jinja2.TemplateSyntaxError):
        reason = f"line {error.lineno}: {error.message}".rstrip(".")
    else:
        reason = str(error).rstrip(".") or type(error).__name__
    kind = (
        "was stopped"
        if isinstance(error, BoundError)
        else "is refused"
        if isinstance(error, SecurityError)
        else "fails"
    )
    return TemplateError(
        f"The chat template {kind}: {reason:.300}.",
        "Use the template that the model was published with.",
    )
