"""Jinja's immutable sandbox with a bound on steps and on the size of what is computed.

A chat template is a stranger's program. Jinja keeps it away from Python's objects, but not from
looping for an hour or from doubling a string until memory is gone. Here every pass of a loop and
every call of a macro is a step, and each rendering has a number of them: no clock, so that the same
template is refused on every machine."""

from __future__ import annotations

import re
from typing import Any

MAX_STEPS = 100_000
MAX_CHARS = 4_000_000
_WIDTH = re.compile(r"\d{6,}")


class BoundError(ValueError):
    """A template does more than a chat template needs."""


class Steps:
    """Counts the steps of one rendering; `reset` begins the next."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def reset(self) -> None:
        """Begin a rendering."""
        self._left = MAX_STEPS

    def __call__(self) -> str:
        self._left -= 1
        if self._left < 0:
            raise BoundError(f"it takes more than {MAX_STEPS:,} steps; it may loop")
        return ""


def bounded_environment(**options: Any) -> Any:
    """A sandboxed environment whose templates are bounded; its `steps` count for all of them.

    Args:
        options: Further ones of Jinja's `Environment`."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    def call(name: str, arguments: list[Any]) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)

    class Counting(NodeTransformer):
        """Counts loops and macros, and joins texts by a function that looks at their size."""

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(call("steps", [])))
            if node.test is not None:  # what a filtered loop leaves out is a step as well
                node.test = nodes.And(nodes.Not(call("steps", [])), node.test)
            return node

        def visit_Macro(self, node: Any) -> Any:
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(call("steps", [])))
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return call("joined", node.nodes)

    class Bounded(ImmutableSandboxedEnvironment):
        """The sandbox; what it computes is looked at before or as it is computed."""

        intercepted_binops = frozenset(["+", "*", "**", "%"])
        steps: Any = None

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            tree: Any = Counting().visit(super()._parse(source, name, filename))
            tree.set_environment(self)
            return tree.set_lineno(1)

        @staticmethod
        def joined(*values: Any) -> str:
            """The values' texts, one after the other."""
            return str(_bounded("".join(map(str, values))))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                raise BoundError("it computes a power")
            if operator == "*":
                _check_product(left, right)
            if operator == "%" and isinstance(left, str):
                _check_widths(left)
            return _bounded(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __function: Any, *args: Any, **kwargs: Any) -> Any:
            if __function is __self.steps:
                return __self.steps()
            method = getattr(__function, "__wrapped__", __function)  # so Jinja does for `format`
            owner = getattr(method, "__self__", None)
            _check_call(getattr(__function, "__name__", ""), (owner, *args), kwargs)
            return super().call(__context, __function, *args, **kwargs)

    environment = Bounded(**options)
    environment.steps = Steps()
    for name, function in list(environment.filters.items()):
        environment.filters[name] = _checked_filter(name, function)
    return environment


def _checked_filter(name: str, function: Any) -> Any:
    from functools import wraps

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, args, kwargs)
        return function(*args, **kwargs)

    return checked


def _check_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `BoundError` for a call whose result may be very large."""
    values = [*args, *kwargs.values()]
    if any(isinstance(value, int) and abs(value) > MAX_CHARS for value in values):
        raise BoundError(f"it calls {name} with a number beyond {MAX_CHARS:,}")
    texts = [value for value in values if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        if text.count(old) * len(new) > MAX_CHARS:
            raise BoundError(f"it writes more than {MAX_CHARS:,} characters; it may loop")
    if name in ("format", "format_map") and texts:
        _check_widths(texts[0])
    if name == "join":
        _check_join(values)


def _check_join(values: list[Any]) -> None:
    items = next((value for value in values if isinstance(value, list | tuple)), ())
    glue = max((len(value) for value in values if isinstance(value, str)), default=0)
    if len(items) * glue > MAX_CHARS:
        raise BoundError(f"it writes more than {MAX_CHARS:,} characters; it may loop")


def _check_product(left: Any, right: Any) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(count, int):
            if len(value) * count > MAX_CHARS:
                raise BoundError(f"it writes more than {MAX_CHARS:,} characters; it may loop")
        elif isinstance(value, int) and abs(value) > 2**64:
            raise BoundError("it computes a very large number")


def _check_widths(form: str) -> None:
    if _WIDTH.search(form):
        raise BoundError("it pads a text to a very large width")


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list) and len(value) > MAX_CHARS:
        raise BoundError(f"it writes more than {MAX_CHARS:,} characters; it may loop")
    return value
