"""Every interleaving of three small requests over three blocks of two tokens, none left out.

Breadth first over (add, step, failed step, abort, preempt, reset); states are told apart by all that the
code can see.
"""

import copy

import pytest
from tests.property.test_scheduler_kv import World

REQUESTS = {  # in any order
    "plain": {"prompt": [0, 0, 1], "max_tokens": 3},
    "tenant": {"prompt": [0, 0, 1], "max_tokens": 3, "salt": "b"},
    "short": {"prompt": [0, 0], "max_tokens": 3, "priority": -1},
}


def make_world(policy):
    world = World(
        num_blocks=3,
        block_size=2,
        windows=(None,),
        policy=policy,
        step_tokens=3,
        max_requests=2,
        prefix_cache=True,
    )
    world.added, world.num_resets = (), 0
    return world


def actions(world):
    """Names of what can happen next."""
    for name in REQUESTS:
        if name not in world.added:
            yield f"add {name}"
    if world.scheduler.requests:
        yield "step"
        yield "fail"
    if world.num_resets < 1:
        yield "reset"
    for request_id in world.scheduler.requests:
        yield f"abort {request_id}"
    for request_id in world.scheduler._running:
        if world.requests[request_id].num_preemptions < 1:  # a drill each: or there is no end
            yield f"preempt {request_id}"


def act(world, action):
    verb, _, name = action.partition(" ")
    if verb == "add":
        world.added = (*world.added, name)
        world.add(**REQUESTS[name])
    elif verb in ("step", "fail"):
        world.step(fail=verb == "fail")
    elif verb == "reset":
        world.num_resets += 1
        world.scheduler.reset_prefix_cache()
    elif verb == "abort":
        world.abort(name)
    else:
        world.scheduler.force_preempt(name)


def state_of(world):
    """All that decides what happens next; ids of blocks included, their contents follow from the index."""
    pool, index = world.kv._groups[0].pool, world.kv._groups[0].index
    requests = tuple(
        (i, len(r.tokens), r.num_computed_tokens, min(r.num_preemptions, 1), i in world.scheduler._running)
        for i, r in world.scheduler.requests.items()
    )
    tables = tuple(
        (i, tuple(t.block_ids[0]), t.num_committed, tuple(t.growing)) for i, t in world.kv._tables.items()
    )
    published = tuple(sorted((b, index.find_link(b).key) for b in index))
    return (
        world.added,
        world.num_resets,
        requests,
        tuple(world.scheduler._running),
        tables,
        tuple(pool._free),
        tuple(pool._unused_cached),
        published,
    )


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_every_interleaving_keeps_every_invariant(policy):
    start = make_world(policy)
    seen = {state_of(start)}
    frontier = [start]
    num_drained = 0
    while frontier:
        following = []
        for world in frontier:
            for action in actions(world):
                after = copy.deepcopy(world)
                act(after, action)
                after.check()
                state = state_of(after)
                if state not in seen:
                    seen.add(state)
                    following.append(after)
            if not world.scheduler.requests and len(world.added) == len(REQUESTS):
                copy.deepcopy(world).drain()
                num_drained += 1
        frontier = following

    print(f"{policy}: {len(seen):,} states")
    assert len(seen) > 1_000
    assert num_drained > 10
