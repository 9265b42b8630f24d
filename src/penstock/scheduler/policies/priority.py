"""Lower `priority` first, without starving the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.request import Request
from penstock.scheduler.policy import POLICIES, AdmissionKey, Candidate


@POLICIES.register("priority")
@dataclass(frozen=True, slots=True)
class Priority:
    """Each level of priority is worth `aging_s` of waiting: a patient request overtakes newer, better ones.

    So the order of two requests never changes while they wait, and no wait is without end.
    """

    aging_s: float = 30.0

    def _rank(self, request: Candidate) -> tuple[float, float, str]:
        worth_s = request.priority * self.aging_s
        return (worth_s + request.arrival_s, request.arrival_s, request.request_id)

    def admission_key(self, request: Candidate, now_s: float) -> AdmissionKey:
        del now_s
        return self._rank(request)

    def key_changes_s(self, request: Candidate) -> float:
        del request
        return math.inf

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=self._rank)
