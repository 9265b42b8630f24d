"""Dead ends of grammars are errors, schemas are read off the event loop, channels are never content."""

import threading
from typing import ClassVar

import pytest

from penstock.api.conversation import ToolChoice
from penstock.api.tooling import Tooling
from penstock.text import grammar

CHAT = {"model": "penstock-tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "penstock-tiny", "prompt": "hi"}
MESSAGE = CHAT | {"max_tokens": 5}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT), ("/v1/messages", MESSAGE)]
MANY = ("/v1/completions", TEXT | {"prompt": ["a", "b"]})


@pytest.mark.parametrize(("path", "body"), [*ROUTES, MANY])
def test_a_dead_end_is_an_error_and_no_half_answer(serve, scripted, path, body):
    server = serve(scripted(["half", ""], finish_reason="error"))
    with server.client() as client:
        whole = client.post(path, json=body)
        stream = client.post(path, json=body | {"stream": True})

    assert whole.status_code == 400
    assert whole.json()["error"]["code"] == "grammar_dead_end"
    assert "grammar" in whole.json()["error"]["message"]
    assert stream.status_code == 200
    assert "half" in stream.text
    assert "grammar_dead_end" in stream.text.strip().splitlines()[-1]
    assert "[DONE]" not in stream.text
    assert '"finish_reason":"error"' not in stream.text


@pytest.mark.parametrize(("path", "body"), ROUTES[:2])
def test_schemas_are_read_on_a_worker_thread(serve, scripted, monkeypatch, path, body):
    server = serve(scripted())
    threads = []
    real = grammar.spec_of

    def keep(*arguments, **options):
        threads.append(threading.current_thread())
        return real(*arguments, **options)

    for module in ("chat", "completions"):
        monkeypatch.setattr(f"penstock.api.{module}.spec_of", keep)
    with server.client() as client:
        good = client.post(path, json=body | {"guided_json": {"type": "object"}})
        bad = client.post(path, json=body | {"guided_json": {"$ref": "http://x"}})

    assert (good.status_code, bad.status_code) == (200, 400)
    assert len(threads) == 2
    assert server.thread not in threads


class _Tokenizer:
    special_tokens: ClassVar = {"<|channel|>": 1, "<|message|>": 2, "<tool_call>": 3}


def test_channels_are_decoded_for_the_parser_with_tools_or_without():
    harmony = Tooling.make("<|start|>assistant<|channel|>final<|message|>", [], ToolChoice("auto"))
    hermes = Tooling.make("{{ tools }}<tool_call>", [], ToolChoice("auto"))

    assert harmony.sampling(_Tokenizer()) == {"skip_special_tokens": False}
    assert hermes.sampling(_Tokenizer()) == {}
    parser = harmony.parser()
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello"
    events = parser.feed(text) + parser.finish()
    assert "".join(e.text for e in events if type(e).__name__ == "ContentDelta") == "Hello"
