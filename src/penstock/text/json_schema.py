"""What a JSON schema may hold before it is compiled: known keywords, and within the limits.

Called by `grammar`. A keyword that would be ignored is refused by its name, since an answer that breaks it
would look right. Whether the schema can be satisfied is for the compiler to say.
"""

from collections.abc import Mapping
from typing import Any

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.text.pattern import check_pattern, with_ascii_classes

MAX_DEPTH = 32
MAX_PROPERTIES = 5_000
MAX_ENUM_VALUES = 1_000

_ANNOTATIONS = {
    *(
        "$schema",
        "$id",
        "id",
        "$comment",
        "$anchor",
        "title",
        "description",
        "default",
        "example",
        "examples",
    ),
    *("readOnly", "writeOnly", "deprecated", "discriminator", "strict"),
}
_SIMPLE = {
    *("type", "format", "required", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "multipleOf", "minItems", "maxItems", "minProperties", "maxProperties"),
}
_SCHEMAS = {"items", "additionalProperties", "additionalItems"}  # a schema or true or false
_SCHEMA_LISTS = {"anyOf", "allOf", "oneOf", "prefixItems"}
_SCHEMA_MAPS = {"properties", "$defs", "definitions", "patternProperties"}
_KNOWN = (
    _ANNOTATIONS | _SIMPLE | _SCHEMAS | _SCHEMA_LISTS | _SCHEMA_MAPS | {"enum", "const", "pattern", "$ref"}
)


def check_schema(schema: Any, *, param: str) -> None:  # Any: foreign JSON
    """Raise InvalidRequestError or GrammarLimitError, naming the place; return for what may be compiled."""
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(
            f"{param} is {type(schema).__name__}; a JSON schema is an object.", param=param
        )
    _Check(schema, param).schema(schema, "#", 1)


def with_ascii_classes_in_patterns(schema: Any) -> Any:  # Any: a checked JSON schema
    """The same schema, its patterns' classes written out."""
    if isinstance(schema, list):
        return [with_ascii_classes_in_patterns(child) for child in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "pattern" and isinstance(value, str):
            made[key] = with_ascii_classes(value)
        elif key == "patternProperties" and isinstance(value, Mapping):
            made[key] = {
                with_ascii_classes(name): with_ascii_classes_in_patterns(child)
                for name, child in value.items()
            }
        else:
            is_value = key in ("enum", "const", "default", "examples", "example")
            made[key] = value if is_value else with_ascii_classes_in_patterns(value)
    return made


class _Check:
    """One walk over one schema, with what it has counted so far."""

    def __init__(self, root: Mapping[str, Any], param: str) -> None:  # Any: foreign JSON
        self._root = root
        self._param = param
        self._num_properties = 0
        self._num_values = 0

    def schema(self, schema: Any, place: str, depth: int) -> None:  # Any: foreign JSON
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            raise self._wrong(place, f"is {_kind(schema)}; a schema is an object, true or false")
        if depth > MAX_DEPTH:
            raise self._too_much(f"is nested deeper than {MAX_DEPTH} levels at {place[:60]}")
        for key, value in schema.items():
            if key not in _KNOWN and not str(key).startswith("x-"):
                raise self._wrong(
                    place, f"has the keyword {str(key)[:60]!r}, which cannot be enforced; leave it out"
                )
            self._keyword(key, value, f"{place}/{key}", depth)

    def _keyword(self, key: str, value: Any, place: str, depth: int) -> None:  # Any: foreign JSON
        if key in _SCHEMA_MAPS:
            if not isinstance(value, Mapping):
                raise self._wrong(place, f"is {_kind(value)}; it must be an object")
            self._num_properties += len(value)
            if self._num_properties > MAX_PROPERTIES:
                raise self._too_much(f"has more than {MAX_PROPERTIES:,} properties")
            for name, child in value.items():
                if key == "patternProperties":
                    check_pattern(str(name), param=self._param)
                self.schema(child, f"{place}/{name}", depth + 1)
        elif key in _SCHEMA_LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise self._wrong(place, f"is {_kind(value)}; it must be a list of schemas")
            self._count_values(len(value))
            for index, child in enumerate(value):
                self.schema(child, f"{place}/{index}", depth + 1)
        elif key in _SCHEMAS:
            self.schema(value, place, depth + 1)
        elif key == "enum":
            if not isinstance(value, list) or not value:
                raise self._wrong(place, "is no list of values, or an empty one")
            self._count_values(len(value))
            for one in value:
                self._plain(one, place, depth + 1)
        elif key == "const":
            self._plain(value, place, depth + 1)
        elif key == "pattern":
            if not isinstance(value, str):
                raise self._wrong(place, f"is {_kind(value)}; it must be a text")
            check_pattern(value, param=self._param)
        elif key == "$ref":
            self._reference(value, place)

    def _plain(self, value: Any, place: str, depth: int) -> None:  # Any: foreign JSON
        """A value that is no schema may still be too deep."""
        if depth > MAX_DEPTH:
            raise self._too_much(f"is nested deeper than {MAX_DEPTH} levels at {place[:60]}")
        children = value.values() if isinstance(value, Mapping) else value
        if isinstance(value, Mapping | list):
            for child in children:
                self._plain(child, place, depth + 1)

    def _reference(self, reference: Any, place: str) -> None:  # Any: foreign JSON
        """Follow references alone: a chain of them that comes back describes nothing."""
        seen: set[str] = set()
        while True:
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise self._wrong(
                    place, f"is {str(reference)[:60]!r}; a reference points into this schema ('#/...')"
                )
            if reference in seen:
                raise self._wrong(place, "refers to itself and nothing else, so that no value could match")
            seen.add(reference)
            target: Any = self._root  # Any: foreign JSON
            for part in reference[1:].split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                    target = target[int(name)]
                elif isinstance(target, Mapping) and name in target:
                    target = target[name]
                else:
                    raise self._wrong(place, f"is {reference[:60]!r}, which this schema does not have")
            if not isinstance(target, Mapping) or "$ref" not in target:
                return
            reference = target["$ref"]

    def _count_values(self, count: int) -> None:
        self._num_values += count
        if self._num_values > MAX_ENUM_VALUES:
            raise self._too_much(f"has more than {MAX_ENUM_VALUES:,} enum values and alternatives")

    def _wrong(self, place: str, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._param}: {place[:80]} {what}.", param=self._param)

    def _too_much(self, what: str) -> GrammarLimitError:
        return GrammarLimitError(f"{self._param}: the JSON schema {what}. Give a smaller one.",
                                 param=self._param)  # fmt: skip


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
