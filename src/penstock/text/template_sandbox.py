"""The jinja environment of chat templates: only text comes out, nothing changes, all work is paid for.

Called by chat_template. On top of jinja's immutable sandbox, a template pays for every turn of a loop, call
of a macro, operation, filter and method before it runs it (template_meter), and only harmless filters and
methods are there at all.
"""

import json
import types
from collections.abc import Callable, Iterator, Sized
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from penstock.text.template_meter import (
    CHARS_PER_UNIT,
    MAX_CHARS,
    MAX_INT_BITS,
    METER,
    TemplateLimitError,
    bound,
    price_attribute,
    price_binary,
    price_format,
    price_indent,
    price_method,
    price_replace,
    weigh,
)

MAX_SOURCE_CHARS = 1 << 18  # the longest published template has some 40,000
MAX_NODES = 20_000
MAX_DEPTH = 150  # of the syntax tree; the compiler's own recursion stays far from Python's limit
MAX_BRANCHES = 200  # of one if: each elif is a level deeper in the generated code
NODES_PER_UNIT = 8

# Filters whose names no template can write: they hold a space.
PAY, WEIGHED, SLICED = "pay for", "as weighed", "to be sliced"

LEFT_OUT = frozenset(
    {"filesizeformat", "forceescape", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"}
)
SHALLOW = frozenset(  # look at the items of their argument, not into them
    """
    attr batch count d default first items last length list map reject rejectattr reverse safe
    select selectattr slice
    """.split()  # noqa: SIM905 a list of them is a page
)
CONSTANT = frozenset({"attr", "count", "d", "default", "first", "last", "length", "safe"})
ORDERING = frozenset({"dictsort", "groupby", "sort", "unique"})
SIZED = frozenset({"batch", "center", "round", "slice", "truncate"})  # with a number that sizes the result
BY_ATTRIBUTE = frozenset(
    """
    dictsort groupby map max min reject rejectattr select selectattr sort sum unique
    """.split()  # noqa: SIM905 a list of them is a page
)
STR_METHODS = frozenset(
    """
    capitalize casefold center count endswith expandtabs find format format_map index isalnum
    isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle
    isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
    """.split()  # noqa: SIM905 a list of them is a page
)
CONTAINER_METHODS = frozenset({"copy", "count", "get", "index", "items", "keys", "values"})


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what is trained on; here, it is plain content."""

    tags = {"generation"}  # noqa: RUF012 jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates that pay for what they do with the Meter in METER; it must be set to render one."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before there is a meter
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        own = {"tojson": _tojson, "replace": _replace, "indent": _indent, "join": _join, "sum": _sum}
        kept: dict[str, Any] = {**self.filters, **own}  # Any: jinja's stubs call them `function`
        self.filters = {name: _paid(name, kept[name]) for name in kept if name not in LEFT_OUT}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _paid(name, tests[name]) for name in tests}
        self.filters |= {PAY: _pay, WEIGHED: _weighed, SLICED: _sliced}
        self.globals = {
            name: self.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateLimitError(f"a template of {len(source):,} characters")
        tree = super()._parse(source, name, filename)
        if _meter(tree, 0) > MAX_NODES:
            raise TemplateLimitError(f"a template of more than {MAX_NODES:,} parts")
        return tree

    def call_binop(
        self, context: Context, operator: str, left: Any, right: Any
    ) -> Any:  # Any: template values
        price_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # Any: template values
        METER.get().spend(8)
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            if method.__name__ not in STR_METHODS:
                raise jinja2.exceptions.SecurityError(f"str.{method.__name__} is not for templates")
            price_method(owner, method.__name__, args, kwargs)
        elif isinstance(method, types.BuiltinMethodType):
            if not isinstance(owner, list | tuple | dict | range) or method.__name__ not in CONTAINER_METHODS:
                raise jinja2.exceptions.SecurityError(f"{method.__name__}() is not for templates")
            weigh(owner, *args)
        elif obj is dict:
            weigh(*args, *kwargs.values())
        return super().call(context, obj, *args, **kwargs)


def _meter(node: nodes.Node, depth: int) -> int:
    """Wrap, in place, whatever `node` uses so that it pays; the number of nodes."""
    if depth > MAX_DEPTH:
        raise TemplateLimitError(f"a template nested deeper than {MAX_DEPTH}")
    if isinstance(node, nodes.If) and len(node.elif_) > MAX_BRANCHES:
        raise TemplateLimitError(f"an if of more than {MAX_BRANCHES} branches")
    num_nodes = 1 + sum(_meter(child, depth + 1) for child in node.iter_child_nodes())
    if isinstance(node, nodes.Const) and isinstance(node.value, int):
        if node.value.bit_length() > MAX_INT_BITS:
            raise TemplateLimitError("a number of too many digits")
    elif isinstance(node, nodes.Output | nodes.Concat):
        node.nodes = [_wrapped(child, WEIGHED) for child in node.nodes]
    elif isinstance(node, nodes.List) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        node.items = [_wrapped(child, WEIGHED) for child in node.items]
    elif isinstance(node, nodes.Pair):
        node.key, node.value = _wrapped(node.key, WEIGHED), _wrapped(node.value, WEIGHED)
    elif isinstance(node, nodes.Compare):
        node.expr = _wrapped(node.expr, WEIGHED)
        for operand in node.ops:
            operand.expr = _wrapped(operand.expr, WEIGHED)
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node.node = _wrapped(node.node, SLICED)
    elif isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
        num_chars = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        payment = _payment(1 + num_nodes // NODES_PER_UNIT + num_chars // CHARS_PER_UNIT, node.lineno)
        node.body.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(payment, node.test, lineno=node.lineno)
    return num_nodes


def _wrapped(node: Any, filter_name: str) -> Any:  # Any: jinja's nodes are not typed by their place
    if isinstance(node, nodes.Const | nodes.TemplateData):
        return node
    return nodes.Filter(node, filter_name, [], [], None, None, lineno=node.lineno)


def _payment(units: int, line: int) -> nodes.Filter:
    return nodes.Filter(nodes.Const(units, lineno=line), PAY, [], [], None, None, lineno=line)


# pass_context: jinja computes no such filter at compile time.
@pass_context
def _pay(_: Context, units: int) -> bool:
    METER.get().spend(units)
    return True


@pass_context
def _weighed(_: Context, value: Any) -> Any:  # Any: template values
    METER.get().weigh(value)
    return value


@pass_context
def _sliced(_: Context, value: Any) -> Any:  # Any: template values
    if isinstance(value, str | list | tuple | range):
        METER.get().spend(len(value) // 16)
    return value


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that weighs its arguments first. Generators run to their end, within the budget."""
    passed = str(getattr(function, "jinja_pass_arg", ""))

    def paid(context: Context, /, *args: Any, **kwargs: Any) -> Any:  # Any: template values
        meter = METER.get()
        meter.spend(8 if name not in ORDERING or not args else 8 + 4 * _length(args[0]))
        values = [*args[1:], *kwargs.values()]
        if name not in SHALLOW:
            for value in args[:1]:
                meter.weigh(value)
        elif args and name not in CONSTANT:
            meter.spend(_length(args[0]))
        for value in values:
            meter.weigh(value)
        if name in SIZED and any(isinstance(value, int) and abs(value) > MAX_CHARS for value in values):
            raise TemplateLimitError(f"an argument of {name} out of proportion")
        if name == "round" and any(isinstance(value, int) and abs(value) > 64 for value in values):
            raise TemplateLimitError("more than 64 digits")
        if name in BY_ATTRIBUTE:
            price_attribute(values)
        if name == "format":
            price_format(str(args[0]), values)
        first = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }
        result = function(*first.get(passed.rpartition(".")[2], ()), *args, **kwargs)
        return _run_out(result) if isinstance(result, types.GeneratorType) else result

    return pass_context(paid)


def _run_out(generator: Iterator[Any]) -> Iterator[Any]:  # Any: template values
    """What is left of `generator`, computed now, still to be walked once: no chain of them can grow deep."""
    meter = METER.get()
    items = []
    for item in generator:
        meter.spend(1)
        items.append(item)
        bound(len(items))
    return iter(items)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:  # Any: template values
    text = str(text)
    price_replace(text, str(old), str(new))
    return str(text.replace(old, new) if count is None else text.replace(old, new, count))


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """jinja's own, priced. Any: template values."""
    price_indent(str(text), width)
    return jinja2.filters.do_indent(text, width, first, blank)


@jinja2.pass_eval_context
def _join(
    context: nodes.EvalContext, items: Any, d: Any = "", attribute: Any = None
) -> str:  # Any: template values
    items = list(items)
    bound(weigh(items) + weigh(d) * len(items))
    price_attribute([attribute])
    return jinja2.filters.sync_do_join(context, items, d, attribute)


@jinja2.pass_environment
def _sum(environment: jinja2.Environment, items: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Numbers alone: lists would be copied for each of them. Any: template values."""
    if not isinstance(start, int | float):
        raise TemplateLimitError("a sum of other things than numbers")
    return jinja2.filters.sync_do_sum(environment, items, attribute, start)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:  # fmt: skip
    """json.dumps as published templates expect it: no HTML escapes, keys in their own order. Any: JSON."""
    if any(size > 64 for size in (_width(indent), *map(_width, separators or ()))):
        raise TemplateLimitError("an indent or separator of over 64 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    meter = METER.get()
    pieces = []
    size = 0
    for piece in encoder.iterencode(value):
        size += len(piece)
        bound(size)
        meter.spend(1)
        pieces.append(piece)
    return "".join(pieces)


def _length(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _width(value: object) -> int:
    return value if isinstance(value, int) else len(value) if isinstance(value, str) else 0
