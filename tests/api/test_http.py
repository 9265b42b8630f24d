"""HTTP on the wire: framing, limits, deadlines, hosts and keys; what uvicorn alone would let through."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from tests.api.wire import TEXT, connect, exchange, head, post, read_all, read_answer, status

from penstock.api.routes import ROUTES
from penstock.engine.serving import Limits

BODY = json.dumps(TEXT).encode()
P = "/v1/completions"
FRAMINGS = [
    ("a length and a coding", post(P, BODY, transfer_encoding="chunked"), {400}),
    ("two lengths", post(P, BODY).replace(b"content-length", b"content-length: 5\r\ncontent-length"),
     {400}),
    ("a signed length", post(P, BODY, content_length=f"+{len(BODY)}"), {400}),
    ("a negative length", post(P, BODY, content_length=-5), {400}),
    ("a length that is no number", post(P, BODY, content_length="ten"), {400}),
    ("an unknown coding", head("POST", P, transfer_encoding="gzip, chunked") + b"0\r\n\r\n", {400}),
    ("a bad chunk size", head("POST", P, transfer_encoding="chunked") + b"zz\r\n", {400}),
    ("a chunk extension of 1 MB",
     head("POST", P, transfer_encoding="chunked") + b"1;" + b"a" * 1_000_000 + b"\r\nx\r\n0\r\n\r\n",
     {0, 400, 413, 431}),
    ("a compressed body", post(P, BODY, content_encoding="gzip"), {415}),
    ("a brotli body", post(P, BODY, content_encoding="br"), {415}),
    ("a form", post(P, BODY, content_type="application/x-www-form-urlencoded"), {415}),
    ("plain text", post(P, BODY, content_type="text/plain"), {415}),
    ("latin-1", post(P, BODY, content_type="application/json; charset=latin1"), {415}),
    ("HTTP/0.9", b"GET /live\r\n\r\n", {400}),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    ("TLS", bytes.fromhex("1603010200010001fc0303") + b"\0" * 100, {0, 400}),
    ("TRACE", head("TRACE", "/live"), {405}),
    ("CONNECT", b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n", {400, 405}),
    ("no host", b"GET /v1/models HTTP/1.1\r\n\r\n", {400}),
    ("two hosts", b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", {400}),
    ("a host with a path", head("GET", "/v1/models", host="localhost/x"), {400}),
    ("a host with a query", head("GET", "/v1/models", host="localhost?x#y"), {400}),
    ("a folded header", b"GET /live HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n", {200, 400}),
    ("a space before the colon", b"GET /live HTTP/1.1\r\nhost : localhost\r\n\r\n", {400}),
    ("too many headers", head("GET", "/live", **{f"x{i}": i for i in range(120)}), {431}),
    ("a header too long", head("GET", "/live", x="y" * 40_000), {431}),
    ("a header that never ends", b"GET /live HTTP/1.1\r\nx: " + b"y" * 60_000, {431}),
    ("a target too long", head("GET", "/" + "x" * 9000), {414}),
    ("a body too large", post(P, b"x" * (4 * 2**20 + 1)), {413}),
    ("chunks too large",
     head("POST", P, transfer_encoding="chunked") + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 5, {413}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "expected"), [row[1:] for row in FRAMINGS], ids=[row[0] for row in FRAMINGS]
)
def test_framing_is_strict(tiny, data, expected):
    answer = exchange(tiny.port, data)

    assert status(answer) in expected, answer[:200]
    if status(answer) >= 400:
        top, _, body = answer.partition(b"\r\n\r\n")
        assert b"x-request-id: " in top.lower()
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert status(exchange(tiny.port, head("GET", "/live"))) == 200


def test_bodies_in_many_chunks_are_one_body(tiny):
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in BODY) + b"0\r\n\r\n"

    assert status(exchange(tiny.port, head("POST", P, transfer_encoding="chunked") + chunks)) == 200


def test_a_body_without_a_type_and_one_on_demand_are_taken(tiny):
    assert status(exchange(tiny.port, post(P, BODY, content_type=""))) == 200
    with connect(tiny.port) as wire:
        wire.sendall(head("POST", P, content_length=len(BODY), expect="100-continue"))
        assert wire.recv(100).startswith(b"HTTP/1.1 100")
        wire.sendall(BODY)
        assert status(read_answer(wire)) == 200


def test_pipelined_requests_are_answered_in_order(tiny):
    with connect(tiny.port) as wire:
        wire.sendall(b"".join(head("GET", "/live", x_request_id=f"n{i}") for i in range(99))
                     + head("GET", "/live", x_request_id="n99", connection="close"))  # fmt: skip
        answers = read_all(wire)

    assert re.findall(rb"x-request-id: n(\d+)", answers) == [str(i).encode() for i in range(100)]


def test_garbage_behind_a_request_does_not_cost_its_answer(tiny):
    assert status(exchange(tiny.port, post(P, BODY) + b"\0\1garbage", until_closed=True)) == 200


def test_http_1_0_is_answered_and_closed(tiny):
    assert status(exchange(tiny.port, b"GET /live HTTP/1.0\r\n\r\n", until_closed=True)) == 200


QUICK = Limits(header_s=0.4, body_s=0.4, idle_write_s=0.5)


def test_slow_heads_and_bodies_are_let_go_in_time(serve, scripted):
    server = serve(scripted(limits=QUICK))
    for data, expected in ((b"", 0), (b"GET /live HT", 408), (post(P, BODY)[:-5], 408)):
        begun_s = time.monotonic()
        answer = exchange(server.port, data, until_closed=False)
        assert status(answer) == expected
        assert 0.3 < time.monotonic() - begun_s < 5
    assert server.engine.num_open == server.engine.num_tickets == 0


def test_a_body_that_comes_byte_by_byte_does_not_hold_a_connection(serve, scripted):
    server = serve(scripted(limits=QUICK))
    with connect(server.port) as wire:
        wire.sendall(post(P, BODY)[: -len(BODY)])
        begun_s = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in BODY:
                wire.sendall(bytes([byte]))
                time.sleep(0.1)
        assert time.monotonic() - begun_s < 0.1 * len(BODY) - 1
        assert status(read_answer(wire)) in (0, 408)


KEY = "the-right-key-123"


@pytest.fixture
def guarded(serve, scripted):
    return serve(scripted(), keys=(KEY,))


def test_every_route_needs_the_key_but_two(guarded):
    for route in ROUTES:
        path = route.path.replace("{name:path}", "penstock-tiny")
        answer = exchange(guarded.port, post(path, b"{}") if route.method == "POST" else head("GET", path))
        assert status(answer) == (200 if route.is_open else 401), path
        assert KEY.encode() not in answer
    assert {route.path for route in ROUTES if route.is_open} == {"/live", "/ready"}
    assert exchange(guarded.port, head("GET", "/ready")).endswith(b'{"status":"ready"}')


@pytest.mark.parametrize(
    "target",
    ["//v1/models", "/v1/../v1/models", "/v1/./models", "%2fv1/models", "/%2fv1/models", "/v1%2fmodels",
     "/v1/models/", "/v1/models;a", "/V1/MODELS", "/v1/models.", "/live/../v1/models",
     "/live;/v1/models", "/live%00",
     "/nope",
     "http://localhost/v1/models", "http://localhost/live/../v1/models", "http://evil/v1/models"],
)  # fmt: skip
def test_no_spelling_of_a_path_goes_around_the_key(guarded, target):
    for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
        assert status(exchange(guarded.port, head(method, target))) in (400, 401)
    for host in ("localhost/live", "localhost#", "localhost?/live", "evil.example", "localhost:80:80"):
        assert status(exchange(guarded.port, head("GET", "/v1/models", host=host))) in (400, 401)


def test_keys_are_taken_in_three_spellings_and_no_other(guarded):
    import base64

    basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    for given in (f"Bearer {KEY}", f"bearer  {KEY}", f"Basic {basic}"):
        assert status(exchange(guarded.port, head("GET", "/v1/models", authorization=given))) == 200
    assert status(exchange(guarded.port, head("GET", "/v1/models", x_api_key=KEY))) == 200
    for given in ("", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", "Basic !!!", f"Digest {KEY}"):
        assert status(exchange(guarded.port, head("GET", "/v1/models", authorization=given))) == 401
    page = exchange(guarded.port, head("GET", "/"))
    assert b'www-authenticate: Basic realm="penstock"' in page
    assert KEY not in guarded.log.getvalue()


def test_pages_of_other_sites_and_names_of_other_zones_stay_out(tiny):
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        for origin in ("https://evil.example", "null", f"https://evil.example:{tiny.port}"):
            answer = exchange(tiny.port, head(method, "/v1/models", origin=origin))
            assert status(answer) == 403, (method, origin)
            assert b"access-control" not in answer.lower()
        assert status(exchange(tiny.port, head(method, "/v1/models", host="rebound.example"))) == 403
    own = f"127.0.0.1:{tiny.port}"
    assert status(exchange(tiny.port, head("GET", "/v1/models", host=own, origin=f"http://{own}"))) == 200
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "10.0.0.7"):
        assert status(exchange(tiny.port, head("GET", "/v1/models", host=host))) == 200


def test_listed_hosts_and_origins_come_in(serve, scripted):
    port = serve(scripted(), allowed_hosts=("gpu-box",), allowed_origins=("https://ours.example",)).port

    assert status(exchange(port, head("GET", "/v1/models", host="gpu-box:8000"))) == 200
    assert status(exchange(port, head("GET", "/v1/models", origin="https://ours.example"))) == 200


def test_request_ids_are_kept_or_replaced_and_never_keys(tiny):
    for given, is_kept in (("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("caf\u00e9", False)):
        answer = exchange(tiny.port, head("GET", "/live", x_request_id=given)).decode("latin1")
        assert (f"x-request-id: {given}\r\n" in answer) == is_kept
    with connect(tiny.port) as one, connect(tiny.port) as two:
        for wire, seed in ((one, 1), (two, 2)):
            wire.sendall(post(P, {**TEXT, "max_tokens": 16, "seed": seed}, x_request_id="same"))
        texts = [
            json.loads(read_answer(w).partition(b"\r\n\r\n")[2])["choices"][0]["text"] for w in (one, two)
        ]
    alone = [
        json.loads(
            exchange(tiny.port, post(P, {**TEXT, "max_tokens": 16, "seed": s})).partition(b"\r\n\r\n")[2]
        )
        for s in (1, 2)
    ]
    assert texts == [one["choices"][0]["text"] for one in alone]


def test_methods_are_said_and_metrics_do_not_grow(tiny):
    answer = exchange(tiny.port, head("DELETE", "/v1/models"))
    assert status(answer) == 405
    assert b"allow: GET, HEAD" in answer
    before = len(exchange(tiny.port, head("GET", "/metrics")))
    for number in range(200):
        exchange(tiny.port, head("GET", f"/random/{number}"))
        exchange(tiny.port, head(["PURGE", "LINK", "COPY"][number % 3], f"/r{number}"))
    assert len(exchange(tiny.port, head("GET", "/metrics"))) - before < 4096


def test_a_log_line_is_one_line_without_words_of_users(tiny):
    secret = "xyzzy-secret-prompt"
    exchange(tiny.port, post(P, {**TEXT, "prompt": secret, "user": "u\r\nfake"}, x_request_id="r\x1b[2J"))
    exchange(tiny.port, head("GET", "/%0d%0a%1b%e2%80%a8{fake}"))
    tiny.context.log.write("mark")
    time.sleep(0.2)
    lines = tiny.log.getvalue().splitlines()

    assert all(isinstance(json.loads(line), dict) and line.isascii() and line.isprintable() for line in lines)
    assert secret not in tiny.log.getvalue()


def test_the_description_is_true(tiny):
    import jsonschema_rs

    with tiny.client() as client:
        document = client.get("/openapi.json").json()
        for route in ROUTES:
            path = route.path.replace(":path}", "}")
            operation = document["paths"][path][route.method.lower()]
            if route.gives is None:
                continue
            url = route.path.replace("{name:path}", "penstock-tiny")
            answer = client.post(url, json=SAMPLES[url]) if route.method == "POST" else client.get(url)
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            check = jsonschema_rs.validator_for({**schema, "components": document["components"]})
            check.validate(answer.json())
            if route.takes is not None:
                asked = operation["requestBody"]["content"]["application/json"]["schema"]
                request = jsonschema_rs.validator_for({**asked, "components": document["components"]})
                request.validate(SAMPLES[url])
                error = client.post(url, json={**SAMPLES[url], "model": 5})
                refusal = operation["responses"]["default"]["content"]["application/json"]["schema"]
                if not route.is_anthropic:
                    jsonschema_rs.validator_for({**refusal, "components": document["components"]}).validate(
                        error.json()
                    )


CHAT = {"model": "penstock-tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
SAMPLES = {
    P: {**TEXT, "logprobs": 1, "return_receipt": True}, "/v1/chat/completions": {**CHAT, "logprobs": True},
    "/v1/embeddings": {"model": "penstock-tiny", "input": "a"}, "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"model": "penstock-tiny", "messages": CHAT["messages"]},
    "/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [40]},
}  # fmt: skip


def test_events_of_streams_are_what_the_description_says(tiny):
    from tests.api.wire import events_of

    with tiny.client() as client:
        for route in ROUTES:
            if route.streams is not None:
                text = client.post(route.path, json={**SAMPLES[route.path], "stream": True}).text
                for one in events_of(text):
                    if one != "[DONE]":
                        msgspec.convert(one, route.streams)


def test_the_page_stands_alone(tiny):
    with tiny.client() as client:
        page = client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        for name in re.findall(r'(?:src|href)="(/[\w.]+)"', page.text):
            assert client.get(name).status_code in (200, 503), name
        for name in ("/", "/page.js", "/page.css"):
            text = client.get(name).text.replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text.replace("${location.origin}", "")
            assert "https://" not in text
            assert "onclick=" not in text


@pytest.mark.slow
def test_no_check_is_an_assertion(tmp_path):
    """The refusals again, with assertions compiled away (pytest keeps those of the tests)."""
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore",
         "tests/api/test_http.py", "tests/api/test_bad_bodies.py", "tests/api/test_harm.py",
         "-m", "not slow"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-2000:]


def test_without_files_to_open_it_waits_and_goes_on(serve, scripted):
    """More clients than file descriptors: those inside go on, the processor stays idle."""
    code = """
import json, resource, socket, subprocess, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.path.insert(0, ".")
from tests.api.conftest import running
from tests.fakes.serving import ScriptedEngine
from penstock import LLM
with running(ScriptedEngine(LLM("penstock-tiny", threads=1, memory_bytes=8 << 20))) as server:
    first = socket.create_connection(("127.0.0.1", server.port)); first.settimeout(10)
    child = subprocess.Popen([sys.executable, "-c", f'''
import socket, sys
held = []
for _ in range(120):
    held.append(socket.socket()); held[-1].settimeout(1)
    try: held[-1].connect(("127.0.0.1", {server.port}))
    except OSError: pass
print("full", flush=True); sys.stdin.read()
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    began, used = time.monotonic(), time.process_time()
    time.sleep(1.0)
    share = (time.process_time() - used) / (time.monotonic() - began)
    first.sendall(b"GET /live HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n")
    answered = first.recv(100).startswith(b"HTTP/1.1 200")
    child.stdin.close(); child.wait()
    print(json.dumps([share, answered]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    share, answered = json.loads(done.stdout.splitlines()[-1])

    assert answered
    assert share < 0.2


def test_sockets_of_clients_that_only_connect_are_given_back(serve, scripted):
    server = serve(scripted())
    for _ in range(300):
        socket.create_connection(("127.0.0.1", server.port)).close()
    assert status(exchange(server.port, head("GET", "/live"))) == 200
