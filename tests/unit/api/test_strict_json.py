"""What two JSON parsers could read differently is refused."""

import pytest

from penstock.api.strict_json import read_json
from penstock.errors import InvalidRequestError


def refusal(body: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read_json(body, max_depth=64)
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"[", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1}x', b'{"a":1}{}', b"{'a':1}",
        b'{"a":1,}',
        b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":1.}', b'{"a":0x1}', b'{"a":NaN}', b'{"a":Infinity}',
        b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":-1e400}', b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}',
        b'{"a":"\x00"}', b'{"a":"\n"}', b'{"a":"\\x"}', b'{"a":"\xff"}', b'{"a":"\xc0\xaf"}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 65 + b"]" * 65, b"[" * 100_000, b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused(body):
    error = refusal(body)

    assert error.code == "invalid_json"
    assert len(str(error)) < 300


@pytest.mark.parametrize("text", [b"\\u0000", b"x\\ud800y", b"\\udc00", b"\\ud800\\ud800"])
def test_texts_that_no_text_can_hold_are_refused_with_their_parameter(text):
    error = refusal(b'{"model":"m","prompt":["ok",{"x":"' + text + b'"}]}')

    assert (error.code, error.param) == ("invalid_value", "prompt")


def test_a_key_that_no_text_can_hold_is_refused():
    assert refusal(b'{"a":{"\\u0000":1}}').param == "a"


def test_every_beginning_of_a_valid_body_is_refused():
    body = '{"model":"m","messages":[{"role":"user","content":"h\u00e9\\n"}],"temperature":0.5}'.encode()

    assert read_json(body, max_depth=64)["temperature"] == 0.5
    for end in range(len(body)):
        assert refusal(body[:end]).code == "invalid_json", body[:end]


def test_valid_json_keeps_its_values():
    value = read_json(
        b'{"a":[1,-0.0,1e-45,"\\ud83d\\ude00",true,null,{"b":[]}],"n":12345678901234567890}', max_depth=64
    )

    assert value == {"a": [1, -0.0, 1e-45, "\U0001f600", True, None, {"b": []}], "n": 12345678901234567890}


def test_the_limit_of_depth_is_exact():
    assert read_json(b"[" * 64 + b"]" * 64, max_depth=64) is not None
    assert "nested" in str(refusal(b"[" * 65 + b"]" * 65))


def test_a_wide_body_is_no_deep_body():
    assert len(read_json(b"[" + b"[]," * 10_000 + b"[]]", max_depth=2)) == 10_001
