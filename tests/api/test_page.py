"""The page in a real browser without a window: tools, their calls as they stream, results, and on it goes.

Spoken to over a pair of pipes (Chromium's --remote-debugging-pipe); skipped aloud where there is no Chromium.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
    "--window-size=1280,900",
)  # fmt: skip
LIMIT_S = 60


class Browser:
    """One tab. `run` gives the value of an expression in it."""

    def __init__(self, path: str, folder: str) -> None:
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (their_in, their_out)]  # clear of 3 and 4
        silent = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        self.pid = os.posix_spawn(
            path,
            [path, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4), silent],
            setpgroup=0,
        )
        for fd in (their_in, their_out, *high):
            os.close(fd)
        self._held = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._held:
                more = os.read(self._in, 1 << 20)
                assert more, "the browser has left"
                self._held += more
            line, _, self._held = self._held.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        end_s = time.monotonic() + LIMIT_S
        while not self.run(expression):
            assert time.monotonic() < end_s, f"{expression} never came true: {self.run('talk.innerText')}"
            time.sleep(0.05)

    def close(self) -> None:
        for fd in (self._in, self._out):
            os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def browser():
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("NOT TESTED: there is no Chromium here to open the page in")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Browser(path, folder)
        yield made
        made.close()


@pytest.fixture
def page(browser, tiny):
    browser.call("Page.navigate", url=tiny.url)
    browser.until("document.readyState === 'complete' && state.textContent === 'ready' && model !== ''")
    return browser


def typed(page, **values):
    for name, value in values.items():
        field = f"document.getElementById('{name.replace('_', '-')}')"
        page.run(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input'))")


@pytest.mark.slow
def test_a_tool_is_offered_called_given_a_result_and_the_talk_goes_on(page):
    page.run("tooling.open = true; document.getElementById('tools-example').click()")
    offered = json.loads(page.run("tools_ = document.getElementById('tools').value"))
    assert offered[0]["function"]["name"] == "weather"
    assert '"tools"' in page.run("curl.textContent")
    typed(
        page,
        tool_choice="required",
        seed="1",
        temperature="0",
        max_tokens="120",
        prompt="The weather in Bath?",
    )
    page.run("send_ = document.getElementById('send').click()")
    page.until("running !== null || document.querySelector('.results')")
    page.until("document.querySelector('.results') !== null && running === null")

    calls = page.run("[...document.querySelectorAll('.call code')].map((c) => c.innerText)")
    name, _, arguments = calls[0].partition(" ")
    assert name == "weather"
    assert "place" in json.loads(arguments)
    assert page.run("document.activeElement.closest('.results') !== null"), "the next thing to type"
    assert page.run("document.querySelector('.results label').innerText") == "result of weather"
    typed(page, tool_choice="none")
    page.run("document.querySelectorAll('.results input').forEach((i) => (i.value = 'rain'))")
    page.run("document.querySelector('.results button').click()")
    page.until("running === null && turns.at(-1).role === 'assistant' && turns.at(-2).role === 'tool'")

    assert page.run("turns.map((t) => t.role)") == ["user", "assistant", *["tool"] * len(calls), "assistant"]
    assert page.run("turns.find((t) => t.role === 'tool').content") == "rain"
    assert page.run("document.querySelector('.results button')") is None, "a result is given once"
    assert page.run("talk.querySelectorAll('.error').length") == 0


@pytest.mark.slow
def test_tools_that_are_no_list_are_said_and_nothing_is_sent(page):
    typed(page, tools='{"type": "function"', prompt="Hello")
    page.run("document.getElementById('send').click()")

    assert "no JSON list of tools" in page.run("document.getElementById('tools-fault').textContent")
    assert page.run(
        "running === null && turns.length === 0 && document.getElementById('prompt').value !== ''"
    )
    typed(page, tools="")
    assert page.run("document.getElementById('tools-fault').textContent") == ""


@pytest.mark.slow
def test_an_answer_in_json_is_json_and_plain_text_has_no_tools(page):
    typed(page, shape="json", temperature="0", max_tokens="60", seed="1", prompt="A point")
    page.run("document.getElementById('send').click()")
    page.until("running === null && turns.length === 2")

    assert page.run("turns[1].content").lstrip().startswith("{")
    page.run("document.getElementById('tab-text').click()")
    assert page.run("tooling.hidden")
    page.run("document.getElementById('tools-example').click()")
    assert '"tools"' not in page.run("curl.textContent")
