"""Scheduler and KV manager as one state machine: whatever happens in whatever order, the invariants hold.

Numbers I1 .. I13 are those of the reliability reference: I1-I3 blocks are counted, I4 published blocks are
final, I5 hits are equal by value, I6 budgets, I7 progress, I8 no starvation, I9 tokens, I10 nothing is left,
I11 abort, I13 tenants are apart.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.fakes.model import STATE, FakeModel, expected_tokens, make_kv, make_request, make_scheduler

from penstock.errors import ContextLengthError
from penstock.scheduler.policy import POLICIES
from penstock.step import Schedule, ScheduledRequest

BLOCK_SIZES = (1, 2, 3, 4)
WINDOWS = ((None,), (3,), (None, 4), (2, None, 5), (STATE,), (None, STATE), (STATE, 3, None))
# Few tokens and few beginnings, so that prefixes are shared all the time.
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=9)
SALTS = st.sampled_from(["", "", "a", "b"])


class World:
    """The real classes, the hash model, and a dictionary of what every request must give."""

    def __init__(
        self,
        *,
        num_blocks,
        block_size,
        windows,
        policy,
        step_tokens,
        max_requests,
        prefix_cache,
        checkpoint_blocks=1,
        tenant_share=1.0,
    ):
        self.has_failed = False
        self.windows, self.block_size, self.policy = windows, block_size, policy
        self.step_tokens, self.max_requests = step_tokens, max_requests
        self.kv = make_kv(
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            prefix_cache=prefix_cache,
            checkpoint_blocks=checkpoint_blocks,
            tenant_share=tenant_share,
        )
        self.scheduler = make_scheduler(
            self.kv, policy=policy, step_tokens=step_tokens, requests=max_requests
        )
        self.model = FakeModel(windows=windows, block_size=block_size, vocab_size=3)
        self.requests = {}
        self.expected = {}
        self.emitted = {}
        self.scored = Counter()
        self.ended = Counter()
        self.computed = set()  # (salt, tokens) whose last block may be cached
        self.now_s = 0.0

    def add(self, prompt, *, count=1, **options):
        """Forks of one prompt (n) come together."""
        for index in range(count):
            self.now_s += 1.0
            request_id = f"r{len(self.requests)}"
            seed = options.get("seed", 0) + index
            request = make_request(request_id, prompt, **(options | {"seed": seed, "arrival_s": self.now_s}))
            try:
                self.scheduler.add(request)
            except ContextLengthError:
                num_tokens = request.num_prompt_tokens + request.max_output_tokens - 1
                assert -(-num_tokens // self.block_size) > min(self.kv.num_usable_blocks)
                return
            self.requests[request_id] = request
            self.emitted[request_id] = []
            self.expected[request_id] = expected_tokens(
                prompt, seed, request.max_output_tokens, windows=self.windows, vocab_size=3
            )

    def step(self, *, fail=False):
        """One step; `fail`: the forward pass raises, and nothing may come of it."""
        scheduler = self.scheduler
        may_begin_again = self.has_failed and STATE in self.windows  # its state has moved on
        self.has_failed = fail
        oldest = None if may_begin_again else next(iter(scheduler._running.values()), None)
        preemptions = oldest.num_preemptions if oldest else 0
        before = set() if may_begin_again else set(scheduler._running)
        schedule = scheduler.schedule(self.now_s)
        if schedule is None:
            assert not scheduler.requests, "I7: requests wait and none can run"
            return False
        if oldest is not None:
            assert oldest.num_preemptions == preemptions, "I7: the longest running is preempted"
            if oldest.params.prompt_logprobs is None:
                assert schedule.requests[0].request_id == oldest.request_id
        self._check_schedule(schedule, before)
        drawn = self.model.run(schedule, scheduler.requests)
        if not fail:
            self._take(scheduler.update(schedule, drawn))
        return True

    def draft_step(self, drafts):
        """A step of the longest-running request alone, with drafts, right or wrong."""
        request = next(iter(self.scheduler._running.values()))
        if request.num_uncomputed_tokens != 1 or not self.kv.allocate(request, 1 + len(drafts)):
            return
        scheduled = ScheduledRequest(
            request.request_id,
            request.num_computed_tokens,
            1 + len(drafts),
            self.kv.block_ids(request),
            drafts,
        )
        schedule = Schedule((scheduled,))
        drawn = self.model.run(schedule, self.scheduler.requests)
        self._take(self.scheduler.update(schedule, drawn))

    def abort(self, request_id):
        was_live = request_id in self.scheduler.requests
        delta = self.scheduler.abort(request_id)

        assert (delta is not None) == was_live, "I11"
        if delta is not None:
            self._take([delta])
        assert self.scheduler.abort(request_id) is None, "I11"

    def drain(self):
        """I7: with no arrivals all end; I9: with all their tokens; I10: and nothing is left."""
        live = list(self.scheduler.requests.values())
        work = sum(r.num_prompt_tokens + r.max_output_tokens for r in live)
        for _ in range(work * (1 + len(live)) + 1):
            if not self.step():
                break
            self.check()
        assert not self.scheduler.requests, "I7: not finished in time"
        for request_id, request in self.requests.items():
            assert self.ended[request_id] == 1, "I9: one terminal delta"
            assert request.num_preemptions <= work + len(self.requests) * 30, "I7"
        assert self.kv.num_free_blocks == self.kv.num_usable_blocks, "I10"
        assert not self.kv._tables and not self.kv._links and not self.kv._growing, "I10"

    def check(self):
        self.kv.check_integrity()
        for g, group in enumerate(self.kv._groups):
            held = Counter(b for t in self.kv._tables.values() for b in t.block_ids[g] if b)
            free, cached = len(group.pool._free), len(group.pool._unused_cached)
            assert free + cached + len(held) == group.pool.num_usable, "I1"
            for block_id in range(1, group.pool.num_blocks):
                assert group.pool.num_users(block_id) == held[block_id], "I2, I3"
            self._check_published(g, group)
        self._check_tenants()
        for request in self.scheduler._running.values():
            table = self.kv._tables[request.request_id]
            assert table.num_places * self.block_size >= request.num_computed_tokens, "I6"
            assert 0 <= request.num_computed_tokens < len(request.tokens), "I6"
        for request in self.scheduler._waiting:
            assert request.num_computed_tokens == 0
            assert request.request_id not in self.kv._tables

    def _check_schedule(self, schedule, before):
        assert schedule.num_tokens <= self.step_tokens, "I6"
        assert len(schedule.requests) <= self.max_requests, "I6"
        assert len(self.scheduler._running) <= self.max_requests, "I6"
        for scheduled in schedule.requests:
            request = self.scheduler.requests[scheduled.request_id]
            end = scheduled.start + scheduled.num_tokens
            assert scheduled.start == request.num_computed_tokens
            assert end <= len(request.tokens)
            assert scheduled.num_tokens >= 1
            for ids in scheduled.block_ids:
                assert len(ids) >= -(-end // self.block_size), "I6: table too short"
            is_new = scheduled.request_id not in before
            if is_new:
                assert len(scheduled.block_ids[0]) == -(-end // self.block_size), "I6"
            if is_new and scheduled.start:
                hit = (request.cache_salt, tuple(request.tokens[: scheduled.start]))
                assert hit in self.computed, "I5: a hit on what nobody of this tenant computed"
                assert scheduled.start < len(request.tokens), "I5: the last token is computed"
        admitted = [self.requests[i] for i in self.scheduler._running if i not in before]
        if self.policy == "fcfs":
            for late in admitted:
                for early in self.scheduler._waiting:
                    may_wait = early.params.prompt_logprobs is not None or early.num_preemptions
                    if early.arrival_s < late.arrival_s and not may_wait:
                        assert self.kv.find_prefix(early).is_growing, "I8: overtaken"

    def _check_published(self, g, group):
        for block_id in group.index:
            link = group.index.find_link(block_id)
            tokens = self.model.published(g, block_id)
            assert (
                self.kv._linker.link(link.parent, tokens, salt=link.salt, extra=link.extra).key == link.key
            ), "I4: a published block was written"

    def _check_tenants(self):
        for g, group in enumerate(self.kv._groups):
            owners = {}
            for request_id, table in self.kv._tables.items():
                salt = self.requests[request_id].cache_salt
                for block_id in table.block_ids[g]:
                    if block_id:
                        assert owners.setdefault(block_id, salt) == salt, "I13"
                        link = group.index.find_link(block_id)
                        assert link is None or link.salt == salt, "I13"

    def _take(self, deltas):
        for delta in deltas:
            request = self.requests[delta.request_id]
            assert self.ended[delta.request_id] == 0, "I9: a delta after the last"
            emitted = self.emitted[delta.request_id]
            emitted.extend(delta.tokens)
            want = self.expected[delta.request_id]
            assert emitted == want[: len(emitted)], "I9: wrong tokens"
            for row in delta.prompt_logprobs or ():
                self.scored[delta.request_id] += 1
                assert next(iter(row)) == request.prompt_tokens[self.scored[delta.request_id]], "I9"
            if delta.finish_reason is not None:
                self.ended[delta.request_id] += 1
                if delta.finish_reason == "length":
                    assert emitted == want, "I9"
                    owed = request.params.prompt_logprobs is not None
                    assert self.scored[delta.request_id] == owed * (request.num_prompt_tokens - 1)
        for request in self.requests.values():
            for end in range(self.block_size, len(request.tokens) + 1, self.block_size):
                self.computed.add((request.cache_salt, tuple(request.tokens[:end])))


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(3, 14),
        block_size=st.sampled_from(BLOCK_SIZES),
        windows=st.sampled_from(WINDOWS),
        policy=st.sampled_from(sorted(POLICIES)),
        max_requests=st.integers(1, 4),
        more_tokens=st.integers(0, 6),
        prefix_cache=st.sampled_from([True, True, True, False]),
        checkpoint_blocks=st.integers(1, 3),
        tenant_share=st.sampled_from([0.3, 0.5, 1.0]),
    )
    def begin(
        self,
        num_blocks,
        block_size,
        windows,
        policy,
        max_requests,
        more_tokens,
        prefix_cache,
        checkpoint_blocks,
        tenant_share,
    ):
        self.world = World(
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            policy=policy,
            step_tokens=max_requests + more_tokens,
            max_requests=max_requests,
            prefix_cache=prefix_cache,
            checkpoint_blocks=checkpoint_blocks,
            tenant_share=tenant_share,
        )

    @rule(
        prompt=PROMPTS,
        salt=SALTS,
        count=st.sampled_from([1, 1, 1, 3]),
        max_tokens=st.integers(1, 7),
        priority=st.integers(0, 2),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        seed=st.integers(0, 2),
    )
    def add(self, prompt, salt, count, max_tokens, priority, prompt_logprobs, seed):
        self.world.add(
            prompt,
            count=count,
            salt=salt,
            key_id=salt,
            max_tokens=max_tokens,
            priority=priority,
            prompt_logprobs=prompt_logprobs,
            seed=seed,
        )

    @rule(times=st.integers(1, 4))
    def step(self, times):
        for _ in range(times):
            self.world.step()
            self.world.check()

    @rule()
    def failed_step(self):
        self.world.step(fail=True)

    @precondition(lambda self: self.world.requests)
    @rule(pick=st.integers(0, 10**6))
    def abort(self, pick):
        ids = sorted(self.world.requests)
        self.world.abort(ids[pick % len(ids)])

    @precondition(lambda self: self.world.scheduler._running)
    @rule(pick=st.integers(0, 10**6))
    def force_preempt(self, pick):
        ids = sorted(self.world.scheduler._running)
        assert self.world.scheduler.force_preempt(ids[pick % len(ids)])

    @precondition(lambda self: self.world.scheduler._running and STATE not in self.world.windows)
    @rule(drafts=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def draft(self, drafts):
        self.world.draft_step(tuple(drafts))

    @rule()
    def reset_prefix_cache(self):
        self.world.scheduler.reset_prefix_cache()

    @invariant()
    def invariants_hold(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()


QUICK = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestSchedulerQuick = SchedulerMachine.TestCase
TestSchedulerQuick.settings = QUICK


@pytest.mark.slow
class TestSchedulerThoroughly(SchedulerMachine.TestCase):
    settings = settings(QUICK, max_examples=2_000, stateful_step_count=100)
