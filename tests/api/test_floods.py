"""One key's prompts against another's cached blocks (46 in README.md): what it loses is bounded by the share.

A pool of 32 blocks of 64 tokens: four requests of a whole context.
"""

import contextlib

import pytest
from benchmarks.served import served
from tests.api.conftest import Started

QUIET, LOUD = "key-one-of-the-test", "key-two-of-the-test"
NUM_BLOCKS, BLOCK = 32, 64
PROMPT_BLOCKS = 4  # of each of the quiet key's prompts
FLOOD_BLOCKS = 6  # of each of the loud key's, and one more while it runs


@contextlib.contextmanager
def small_server(folder, share):
    keys = folder / "keys"
    keys.write_text(f"{QUIET}\n{LOUD}\n")
    keys.chmod(0o600)
    config = f"[engine]\nmax_context = 512\nmax_requests = 4\nkey_share = {share}\n"
    with (
        served("--api-key-file", str(keys), config=config) as server,
        contextlib.closing(Started(server)) as started,
    ):
        yield started


def prompt_of(number, blocks):
    return [40 + number % 200, 40 + number // 200, *(40 + i % 300 for i in range(blocks * BLOCK - 1))]


def num_hits(server, numbers):
    """Cached blocks that these prompts of the quiet key find."""
    return sum(server.seconds(prompt_of(n, PROMPT_BLOCKS), QUIET)[1] // BLOCK for n in numbers)


def flood(server):
    """Three times what the pool holds, each prompt a new one, under many salts."""
    for number in range(3 * NUM_BLOCKS // FLOOD_BLOCKS):
        body = {
            "model": "penstock-tiny", "prompt": prompt_of(1000 + number, FLOOD_BLOCKS), "max_tokens": 1,
            "cache_salt": f"salt-{number}",
        }  # fmt: skip
        assert server.ask(body, LOUD).status_code == 200


def hits_before_and_after(server, num_prompts):
    numbers = range(num_prompts)
    num_hits(server, numbers)
    before = num_hits(server, reversed(numbers))  # what was asked last is found first
    flood(server)
    return before, num_hits(server, numbers)


@pytest.mark.slow
def test_46_a_flood_by_one_key_costs_another_nothing_of_its_half_and_no_more_than_the_rest(tmp_path):
    with small_server(tmp_path, 0.5) as server:
        before, after = hits_before_and_after(server, 3)
        assert (before, after) == (3 * PROMPT_BLOCKS, 3 * PROMPT_BLOCKS), (
            "12 of 32 blocks are within its half"
        )

    with small_server(tmp_path, 0.5) as server:
        before, after = hits_before_and_after(server, 7)
        assert before == 7 * PROMPT_BLOCKS
        assert before - after <= NUM_BLOCKS // 2, f"{before} blocks were found before and {after} after"


@pytest.mark.slow
def test_46_without_a_share_the_same_flood_costs_the_other_key_all(tmp_path):
    with small_server(tmp_path, 1.0) as server:
        before, after = hits_before_and_after(server, 3)

    assert (before, after) == (3 * PROMPT_BLOCKS, 0)
