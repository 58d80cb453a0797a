"""Rewrites a parsed chat template: clock checks where time passes, marks where its text is printed.

Contract: `Rewriter(mark).visit(tree)` changes the tree in place so that the compiled template

- calls the sandbox's `tick` in every turn of a loop, `emit` for every piece of output, `box` for
  every container literal, `concat_texts` for `~`, and `noted` after comparisons and slices;
- has `mark` applied to each piece of its own text that can reach the output: text between tags, and
  string constants that are printed, assigned, joined, or given to a macro. Constants that are only
  compared with or searched for are left alone, since what they meet is not marked.

It refuses what a chat template has no business with (include, import, extends, block, underscore
attributes). The `generation` tag, which `transformers` uses for the loss mask, becomes a pair of
marks around its body.

Not covered: bounding the operations themselves (`sandbox.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

MARK, GENERATION_START, GENERATION_END = "\ufdd0", "\ufdd1", "\ufdd2"
"""Noncharacters of Unicode: in tokens that the template itself prints; around assistant text."""
RESERVED = re.compile(f"[{MARK}{GENERATION_START}{GENERATION_END}]")
MAX_BRACKETS = 100

_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)


def check_brackets(source: str) -> None:
    """Refuse nesting that would exhaust the parser. Errors: SecurityError."""
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", source):
        depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
        if depth > MAX_BRACKETS:
            raise SecurityError(f"more than {MAX_BRACKETS} brackets are open at once")


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant must produce."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body in a scope of its own, between two marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start, end = (
            nodes.Output([nodes.TemplateData(mark)]).set_lineno(line)
            for mark in (GENERATION_START, GENERATION_END)
        )
        return [start, nodes.Scope(body).set_lineno(line), end]


class Rewriter(NodeTransformer):
    """One use per tree."""

    def __init__(self, mark: Callable[[str], str]) -> None:
        self._mark_text = mark

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Refuse forbidden statements, then rewrite."""
        if isinstance(node, _REFUSED):
            raise SecurityError(
                f"line {node.lineno}: {type(node).__name__.lower()} is not for chat templates"
            )
        return super().visit(node, *args, **kwargs)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """Every child goes through `emit`."""
        children: list[nodes.Expr] = []
        for child in node.nodes:
            generation = isinstance(child, nodes.TemplateData) and RESERVED.fullmatch(child.data)
            marked = child if generation else self._mark(child)
            children.append(_call("emit", self.visit(marked)))
        node.nodes = children
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Tick in each turn, also in those that the loop's own condition skips."""
        node.iter = self._mark(node.iter)
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_call("tick"), node.test)
        node.body = [nodes.ExprStmt(_call("tick")), *node.body]
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Defaults may be printed."""
        node.defaults = [self._mark(default) for default in node.defaults]
        return self.generic_visit(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        """What is assigned may be printed later."""
        node.node = self._mark(node.node)
        return self.generic_visit(node)

    def visit_With(self, node: nodes.With) -> nodes.Node:
        """As an assignment."""
        node.values = [self._mark(value) for value in node.values]
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`~` under measure."""
        self.generic_visit(node)
        return _call("concat_texts", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Comparing large values takes time."""
        return _call("noted", self.generic_visit(node))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Slicing takes time; names with underscores are refused in this spelling too."""
        if isinstance(node.arg, nodes.Const) and str(node.arg.value).startswith("_"):
            raise SecurityError(f"line {node.lineno}: access to {node.arg.value!r:.40} is refused")
        self.generic_visit(node)
        return _call("noted", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        """Attributes with underscores are the way out of a sandbox."""
        if node.attr.startswith("_"):
            raise SecurityError(f"line {node.lineno}: access to {node.attr!r:.40} is refused")
        return self.generic_visit(node)

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        """The names under which Jinja hands out its internals."""
        if node.name in ("self", "super", "varargs", "kwargs") or node.name.startswith("__"):
            raise SecurityError(f"line {node.lineno}: the name {node.name} is refused")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """Container literals are measured."""
        return _call("box", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """Container literals are measured."""
        return _call("box", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Container literals are measured; targets of assignments are not literals."""
        self.generic_visit(node)
        return node if node.ctx == "store" else _call("box", node)

    def _mark(self, node: Any) -> Any:
        """Apply `mark` to the constants below an expression whose value may be printed."""
        if isinstance(node, nodes.TemplateData):
            node.data = self._checked(node.data)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            node.value = self._checked(node.value)
        elif isinstance(node, (nodes.Concat, nodes.List, nodes.Tuple)):
            items = node.nodes if isinstance(node, nodes.Concat) else node.items
            items[:] = [self._mark(item) for item in items]
        elif isinstance(node, nodes.Dict):
            for pair in node.items:
                pair.value = self._mark(pair.value)
        elif isinstance(node, (nodes.Add, nodes.Mul, nodes.Or, nodes.And)):
            node.left, node.right = self._mark(node.left), self._mark(node.right)
        elif isinstance(node, nodes.CondExpr):
            node.expr1 = self._mark(node.expr1)
            node.expr2 = node.expr2 and self._mark(node.expr2)
        elif isinstance(node, (nodes.Filter, nodes.Getitem, nodes.Getattr)):
            node.node = node.node and self._mark(node.node)
            if isinstance(node, nodes.Filter) and node.name in ("d", "default", "join"):
                node.args = [self._mark(argument) for argument in node.args]
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            node.args = [self._mark(argument) for argument in node.args]
            for keyword in node.kwargs:
                keyword.value = self._mark(keyword.value)
        return node

    def _checked(self, text: str) -> str:
        if RESERVED.search(text):
            raise SecurityError("it contains noncharacters of Unicode")
        return self._mark_text(text)


def _call(name: str, *arguments: Any) -> nodes.Call:
    """A call of one of the sandbox's own functions."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
