"""Bodies become structs: types, bounds and unknown names are refused by name, or named in a header."""

from typing import Annotated

import pytest
from msgspec import Meta, Struct

from penstock.api.decode import UNSUPPORTED, to_struct
from penstock.errors import InvalidRequestError


class Inner(Struct, forbid_unknown_fields=True):
    flag: bool | None = None


class Body(Struct, kw_only=True):
    model: str
    count: Annotated[int, Meta(ge=1, le=8)] | None = None
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    names: Annotated[list[str], Meta(max_length=2)] | None = None
    inner: Inner | None = None


def refusal(**fields: object) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        to_struct({"model": "m", **fields}, Body)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"count": "1"}, "invalid_type", "count"),
        ({"count": True}, "invalid_type", "count"),
        ({"count": []}, "invalid_type", "count"),
        ({"count": {}}, "invalid_type", "count"),
        ({"count": 1.5}, "invalid_type", "count"),
        ({"count": 0}, "invalid_value", "count"),
        ({"count": 9}, "invalid_value", "count"),
        ({"count": 2**63}, "invalid_value", "count"),
        ({"count": 10**400}, "invalid_value", "count"),
        ({"share": 0}, "invalid_value", "share"),
        ({"share": 1.0000001}, "invalid_value", "share"),
        ({"share": "x"}, "invalid_type", "share"),
        ({"model": None}, "invalid_type", "model"),
        ({"names": ["a", "b", "c"]}, "array_above_max_length", "names"),
        ({"names": ["a", 1]}, "invalid_type", "names[1]"),
        ({"inner": {"flag": 1}}, "invalid_type", "inner.flag"),
        ({"colour": 1}, "unknown_parameter", "colour"),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"use_beam_search": True}, "unsupported_parameter", "use_beam_search"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
    ],
)
def test_bad_fields_are_named(fields, code, param):
    error = refusal(**fields)

    assert (error.code, error.param) == (code, param)
    assert str(error).isprintable()
    assert len(str(error)) < 400


def test_a_missing_field_is_named():
    with pytest.raises(InvalidRequestError) as caught:
        to_struct({}, Body)

    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "model")


@pytest.mark.parametrize("value", [None, [], "x", 42, 1.5, True])
def test_a_body_that_is_no_object_is_refused(value):
    with pytest.raises(InvalidRequestError) as caught:
        to_struct(value, Body)

    assert caught.value.code == "invalid_type"


def test_whole_numbers_may_be_written_with_a_point():
    body, _ = to_struct({"model": "m", "count": 2.0, "share": 1}, Body)

    assert (body.count, body.share) == (2, 1.0)


def test_harmless_fields_are_ignored_by_name_and_refused_where_it_is_strict():
    value = {"model": "m", "metadata": {"a": 1}, "store": True, "use_beam_search": False, "audio": None}

    assert to_struct(dict(value), Body)[1] == ["metadata", "store", "use_beam_search", "audio"]
    with pytest.raises(InvalidRequestError, match="strict"):
        to_struct(value, Body, is_strict=True)


def test_null_asks_for_the_default():
    body, _ = to_struct({"model": "m", "count": None, "share": None, "names": None, "inner": None}, Body)

    assert body == Body(model="m")


def test_what_is_unsupported_is_refused_unless_it_asks_for_nothing():
    for name, nothing in UNSUPPORTED.items():
        assert refusal(**{name: "something"}).code == "unsupported_parameter"
        for value in (None, *nothing):
            assert to_struct({"model": "m", name: value}, Body)[1] == [name]


def test_a_name_that_no_header_can_hold_is_shown_escaped():
    error = refusal(**{"a\r\nset-cookie: x": 1})

    assert "\r" not in str(error)
    assert "\r" not in error.param
