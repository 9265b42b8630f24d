"""What a front end still holds when everybody has gone: every kind of call, and each object counted."""

import asyncio
import gc
import sys
from collections import Counter

import pytest
from benchmarks.front_day import NUM_QUEUED, Day
from benchmarks.traffic import MODEL
from tests.api.conftest import running

from penstock.config import EngineConfig
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.serving import Limits

NUM_REQUESTS = 2_000
LIMITS = Limits(queued_requests=NUM_QUEUED)


def kept():
    """Objects of our own by type, and how many of all."""
    gc.collect()
    gc.collect()
    objects = gc.get_objects()
    ours = Counter(
        type(one).__qualname__ for one in objects if str(type(one).__module__).startswith("penstock")
    )
    return ours, len(objects)


@pytest.mark.slow
def test_a_front_end_keeps_no_object_of_a_call_that_has_ended():
    def start():
        return AsyncEngine.start("penstock-tiny", EngineConfig(max_requests=16, threads=1), LIMITS)

    with running(start, limits=LIMITS, model_name=MODEL) as server:
        day = Day(server.port, seed=3)
        asyncio.run(day.prepare())
        asyncio.run(day.run(NUM_REQUESTS))
        ours, num_objects = kept()
        num_blocks = sys.getallocatedblocks()
        asyncio.run(day.run(2 * NUM_REQUESTS))
        ours_later, num_objects_later = kept()
        num_blocks_later = sys.getallocatedblocks()

    assert not day.wrong
    assert ours_later == ours
    assert num_objects_later <= 1.001 * num_objects
    assert num_blocks_later <= 1.005 * num_blocks
