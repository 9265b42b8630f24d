"""SEAM: who is admitted next, and who gives its blocks back when they run out. POLICIES names them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from penstock.registry import Registry
from penstock.request import Request

AdmissionKey = tuple[float | str, ...]


class Candidate(Protocol):
    """What a policy may know of one that waits: a Request is one, and so is a call that no engine has yet."""

    @property
    def request_id(self) -> str: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def num_uncomputed_tokens(self) -> int: ...


class SchedulingPolicy(Protocol):
    """Asked by the scheduler once per waiting request and step, and once per preemption.

    Contract (tests/contracts/test_policies.py): pure functions of their arguments; no ties between
    requests; a request's key changes once at most, when `key_changes_s` says, so that a long queue need
    not be sorted anew; a request that waits goes, after a finite time, before every newcomer of any given
    priority and length; `victim` is one of those it was given.
    """

    def admission_key(self, request: Candidate, now_s: float) -> AdmissionKey:
        """The waiting request with the smallest key goes first."""
        ...

    def key_changes_s(self, request: Candidate) -> float:
        """From when on its key is another, and then for good. Infinity: never."""
        ...

    def victim(self, running: Sequence[Request]) -> Request:
        """Who is preempted. Never asked about the longest-running request: that one always ends."""
        ...


POLICIES: Registry[Callable[[], SchedulingPolicy]] = Registry(
    "scheduling policy", "penstock.scheduler.policies"
)
