"""Requests that nobody sensible sends, made from a seed and a number: the same pair gives the same bytes.

Used by fuzz_http. Half are bodies (mutated parameters, values after the server's own description, broken
JSON), half are bytes (heads, lengths, chunks, noise).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

MODEL = "penstock-tiny"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CHAT = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": "def f(", "max_tokens": 3, "seed": 1, "timeout": 5},
    "/v1/chat/completions": {"model": MODEL, "messages": CHAT, "max_tokens": 3, "seed": 1, "timeout": 5},
    "/v1/messages": {"model": MODEL, "messages": CHAT, "max_tokens": 3},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": CHAT},
    "/v1/embeddings": {"model": MODEL, "input": "hello"},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [5, 6, 7]},
}
PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "seed",
    "logprobs", "top_logprobs", "logit_bias", "stop", "stop_token_ids", "echo", "suffix", "stream",
    "stream_options", "user", "tools", "tool_choice", "parallel_tool_calls", "response_format", "priority",
    "cache_salt", "ignore_eos", "truncate_prompt_tokens", "model", "prompt", "messages", "timeout",
    "bad_words", "allowed_token_ids", "prompt_logprobs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "structured_outputs", "return_receipt", "return_token_ids", "chat_template",
    "chat_template_kwargs", "functions", "reasoning_effort", "add_generation_prompt", "system",
    "stop_sequences", "thinking", "input", "encoding_format", "dimensions", "pooling", "tokens",
    "prompt_embeds", "__class__", "unheard_of",
)  # fmt: skip
LITERALS = (
    "NaN", "Infinity", "-Infinity", "1e400", "-0.0", "1e-45", "1" * 5000, "01", "+1", "0x10", "'a'",
    '"\\ud800"', '"\\u0000"', '"\\x41"', "[[[[[[[[[[]]]]]]]]]]", "[" * 100 + "]" * 100, '{"a":1,"a":2}',
    "tru", "",
)  # fmt: skip
INTEGERS = (
    -(2**63), -(2**31), -1, 0, 1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 1024, 2**31 - 1, 2**31,
    2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30,
)  # fmt: skip
REALS = (-1e308, -2.1, -0.0, 1e-45, 1e-6, 0.5, 1.0, 1.5, 2.0, 2.0001, 100.1, 1e308)
TEXTS = (
    "", " ", "a", "1", "true", "../../etc/passwd", "file:///etc/passwd", "<|im_start|>", "<|endoftext|>",
    "\u202e", "\u2028", "\ufffd", "e\u0301" * 50, "\U0001f469\u200d\U0001f4bb", "a" * 3000,
    "{{ ''.__class__.__mro__ }}", "{% for i in range(10**9) %}x{% endfor %}", "(a+)+$", "(a|a)*b",
    "(.{1,1000}){1000}", "[", "\\", 'root ::= "a"', "start: start start", "required", "none", "auto",
    "json_object", "http://169.254.169.254/", "\x7f\x1b[31m", "%s%n",
)  # fmt: skip
SCHEMAS = (
    {}, True, {"type": "object"}, {"type": "nothing"}, {"$ref": "#"}, {"$ref": "http://x/y"}, {"enum": []},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "array", "minItems": 10**9}, {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "string", "maxLength": 10**9}, {"anyOf": []}, {"properties": {"a": {"$ref": "#/x/y"}}},
)  # fmt: skip
METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "P\x00ST",
    "FOO",
)
PATHS = (
    "/", "/v1/models", "/v1/models/penstock-tiny", "/v1/models/../x", "//v1/models", "/v1%2fmodels",
    "/health?deep=1", "/metrics", "/version", "/live", "/ready", "/startup", "/openapi.json", "/v1/plan",
    "/nowhere", "*", "?", "/\u00e9", "http://localhost/live", "/live?" + "a" * 2000, "/v1/completions/",
    "/%00", "/tokenize;x=1", "x",
)  # fmt: skip
HEADERS = (
    "host: evil/../x", "host: a b", "content-length: 5", "content-length: -1", "content-length: +5",
    "content-length: 99999999999999999999", "content-length: 1, 2", "transfer-encoding: chunked",
    "transfer-encoding: gzip, chunked", "transfer-encoding: identity", "content-encoding: gzip",
    "content-encoding: br", "content-type: text/plain", "content-type: application/json; charset=latin1",
    "content-type: ", "expect: 100-continue", "expect: x", "connection: keep-alive, close",
    "connection: upgrade", "upgrade: websocket", "upgrade: h2c", "authorization: Basic !!!!",
    "authorization: Bearer \xff", "x-request-id: " + "a" * 500, "x-request-id: a\tb\x1b",
    "x-request-timeout-s: -1", "x-request-timeout-s: nan", "x-request-timeout-s: 1e400",
    "origin: http://evil", "cookie: a=b", ": empty", "no colon", " folded", "a: " + "b" * 9000,
    "range: bytes=0-1", "anthropic-version: x",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    data: bytes
    kind: str
    is_whole: bool  # by the way it was made: an answer is due


def made(seed: int, number: int, schemas: Mapping[str, Any]) -> Input:
    """`schemas`: /openapi.json of the server."""
    random = Random(f"{seed}:{number}")
    kinds = (mutated, mutated, plausible, described, broken, heads, chunks, noise)
    kind: Callable[[Random, Mapping[str, Any]], Input] = kinds[number % len(kinds)]
    return kind(random, schemas)


def framed(path: str, data: bytes, kind: str) -> Input:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    )
    return Input(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data, kind, True)


def mutated(random: Random, _: Mapping[str, Any]) -> Input:
    """A valid body, one to four of its parameters replaced, added or dropped."""
    path = random.choice(list(BODIES))
    body = dict(BODIES[path])
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        name = random.choice((*PARAMETERS, *body))
        if random.random() < 0.1:
            body.pop(name, None)
        else:
            body[name] = value_of(random, name)
    return framed(path, json.dumps(body).encode(), "mutated")


def value_of(random: Random, name: str, depth: int = 0) -> Any:
    draw = random.random()
    if draw < 0.3:
        return shaped(random, name)
    if draw < 0.5:
        return random.choice(INTEGERS)
    if draw < 0.6:
        return random.choice(REALS)
    if draw < 0.75:
        return random.choice(TEXTS)
    if draw < 0.82:
        return random.choice((True, False, None))
    if draw < 0.86:
        return random.choice(SCHEMAS)
    if depth > 2:
        return []
    count = random.choice((0, 1, 2, 5, 20, 200 if depth == 0 else 2))
    if draw < 0.94:
        return [value_of(random, name, depth + 1) for _ in range(count)]
    return {random.choice((*TEXTS, *PARAMETERS)): value_of(random, name, depth + 1) for _ in range(count)}


def plausible(random: Random, _: Mapping[str, Any]) -> Input:
    """Values that are allowed, in combinations that nobody asks for; most of them are run."""
    path = random.choice(("/v1/completions", "/v1/chat/completions"))
    body = dict(BODIES[path]) | {"max_tokens": random.choice((1, 2, 5, 20))}
    allowed: dict[str, Any] = {
        "temperature": random.uniform(0, 2), "top_p": random.uniform(0.01, 1),
        "top_k": random.choice((-1, 0, 1, 9)),
        "min_p": random.random(), "typical_p": random.uniform(0.1, 1), "n": random.choice((1, 2, 4)),
        "presence_penalty": random.uniform(-2, 2), "frequency_penalty": random.uniform(-2, 2),
        "repetition_penalty": random.uniform(0.01, 10), "min_tokens": random.choice((0, 1)),
        "seed": random.choice((0, -1, 2**31, 2**63 - 1)), "ignore_eos": random.random() < 0.5,
        "stop": random.choice(("a", ["\n", " "], ["e\u0301", "zz"])),
        "stop_token_ids": [random.randrange(400)],
        "logit_bias": {str(random.randrange(400)): random.choice((-100, 100, 0.5))},
        "allowed_token_ids": random.sample(range(400), random.choice((1, 5, 300))),
        "bad_words": [random.choice(("the", " a", "x y z"))], "stream": random.random() < 0.5,
        "priority": random.choice((-5, 0, 5)), "cache_salt": random.choice(("a", "b-c")),
        "return_receipt": True,
        "prompt_logprobs": random.choice((0, 1, 20)), "return_token_ids": True,
    }  # fmt: skip
    if path == "/v1/completions":
        prompts: tuple[Any, ...] = ("x", ["a", "b"], [5] * random.choice((1, 255 - 20, 100)), [[7, 8], [9]])
        allowed |= {"logprobs": random.choice((0, 1, 20)), "echo": True, "prompt": random.choice(prompts)}
    else:
        allowed |= {"logprobs": True, "top_logprobs": random.choice((0, 20)), "tools": [TOOL]}
        allowed["response_format"] = {"type": random.choice(("text", "json_object"))}
    for grammar in (
        {"guided_regex": random.choice(("[ab]{3}", "(x|yz)+", "\\d+"))}, {"guided_choice": ["yes", "no"]},
        {"guided_json": random.choice(({"type": "integer"}, {"enum": [1, "a"]}))},
    ):  # fmt: skip
        if random.random() < 0.05:
            body |= grammar
    names = random.sample(list(allowed), random.choice((0, 1, 2, 3, 5)))
    return framed(path, json.dumps(body | {name: allowed[name] for name in names}).encode(), "plausible")


def shaped(random: Random, name: str) -> Any:
    """What is nearly right for this parameter."""
    some, text = random.choice(INTEGERS), random.choice(TEXTS)
    if name == "messages":
        parts: list[Any] = [
            text, None, [{"type": "text", "text": text}],
            [{"type": "image_url", "image_url": {"url": text}}], [], some,
            [{"type": "tool_use", "id": "a", "name": text, "input": {}}],
            [{"type": "tool_result", "tool_use_id": text}],
        ]  # fmt: skip
        roles = ("system", "user", "assistant", "tool", "developer", text)
        return [
            {"role": random.choice(roles), "content": random.choice(parts)}
            for _ in range(random.choice((1, 2, 5)))
        ]
    if name == "tools":
        schema = random.choice(SCHEMAS)
        function = {"name": random.choice(("f", "a b", "", "x" * 65)), "parameters": schema, "strict": True}
        return [{"type": "function", "function": function}] * random.choice((1, 2, 129))
    if name == "tool_choice":
        return random.choice(
            ("required", "none", {"type": "function", "function": {"name": "f"}}, {"type": text})
        )
    if name == "response_format":
        form = {"name": "x", "schema": random.choice(SCHEMAS)}
        return random.choice(
            ({"type": "json_object"}, {"type": "json_schema", "json_schema": form}, {"type": text})
        )
    if name in ("guided_json", "structured_outputs"):
        return random.choice(
            (random.choice(SCHEMAS), {"json": random.choice(SCHEMAS)}, {"regex": text}, text)
        )
    if name in ("prompt", "input", "tokens"):
        return random.choice(
            ([some], [[5, some]], [[]], [text, text], [5, "a"], [[[5]]], [5] * 600, [5] * 255)
        )
    if name == "logit_bias":
        return {str(some): random.choice(REALS), text: 1}
    if name in ("stop", "bad_words", "stop_sequences", "guided_choice"):
        return [random.choice(TEXTS) for _ in range(random.choice((1, 2, 17)))]
    if name in ("stop_token_ids", "allowed_token_ids"):
        return [random.choice((5, some)) for _ in range(random.choice((1, 2, 1025)))]
    return random.choice((some, 1, 2, True, text))


def described(random: Random, schemas: Mapping[str, Any]) -> Input:
    """A body after the server's own description of itself."""
    path = random.choice(list(BODIES))
    schema = schemas["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body = after(random, schema, schemas, 0)
    if isinstance(body, dict) and random.random() < 0.8:
        known = {"model": MODEL, "max_tokens": 3, **{k: v for k, v in BODIES[path].items() if k not in body}}
        body |= {name: value for name, value in known.items() if name in BODIES[path]}
    return framed(path, json.dumps(body).encode(), "described")


def after(random: Random, schema: Any, schemas: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, dict) or depth > 8:
        return value_of(random, "", 2)
    if "$ref" in schema:
        node: Any = schemas
        for step in schema["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        return after(random, node, schemas, depth + 1)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return after(random, random.choice(schema[choice]), schemas, depth + 1)
    if "enum" in schema:
        return random.choice(schema["enum"])
    kind = schema.get("type")
    match random.choice(kind) if isinstance(kind, list) else kind:
        case "object":
            required = schema.get("required", ())
            return {
                name: after(random, inner, schemas, depth + 1)
                for name, inner in schema.get("properties", {}).items()
                if name in required or random.random() < 0.12
            }
        case "array":
            return [
                after(random, schema.get("items"), schemas, depth + 1)
                for _ in range(random.choice((0, 1, 3)))
            ]
        case "integer":
            return random.choice((*INTEGERS, schema.get("minimum", 0), schema.get("maximum", 3)))
        case "number":
            return random.choice((*REALS, schema.get("minimum", 0.1), schema.get("maximum", 0.9)))
        case "boolean":
            return random.random() < 0.5
        case "null":
            return None
        case "string":
            return random.choice(TEXTS)
    return value_of(random, "", 2)


def broken(random: Random, _: Mapping[str, Any]) -> Input:
    """JSON that is none, or nearly none."""
    path = random.choice(list(BODIES))
    text = json.dumps(BODIES[path])
    draw = random.random()
    if draw < 0.4:
        name = random.choice(PARAMETERS)
        data = (text[:-1] + f', "{name}": {random.choice(LITERALS)}}}').encode()
    elif draw < 0.6:
        data = text.encode()[: random.randrange(len(text))]
    else:
        data = flipped(random, text.encode(), random.choice((1, 2, 8)))
    if draw > 0.95:
        data = text.encode(random.choice(("utf-16", "utf-8-sig", "utf-32")))
    return framed(path, data, "broken")


def flipped(random: Random, data: bytes, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        at = random.randrange(len(changed) + 1)
        match random.randrange(4):
            case 0 if at < len(changed):
                changed[at] = random.randrange(256)
            case 1 if at < len(changed):
                del changed[at : at + random.choice((1, 1, 20))]
            case 2:
                changed[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 4))))
            case _:
                changed[at:at] = changed[: random.randrange(64)]
    return bytes(changed)


def heads(random: Random, _: Mapping[str, Any]) -> Input:
    """Methods, targets, versions and header lines."""
    path = random.choice((*PATHS, *BODIES))
    version = random.choice(("HTTP/1.1",) * 8 + ("HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 x", ""))
    lines = [f"{random.choice(METHODS)} {path} {version}"]
    lines += random.choice((["host: localhost"],) * 8 + ([], ["host: a", "host: b"]))
    lines += random.sample(HEADERS, random.choice((0, 1, 1, 2, 3)))
    lines += ["x: y"] * random.choice((0, 0, 0, 0, 150))
    body = json.dumps(BODIES.get(path, {})).encode() if random.random() < 0.5 else b""
    if body and random.random() < 0.7:
        lines.append(f"content-length: {len(body)}")
    end = random.choice(("\r\n",) * 8 + ("\n", "\r"))
    return Input((end.join(lines) + end * 2).encode("utf-8") + body, "heads", False)


def chunks(random: Random, _: Mapping[str, Any]) -> Input:
    """A body in chunks, with mistakes."""
    path = random.choice(list(BODIES))
    left = json.dumps(BODIES[path]).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    data = head.encode()
    while left:
        size = random.randrange(1, len(left) + 1)
        told: bytes | str = f"{size:x}"
        if random.random() < 0.08:
            told = random.choice(
                ("-1", "zz", "0", "f" * 17, "7fffffffffffffff", f"{size + 3:x}", "", f" {size:x}")
            )
        extension = random.choice(("",) * 6 + (";a=b", ";" + "e" * 5000))
        data += (
            f"{told}{extension}\r\n".encode() + left[:size] + random.choice((b"\r\n",) * 30 + (b"\n", b""))
        )
        left = left[size:]
    data += random.choice((b"0\r\n\r\n",) * 6 + (b"", b"0\r\n", b"0\r\nx: y\r\n\r\n", b"00000\r\n\r\n"))
    return Input(data, "chunks", False)


def noise(random: Random, _: Mapping[str, Any]) -> Input:
    """A valid request with bytes changed; several behind each other; no HTTP at all."""
    draw = random.random()
    valid = framed(path := random.choice(list(BODIES)), json.dumps(BODIES[path]).encode(), "noise").data
    if draw < 0.6:
        return Input(flipped(random, valid, random.choice((1, 1, 2, 5))), "noise", False)
    if draw < 0.75:
        several = valid.replace(b"connection: close\r\n", b"") * random.choice((2, 3))
        return Input(several + flipped(random, valid, 1), "noise", False)
    if draw < 0.85:
        return Input(valid[: random.randrange(len(valid))], "noise", False)
    others = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x80\x04\x95\x00cos\nsystem\n", b"\r\n" * 500, b"\x00" * 200, b"GET /live\r\n",
        b"GET /live HTTP/1.1\r\n" + b"a" * 40_000, random.randbytes(300),
    )  # fmt: skip
    return Input(random.choice(others), "noise", False)
