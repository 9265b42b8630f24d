"""What may be asked of an answer, before anything is compiled."""

import json
from typing import Any

import pytest

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec, StructuredOutputsParams
from penstock.text.grammar import choice_spec, grammar_spec, json_schema_spec, regex_spec, spec_of


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth - 1):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, None),
        ({"json": '{"type": "object"}'}, GrammarSpec("json_schema", '{"type":"object"}')),
        ({"json": {"type": "object"}}, GrammarSpec("json_schema", '{"type":"object"}')),
        ({"json_object": True}, GrammarSpec("json_object")),
        ({"regex": "a+"}, GrammarSpec("regex", "a+")),
        ({"choice": ("a", "b", "a")}, GrammarSpec("choice", '["a", "b"]')),
        ({"grammar": "start: /a/"}, GrammarSpec("lark", "start: /a/")),
        ({"grammar": 'root ::= "a"'}, GrammarSpec("ebnf", 'root ::= "a"')),
    ],
)
def test_each_shape_gives_its_grammar(asked: dict[str, Any], expected: GrammarSpec | None) -> None:
    assert spec_of(StructuredOutputsParams(**asked)) == expected


def test_two_shapes_at_once_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match="json and regex"):
        spec_of(StructuredOutputsParams(json="{}", regex="a"))


@pytest.mark.parametrize(
    "schema, says",
    [
        ("{", "no JSON"),
        ("[]", "is list"),
        (3, "is int"),
        ({"type": "object", "fooBar": 1}, "'fooBar'"),
        ({"properties": {"a": {"not": {}}}}, "#/properties/a has the keyword 'not'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"anyOf": {}}, "anyOf is dict"),
        ({"enum": []}, "enum is no list"),
        ({"enum": "abc"}, "enum is no list"),
        ({"properties": []}, "properties is list"),
        ({"items": 3}, "items is int"),
        ({"pattern": 3}, "pattern is int"),
        ({"$ref": "http://example.com/x"}, "points into this schema"),
        ({"$ref": "#/$defs/none"}, "does not have"),
        ({"$ref": "#"}, "refers to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "itself"),
        ({"const": float("nan")}, "what JSON cannot"),
        ({"const": "\ud800"}, "surrogate"),
    ],
)
def test_what_is_no_usable_schema_is_refused_by_name(schema: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says.replace("$", "\\$")) as caught:
        json_schema_spec(schema, param="response_format.schema")

    assert caught.value.param == "response_format.schema"
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize(
    "schema",
    [
        {"description": "x" * 65_536},
        {"enum": [str(i) for i in range(1_001)]},
        {"anyOf": [{"enum": [i]} for i in range(600)]},
        {"properties": {f"p{i}": {} for i in range(5_001)}},
        nested(33),
        {"const": json.loads("[" * 40 + "]" * 40)},
        {"pattern": "(a+)+"},
        {"patternProperties": {"(a|a)*": {}}},
    ],
)
def test_a_schema_above_a_limit_is_a_grammar_limit(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarLimitError) as caught:
        json_schema_spec(schema, param="x")

    assert caught.value.code == "grammar_limit"


def test_a_schema_at_the_limits_is_taken() -> None:
    json_schema_spec(nested(32), param="x")
    json_schema_spec({"enum": [str(i) for i in range(1_000)]}, param="x")
    json_schema_spec({"properties": {f"p{i}": {} for i in range(5_000)}}, param="x")


def test_a_reference_to_itself_below_something_else_is_recursion_and_is_taken() -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}

    assert json_schema_spec(tree, param="x").kind == "json_schema"


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "((?:a+))+",
        "(a*)*",
        "(a|a)*b",
        "(.{1,1000}){1000}",
        "((a{1,100}){1,100}){1,100}",
        "a{100001}",
        "x{99999999999999999999}",
        "(" * 70 + "a" + ")" * 70,
        "a" * 4_097,
    ],
)
def test_a_pattern_that_costs_too_much_is_a_grammar_limit(pattern: str) -> None:
    with pytest.raises(GrammarLimitError):
        regex_spec(pattern, param="regex")


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\w+, )*\w+",
        r"\((a+)\+",
        "[(a+)+]+",
        "(a+){1,3}",
        "((a+b)+c)+",
        "(?i:yes|no)",
        "a" * 4_096,
    ],
)
def test_an_honest_pattern_is_taken(pattern: str) -> None:
    assert regex_spec(pattern, param="regex") == GrammarSpec("regex", pattern.replace("\\w", "[0-9A-Za-z_]"))


def test_digits_and_word_letters_are_ascii_in_every_pattern() -> None:
    schema = {
        "properties": {"pattern": {"pattern": "\\d[\\w.]\\\\d", "enum": [{"pattern": "\\d"}]}},
        "patternProperties": {"^\\D$": {}},
    }

    assert json.loads(json_schema_spec(schema, param="x").text) == {
        "properties": {"pattern": {"pattern": "[0-9][0-9A-Za-z_.]\\\\d", "enum": [{"pattern": "\\d"}]}},
        "patternProperties": {"^[^0-9]$": {}},
    }


@pytest.mark.parametrize("choices", [[], "abc", ["a", ""], ["a", 3], None])
def test_choices_are_texts(choices: Any) -> None:
    with pytest.raises(InvalidRequestError):
        choice_spec(choices, param="choice")


@pytest.mark.parametrize("grammar", ["", "  \n", "start: /a/\0"])
def test_an_empty_grammar_is_refused(grammar: str) -> None:
    with pytest.raises(InvalidRequestError):
        grammar_spec(grammar, param="grammar")


def test_too_many_choices_and_too_large_grammars_are_grammar_limits() -> None:
    with pytest.raises(GrammarLimitError):
        choice_spec([str(i) for i in range(1_001)], param="choice")
    with pytest.raises(GrammarLimitError):
        grammar_spec("start: /a/ #" + "x" * 65_536, param="grammar")
