"""Keys, log lines, problems, frames: the small parts of the HTTP front."""

import json
import statistics
import time
from random import Random

import msgspec
import pytest

from penstock.api.counters import Counters
from penstock.api.keys import Keys, read_keys
from penstock.api.problem import RefusalError, body_of, problem_of
from penstock.api.server import bind, is_loopback
from penstock.api.sse import Template, event
from penstock.config import ServerConfig
from penstock.errors import ConfigError, InvalidRequestError, OverloadedError


def test_keys_are_found_among_several_and_by_whole_value_only():
    keys = Keys(["first-key-123", "second-key-456"])

    assert keys.find("second-key-456") not in (None, keys.find("first-key-123"))
    for wrong in (None, "", "first-key-12", "first-key-1234", "FIRST-KEY-123", "\udcff"):
        assert keys.find(wrong) is None


def naive_find(key, given):
    """What a comparison must not be: it ends at the first difference."""
    for a, b in zip(key, given, strict=False):
        if a != b:
            return None
    return key


def welch_t(find, key, num_samples):
    """How surely the time of refusing tells a key that shares 31 characters from one that shares none."""
    wrong = ("!" + key[1:], key[:-1] + "!")
    taken_ns: tuple[list[int], list[int]] = ([], [])
    random = Random(1)
    for _ in range(num_samples):
        which = random.randrange(2)
        given = wrong[which]
        began_ns = time.perf_counter_ns()
        find(given)
        taken_ns[which].append(time.perf_counter_ns() - began_ns)
    kept = [sorted(times)[: len(times) * 8 // 10] for times in taken_ns]  # the rest is the machine's
    means = [statistics.fmean(times) for times in kept]
    error = sum(statistics.variance(times) / len(times) for times in kept)
    return (means[1] - means[0]) / error**0.5


@pytest.mark.slow
def test_the_time_of_a_refusal_tells_nothing_of_the_key():
    key = "".join(Random(2).choices("abcdef0123456789", k=32))
    assert welch_t(lambda given: naive_find(key, given), key, 20_000) > 20  # it would show

    find = Keys([key]).find
    assert any(abs(welch_t(find, key, 100_000)) < 4.5 for _ in range(8))  # what else runs shifts one or two


@pytest.mark.parametrize(
    "key", ["", " ", "short", "has a blank in it", "line\nbreak-in-key", "schl\u00fcssel-lang"]
)
def test_a_key_that_keeps_nobody_out_is_refused(key):
    with pytest.raises(ConfigError):
        Keys([key])


def test_an_empty_key_in_the_environment_is_not_no_key():
    with pytest.raises(ConfigError, match="empty"):
        read_keys(None, "")
    assert not read_keys(None, None).are_needed


def test_a_key_file_has_one_key_per_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# operators\nalpha-alpha-1\n\n  beta-beta-22  \n")
    keys = read_keys(str(file), None)

    assert keys.find("beta-beta-22")
    assert keys.find("# operators") is None
    file.write_text("\n# nobody\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(str(file), None)
    with pytest.raises(ConfigError):
        read_keys(str(tmp_path / "missing"), None)


def test_our_own_mistakes_are_told_nobody():
    problem = problem_of(ValueError("secret /etc/path 0x7f00"))

    assert problem.status == 500
    assert problem.body.code == "internal_error"
    assert "secret" not in problem.body.message


def test_refusals_carry_what_clients_need():
    full = problem_of(OverloadedError("full; come back.", retry_after_s=7.4))
    bad = problem_of(InvalidRequestError("no.", param="top_p"))

    assert (full.status, full.headers["retry-after"], full.body.code) == (503, "7", "engine_overloaded")
    assert full.headers["x-should-retry"] == "true"
    assert (bad.status, bad.body.param, bad.body.type) == (400, "top_p", "invalid_request_error")
    anthropic = msgspec.json.decode(body_of(full, request_id="r", is_anthropic=True))
    assert (anthropic["type"], anthropic["error"]["type"], anthropic["request_id"]) == (
        "error",
        "overloaded_error",
        "r",
    )
    assert (
        problem_of(RefusalError(405, "method_not_allowed", "no.", headers={"allow": "GET"})).headers["allow"]
        == "GET"
    )


def test_frames_are_one_line_whatever_the_text():
    template = Template({"text": "@", "n": 1})
    for text in ("x", "a\nb", 'q"\\', "\u2028", "data: [DONE]\n\n"):
        frame = template.frame(text)

        assert frame.count(b"\n") == 2
        assert json.loads(frame[6:]) == {"text": text, "n": 1}
        assert frame == event({"text": text, "n": 1})


def test_counters_do_not_grow_with_what_is_requested():
    counters = Counters()
    for number in range(1000):
        counters.count("unknown", f"VERB{number}", 404, 0.1)

    assert counters.render().count("penstock_http_requests_total{") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_open_address_needs_a_key(host):
    with pytest.raises(ConfigError, match="no API key"):
        bind(ServerConfig(host=host, port=0), Keys([]))
    assert not is_loopback(host)


def test_an_open_address_with_a_key_or_on_demand_is_bound():
    bind(ServerConfig(host="0.0.0.0", port=0), Keys(["long-enough-key"])).close()
    bind(ServerConfig(host="0.0.0.0", port=0, insecure_no_auth=True), Keys([])).close()


def test_a_port_in_use_and_an_absurd_one_are_said_in_a_line():
    with bind(ServerConfig(port=0), Keys([])) as first:
        port = first.getsockname()[1]
        first.listen()
        with pytest.raises(ConfigError, match=f"port {port}"):
            bind(ServerConfig(port=port), Keys([]))
    with pytest.raises(ConfigError, match="ports are"):
        bind(ServerConfig(port=70_000), Keys([]))
    with pytest.raises(ConfigError, match="no address"):
        bind(ServerConfig(host="no such host.", port=1), Keys(["long-enough-key"]))
