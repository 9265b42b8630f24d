"""Those who wait, in a policy's order, however many: joining, leaving and the next one's turn cost O(log n).

Used by who keeps a long queue: the scheduler, and the dispatcher of a server. Plain state; the time is told.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Generic, TypeVar

from penstock.scheduler.policy import AdmissionKey, Candidate, SchedulingPolicy

C = TypeVar("C", bound=Candidate)
SLACK = 64  # places of those who left that a heap may hold beside as many as are there


class WaitingLine(Generic[C]):
    """Members by `request_id`. Who leaves is passed over when its place comes up, or swept out with others.

    Before `order_by` there is no order, and `pop` is not to be asked.
    """

    def __init__(self) -> None:
        self._policy: SchedulingPolicy | None = None
        self._members: dict[str, C] = {}
        self._keys: dict[str, AdmissionKey] = {}
        self._order: list[tuple[AdmissionKey, str]] = []
        self._changes: list[tuple[float, str]] = []  # when whose key changes

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[C]:
        """In no order."""
        return iter(self._members.values())

    def order_by(self, policy: SchedulingPolicy, now_s: float) -> None:
        """From now on. O(n)."""
        self._policy = policy
        self._rebuild(policy, now_s)

    def add(self, member: C, now_s: float) -> None:
        self._members[member.request_id] = member
        if self._policy is not None:
            self._place(self._policy, member, now_s)
            if len(self._order) + len(self._changes) > 4 * (len(self._members) + SLACK):
                self._rebuild(self._policy, now_s)

    def discard(self, request_id: str) -> bool:
        """False: it is not here."""
        self._keys.pop(request_id, None)
        return self._members.pop(request_id, None) is not None

    def pop(self, now_s: float) -> C:
        """Whose turn it is; it leaves. IndexError: nobody waits."""
        policy = self._policy
        assert policy is not None, "order_by comes first"
        while self._changes and self._changes[0][0] <= now_s:
            _, request_id = heapq.heappop(self._changes)
            member = self._members.get(request_id)
            if member is not None:
                self._keys[request_id] = key = policy.admission_key(member, now_s)
                heapq.heappush(self._order, (key, request_id))
        while True:
            key, request_id = heapq.heappop(self._order)
            if self._keys.get(request_id) == key:
                del self._keys[request_id]
                return self._members.pop(request_id)

    def _place(self, policy: SchedulingPolicy, member: C, now_s: float) -> None:
        request_id = member.request_id
        self._keys[request_id] = key = policy.admission_key(member, now_s)
        heapq.heappush(self._order, (key, request_id))
        change_s = policy.key_changes_s(member)
        if now_s < change_s < math.inf:
            heapq.heappush(self._changes, (change_s, request_id))

    def _rebuild(self, policy: SchedulingPolicy, now_s: float) -> None:
        self._order.clear()
        self._changes.clear()
        for member in self._members.values():
            self._place(policy, member, now_s)
