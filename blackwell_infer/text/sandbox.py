"""The Jinja environment of chat templates: sandboxed, and bounded in time and memory.

A template comes with a model file, so it is a stranger's program. On top of Jinja's immutable sandbox every loop step
and call draws on one allowance per rendering, and operations that can build a huge text or number in one step are
refused beforehand. This module imports jinja2; import it where a template is used.
"""
from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 500_000
"""loop steps and calls of one rendering; ten thousand messages need some tens of thousands"""
MAX_LENGTH = 1 << 26
"""characters of any text and items of any list that a template builds"""
ALLOWANCE = "allowance of steps"
"""Render variable that holds the `Allowance`; its spaces keep templates from naming it."""

_WIDTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "batch", "slice", "tojson")
_GUARDED_FILTERS = ("center", "indent", "wordwrap", "batch", "slice", "replace", "format", "join")
_WIDE_FIELD = re.compile(r"\d{6,}|%[-+ #0]*\*|\{[^{}]+\{")


class Allowance:
    """Steps left to one rendering."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.steps = steps

    def spend(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"the template takes more than {MAX_STEPS} loop steps and calls")


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the answer for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Meter(NodeTransformer):
    """Rewrites a parsed template: loops run over a counted iterator, `~` joins through `bounded_join`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "metered")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _filter(parts, "concatenated", node)


def _filter(value: nodes.Node, name: str, at: nodes.Node | None = None) -> nodes.Filter:
    place = at or value
    return nodes.Filter(value, name, [], [], None, None, lineno=place.lineno, environment=place.environment)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What chat templates may use: the names that Hugging Face templates rely on, and nothing else."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
        )
        self.globals.pop("lipsum")
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self.filters |= {"tojson": to_json, "metered": _metered, "concatenated": _concatenated}
        self.filters |= {name: _guarded(name, self.filters[name]) for name in (*_GUARDED_FILTERS, "tojson")}

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        return bounded_join(parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Context, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        allowance(context).spend()
        # Jinja hands out str.format behind a function of its own.
        method = getattr(callee, "__wrapped__", callee)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            name = method.__name__
            # str.join may be given an iterator, which can be read only once.
            args = tuple([*arg] if name == "join" and not isinstance(arg, str) else arg for arg in args)
            _check(name, *((args[0], (owner,)) if name == "join" and args else (owner, (*args, *kwargs.values()))))
        return super().call(context, callee, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    _check_length(len(sequence) * count)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_length(abs(left).bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _check_fields(left)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_length(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def allowance(context: Context) -> Allowance:
    """The allowance that `render` put into the context."""
    found = context.parent.get(ALLOWANCE)
    if not isinstance(found, Allowance):
        raise SecurityError("the template runs outside of a rendering")
    return found


def bounded_join(parts: Iterable[str]) -> str:
    """`"".join(parts)`, refused beyond MAX_LENGTH before it is built."""
    kept, length = [], 0
    for part in parts:
        length += len(part)
        _check_length(length)
        kept.append(part)
    return "".join(kept)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"the template builds a text, list or number of more than {MAX_LENGTH} items")


def _check(name: str, value: Any, args: tuple[Any, ...]) -> None:
    """Refuses a text method or filter whose result could be huge."""
    if name in _WIDTHS:
        for width in args:
            if isinstance(width, int) and width > 1 << 16:
                raise SecurityError(f"the template asks {name} for a width of {width}")
    elif name in ("format", "format_map") and isinstance(value, str):
        _check_fields(value)
    elif name == "replace" and len(args) >= 2:
        text, old, new = str(value), str(args[0]), str(args[1])
        _check_length(len(text) + text.count(old) * len(new))
    elif name == "join" and isinstance(value, list):
        separator = len(args[0]) if args and isinstance(args[0], str) else 0
        _check_length(sum(separator + (len(part) if isinstance(part, str) else 0) for part in value))


def _check_fields(pattern: str) -> None:
    if _WIDE_FIELD.search(pattern):
        raise SecurityError("the template formats a field of a huge or variable width")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter behind `_check`; some filters take Jinja's context before the value."""
    first = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check(name, args[first], (*args[first + 1 :], *kwargs.values()))
        return function(*args, **kwargs)

    return guarded


@pass_context
def _metered(context: Context, items: Iterable[Any] | None) -> Iterator[Any]:
    """Counts the steps of a loop. A loop over none is empty: tool templates loop over `tools` without asking."""
    left = allowance(context)
    for item in () if items is None else items:
        left.spend()
        yield item


def _concatenated(parts: Iterable[Any]) -> str:
    return bounded_join(map(str, parts))


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: nothing escaped for HTML, letters of every script as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
