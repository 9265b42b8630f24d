"""schemathesis against /openapi.json: whatever it makes up, right or wrong, is answered as described.

Most bodies get the model's name and a short answer, or they would all be refused for the same reason. 503 and
504 are answers to load and to time, which are bounded here.
"""

import json
import os
from collections import Counter
from collections.abc import Container
from random import Random
from typing import Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from benchmarks.fuzz_http import CONFIG
from benchmarks.served import Served, served
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import integers
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.api.wire import events_of

pytestmark = pytest.mark.slow

NUM_EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "25"))
HINTS = {
    "model": "penstock-tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}],
    "prompt": "def f(", "input": "hi", "tokens": [40, 41], "timeout": 5,
}  # fmt: skip
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server():
    with served(config=CONFIG) as started:
        yield started
        assert started.complaints() == []


@pytest.fixture(scope="module")
def document(server: Served) -> dict[str, Any]:
    return json.loads(server.get("/openapi.json"))


def helped(body: Any, properties: Container[str], random: Random) -> Any:
    """One in four as it is; the others ask for something that can be done, and up to three things more."""
    if not isinstance(body, dict) or random.random() < 0.25:
        return body
    hints = {name: hint for name, hint in HINTS.items() if name in properties}
    if "prompt" in hints:
        hints.pop("messages", None)  # /tokenize takes one of them
    more = sorted(body.keys() - hints.keys() - {"messages"})
    return {name: body[name] for name in random.sample(more, min(len(more), random.randrange(4)))} | hints


def properties_of(document: dict[str, Any], operation: Any) -> dict[str, Any]:
    """What the body of an operation may have; empty: it takes none."""
    body = document["paths"][operation.path][operation.method].get("requestBody")
    if body is None:
        return {}
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    properties: dict[str, Any] = document["components"]["schemas"][name]["properties"]
    return properties


def check_stream(document: dict[str, Any], operation: Any, text: str) -> None:
    """Every event is of the type that is described, or a refusal."""
    content = document["paths"][operation.path]["post"]["responses"]["200"]["content"]
    schema = {**content["text/event-stream"]["itemSchema"], "components": document["components"]}
    for event in events_of(text):
        if event != "[DONE]" and "error" not in event:
            jsonschema_rs.validate(schema, event)


def explore(server: Served, document: dict[str, Any], operation: Any, mode: GenerationMode) -> Counter[int]:
    """Ask what is made up for one operation; how often each status came back."""
    properties, seen = properties_of(document, operation), Counter()

    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=NUM_EXAMPLES if properties else 2, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), number=integers(0, 999))
    def ask(case: Any, number: int) -> None:
        case.body = helped(case.body, properties, Random(number))
        reply = case.call(base_url=server.url, timeout=60)
        seen[reply.status_code] += 1
        is_stream = reply.headers.get("content-type", [""])[0].startswith("text/event-stream")
        if reply.status_code not in (503, 504):
            case.validate_response(reply, checks=CHECKS[:3] if is_stream else CHECKS)
        if is_stream:
            check_stream(document, operation, reply.text)

    ask()
    return seen


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_what_is_made_up_from_the_description_is_answered_as_it_says(server, document, mode):
    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    asked = [one for one in operations if mode is GenerationMode.POSITIVE or one.method != "get"]
    seen = {operation.path: explore(server, document, operation, mode) for operation in asked}

    print(seen)
    if mode is GenerationMode.POSITIVE:
        assert [path for path, statuses in seen.items() if not statuses[200]] == ["/v1/models/{name}"]
    else:
        assert all(set(statuses) - {200} for statuses in seen.values())
