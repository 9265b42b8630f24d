"""Chat and fill-in-the-middle examples, made from functions that carry a docstring.

Called by packing.py with documents of the train split. A chat example asks for a function and answers
with its source, or shows a function and answers with its docstring's first paragraph, or lists the function
as a tool and asks for a call of it, or asks for its arguments as JSON; only the answer is learned. Text of an
example comes from one file, so examples stay inside that file's split.
"""

import ast
import json
import random
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tools.train.sources import Document

_MAX_FUNCTION_CHARS = 1600
_MIN_DOC_CHARS = 16
_MAX_DOC_CHARS = 300
_REQUESTS = (
    "Write a Python function {head} that does this: {doc}",
    "Write the function {head}. {doc}",
    "Implement {head} in Python: {doc}",
    "Python function {name}: {doc}",
)
_CALLS = ("Call {name} with {said}.", "{doc} Use {said}.", "Use the tool {name}: {said}")
_OBJECTS = ("Answer in JSON with {names}: {said}.", "Write this as a JSON object: {said}.")
_TYPES = {int: "integer", bool: "boolean", str: "string"}
_QUESTIONS = ("What does this function do?\n\n{source}", "Explain this code:\n\n{source}")


@dataclass(frozen=True, slots=True)
class Function:
    """A function with its docstring's first paragraph. Texts are dedented.

    `opening` ends after the docstring, `source` is everything, `bare` is everything but the docstring.
    `arguments` are the names of the positional ones, without self and cls.
    """

    name: str
    head: str
    doc: str
    opening: str
    source: str
    bare: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the answer that is to be learned; `tools` are JSON, one a line."""

    question: str
    answer: str
    tools: str = ""
    is_call: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """A text with its middle taken out."""

    prefix: str
    suffix: str
    middle: str


def functions(document: Document) -> Iterator[Function]:
    """Find the functions and methods with a docstring, none longer than a training row takes well."""
    try:
        tree = ast.parse(document.text)
    except SyntaxError:
        return
    lines = document.text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        doc = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ").strip()
        source = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).strip() + "\n"
        is_useful = _MIN_DOC_CHARS <= len(doc) <= _MAX_DOC_CHARS and len(source) <= _MAX_FUNCTION_CHARS
        if not is_useful or len(node.body) < 2:
            continue
        above = lines[node.lineno - 1 : node.body[0].lineno - 1]
        below = lines[node.body[1].lineno - 1 : node.end_lineno]
        bare = textwrap.dedent("".join(above + below)).strip() + "\n"
        head = f"{node.name}({ast.unparse(node.args)})"
        opening = textwrap.dedent("".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
        arguments = tuple(one.arg for one in node.args.args if one.arg not in ("self", "cls"))
        yield Function(node.name, head, doc, opening, source, bare, arguments)


def chat_turns(documents: Iterable[Document], chance: random.Random) -> Iterator[Turn]:
    """Make one turn of every function: half ask for code, the rest for an explanation, a call or JSON."""
    for document in documents:
        for function in functions(document):
            draw = chance.random()
            if draw < 0.5 or (draw >= 0.7 and not function.arguments):
                request = chance.choice(_REQUESTS).format(
                    head=function.head, name=function.name, doc=function.doc
                )
                yield Turn(request, function.source if chance.random() < 0.5 else function.bare)
            elif draw < 0.7:
                yield Turn(chance.choice(_QUESTIONS).format(source=function.bare), function.doc)
            elif draw < 0.85:
                yield _call(function, chance)
            else:
                yield _object(function, chance)


def _call(function: Function, chance: random.Random) -> Turn:
    values = _values(function, chance)
    schema = {
        "name": function.name,
        "description": function.doc,
        "parameters": {
            "type": "object",
            "properties": {name: {"type": _TYPES[type(value)]} for name, value in values.items()},
            "required": list(values),
        },
    }
    said = ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    request = chance.choice(_CALLS).format(name=function.name, doc=function.doc, said=said)
    answer = json.dumps({"name": function.name, "arguments": values})
    return Turn(request, answer, json.dumps(schema), is_call=True)


def _object(function: Function, chance: random.Random) -> Turn:
    values = _values(function, chance)
    said = ", ".join(f"{name} is {value}" for name, value in values.items())
    return Turn(chance.choice(_OBJECTS).format(said=said, names=", ".join(values)), json.dumps(values))


def _values(function: Function, chance: random.Random) -> dict[str, str | int | bool]:
    """Invent a value for up to three arguments: a number, a truth value, or a word of the docstring."""
    words = re.findall(r"[A-Za-z]{3,}", function.doc) or ["name"]
    return {
        name: chance.choice((chance.randrange(100), chance.random() < 0.5, chance.choice(words)))
        for name in function.arguments[:3]
    }


def gaps(documents: Iterable[Document], chance: random.Random) -> Iterator[Gap]:
    """Cut one random middle, of whole lines and at most a third of them, out of every function.

    A cut inside a word would teach a model of this size to end words anywhere.
    """
    for document in documents:
        for function in functions(document):
            lines = function.source.splitlines(keepends=True)
            first = chance.randrange(1, len(lines))
            last = min(len(lines), first + 1 + chance.randrange(1 + len(lines) // 3))
            yield Gap("".join(lines[:first]), "".join(lines[last:]), "".join(lines[first:last]))
