"""Requests that nobody sensible sends, to a server with a real engine; see benchmarks/http_inputs.py."""

import asyncio
from argparse import Namespace

import pytest
from benchmarks.fuzz_http import Judge, fuzz, main
from benchmarks.http_inputs import Input, made
from tests.api.conftest import llm, running
from tests.fakes.serving import LocalEngine

__all__ = ["llm"]


@pytest.mark.slow
def test_ten_thousand_inputs_harm_nobody():
    assert main(["--inputs", "10000", "--seed", "20"]) == 0


@pytest.mark.slow
def test_five_hundred_inputs_get_an_answer_of_the_right_shape(llm):
    judge = Judge()
    with running(LocalEngine(llm)) as server, server.client() as client:
        body = {"model": "penstock-tiny", "prompt": "def", "seed": 3, "max_tokens": 20}
        before = client.post("/v1/completions", json=body).json()["choices"]
        schemas = client.get("/openapi.json").json()
        asyncio.run(fuzz(server.port, judge, schemas, range(500), Namespace(seed=21, clients=8)))
        after = client.post("/v1/completions", json=body).json()["choices"]

    assert not judge.failures
    assert sum(judge.seen.values()) >= 500
    assert before == after


def test_inputs_come_from_their_number_alone():
    schemas = {"paths": {}}

    assert [made(1, n, schemas) for n in (0, 1, 2, 4, 5, 6, 7)] == [
        made(1, n, schemas) for n in (0, 1, 2, 4, 5, 6, 7)
    ]
    assert made(1, 0, schemas) != made(2, 0, schemas)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n{}",
        b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": "no"}',
        b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": {"message": "a", "type": "b", "param": null}}',
        b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": {"message": "object at 0x7f", "type": "server_error"}}',
        b"HTTP/1.1 302 Found\r\n\r\n",
        b"garbage",
    ],
)
def test_the_judge_sees_what_is_wrong(answer):
    judge = Judge()
    judge.judge(1, Input(b"POST", "mutated", True), answer)

    assert len(judge.failures) >= 1


def test_the_judge_takes_what_is_right():
    judge = Judge()
    error = b'{"error": {"message": "a", "type": "invalid_request_error", "param": null, "code": null}}'
    judge.judge(1, Input(b"POST", "mutated", True), b"HTTP/1.1 400 Bad Request\r\n\r\n" + error)
    judge.judge(2, Input(b"POST", "noise", False), b"")

    assert not judge.failures
