"""`penstock batch`: the server's answers, one for each custom_id, whatever is killed when."""

import asyncio
import io
import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.unit.cli.conftest import environment

from penstock.api import batch
from penstock.cli.batch import _Batch
from penstock.cli.batch_file import BatchFile
from penstock.errors import ConfigError

MODEL = "penstock-tiny"
WRONG_METHOD = json.dumps({"custom_id": "m", "method": "GET", "url": "/", "body": {}})
FLAGS = ("--threads", "1", "--memory-bytes", "64m", "--max-requests", "4")


def line(custom_id, url="/v1/completions", **body):
    body = {"model": MODEL, "max_tokens": 6, "seed": 3, "temperature": 0.8} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def chat(custom_id, **body):
    return line(custom_id, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], **body)


def embedding(custom_id):
    body = {"model": MODEL, "input": ["a", "b c"]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


def answers(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def plain(body):
    """Less what differs from call to call: ids and clocks."""
    return {key: value for key, value in body.items() if key not in ("id", "created")}


@pytest.fixture
def files(tmp_path):
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "errors.jsonl"


@pytest.mark.slow
def test_each_answer_is_the_servers_and_bad_lines_have_their_errors(here, files):
    import httpx
    from tests.api.conftest import running
    from tests.fakes.serving import LocalEngine

    from penstock import LLM

    source, output, errors = files
    good = [line("a", prompt="def f("), chat("b"), embedding("c"), chat("d", n=2, logprobs=True)]
    refused = line("e", prompt="x", temperature=9)
    bad = ["nonsense", line("a", prompt="again"), line("s", prompt="x", stream=True), "", "[1]",
           line("u", "/v1/files"), WRONG_METHOD]  # fmt: skip
    source.write_text("\n".join([*good, refused, *bad]))
    result = here("batch", str(source), str(output), "--errors", str(errors), *FLAGS)
    made = {one["custom_id"]: one for one in answers(output)}

    assert result.code == 0
    assert "4 answered, 7 refused, 0 from before" in result.err
    assert sorted(made) == ["a", "b", "c", "d"]
    llm = LLM(MODEL, backend="cpu", threads=1, memory_bytes=64 << 20)
    with running(LocalEngine(llm)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for text in good:
            asked = json.loads(text)
            told = client.post(asked["url"], json=asked["body"])
            response = made[asked["custom_id"]]["response"]
            assert response["status_code"] == told.status_code == 200
            assert plain(response["body"]) == plain(told.json())
    codes = [one["error"]["code"] for one in answers(errors) if one["error"]]
    assert sorted(codes) == sorted(
        [
            "invalid_line",
            "duplicate_custom_id",
            "invalid_body",
            "invalid_line",
            "invalid_url",
            "invalid_method",
        ]
    )
    (too_hot,) = [one for one in answers(errors) if not one["error"]]
    assert (too_hot["custom_id"], too_hot["response"]["status_code"]) == ("e", 400)
    assert too_hot["response"]["body"]["error"]["param"] == "temperature"
    before = output.read_bytes(), errors.read_bytes()
    again = here("batch", str(source), str(output), "--errors", str(errors), *FLAGS)
    assert "0 answered, 0 refused, 11 from before" in again.err
    assert (output.read_bytes(), errors.read_bytes()) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_and_each_is_answered_once(here, files, number):
    source, output, _ = files
    source.write_text("\n".join(line(f"id-{i}", prompt=f"x = {i}", max_tokens=40) for i in range(60)))
    command = [sys.executable, "-m", "penstock.cli.main", "batch", str(source), str(output), *FLAGS]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not output.exists() or output.read_bytes().count(b"\n") < 8):
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait(60)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    partial = output.read_bytes()
    assert 8 <= partial.count(b"\n") < 60
    output.write_bytes(partial + b'{"id": "torn')
    result = here("batch", str(source), str(output), *FLAGS)

    assert result.code == 0
    assert output.read_bytes().startswith(partial)
    ids = [one["custom_id"] for one in answers(output)]
    assert sorted(ids) == sorted(f"id-{i}" for i in range(60))
    assert all(one["response"]["status_code"] == 200 for one in answers(output))


def test_a_torn_line_is_cut_off_and_another_file_is_not(tmp_path):
    path = tmp_path / "out"
    with BatchFile(str(path)) as file:
        file.append(
            [batch.LineAnswer("1", "a", batch.LineResponse(200, "r", batch.msgspec.Raw(b"{}")), None)]
        )
        with pytest.raises(ConfigError, match="another batch"):
            BatchFile(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-3])
    with BatchFile(str(path)) as file:
        assert file.answered == {"a"}
    assert path.read_bytes() == whole
    path.write_bytes(whole + b"precious notes\n")
    with pytest.raises(ConfigError, match="line 2"):
        BatchFile(str(path))
    assert path.read_bytes() == whole + b"precious notes\n"


def test_an_input_that_is_not_there_is_one_line(here, tmp_path):
    result = here("batch", str(tmp_path / "nothing"), str(tmp_path / "out"))

    assert result.code == 64
    assert "nothing" in result.err


def app_of(statuses):
    """An application that answers with these statuses, one after the other."""
    told = iter(statuses)

    async def app(scope, receive, send):
        assert (await receive())["body"] == b'{"a": 1.50}'
        headers = [(b"x-request-id", b"r")]
        await send({"type": "http.response.start", "status": next(told), "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    return app, told


ASKED = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"a": 1.50}}'


def test_a_server_that_is_busy_is_asked_again():
    app, told = app_of((503, 503, 200))
    made = asyncio.run(batch.answer(app, batch.read_line(ASKED)))

    assert made.response.status_code == 200
    assert next(told, None) is None


def test_a_server_that_stays_busy_has_not_answered(monkeypatch):
    monkeypatch.setattr(batch, "MAX_PAUSE_S", 0.0)
    app, told = app_of([503] * batch.RETRIES)

    assert asyncio.run(batch.answer(app, batch.read_line(ASKED))) is None
    assert next(told, None) is None


class _Disk(BatchFile):
    """Remembers who wrote."""

    def __init__(self, name):
        super().__init__(name)
        self.threads = set()

    def append(self, answers):
        self.threads.add(threading.current_thread())
        super().append(answers)


def test_what_is_left_is_asked_by_the_next_run_and_files_are_written_beside_the_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_PAUSE_S", 0.0)
    source = io.BytesIO(b"nonsense\n" + ASKED + b"\n" + ASKED.replace(b'"a",', b'"b",') + b"\n")

    def run(statuses):
        source.seek(0)
        with _Disk(str(tmp_path / "out")) as output:
            made = _Batch(source, output, output, 3)
            asyncio.run(made._answer_all(app_of(statuses)[0], 1))
            assert threading.main_thread() not in output.threads
        return made.num_answered, made.num_refused, made.num_skipped, made.num_left

    assert run([200] + [503] * batch.RETRIES) == (1, 1, 0, 1)
    assert run([200]) == (1, 0, 2, 0)
    ids = [one["custom_id"] for one in answers(tmp_path / "out")]
    assert sorted(ids, key=str) == [None, "a", "b"] or sorted(ids, key=str) == ["a", "b", None]


def test_lines_without_an_answer_are_one_line_and_a_code_of_their_own(here, tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.write_text(ASKED.decode())

    async def leave(self, options):
        self.num_left = 2

    monkeypatch.setattr(_Batch, "run", leave)
    result = here("batch", str(source), str(tmp_path / "out"))

    assert result.code == 75
    assert "2 lines were not answered" in result.err.splitlines()[-1]
    assert "run it again" in result.err
