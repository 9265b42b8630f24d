"""First come, first served: the default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.request import Request
from penstock.scheduler.policy import POLICIES, AdmissionKey, Candidate


@POLICIES.register("fcfs")
@dataclass(frozen=True, slots=True)
class FirstComeFirstServed:
    """By arrival. A preempted request keeps its place in the queue, before all that came later."""

    def admission_key(self, request: Candidate, now_s: float) -> AdmissionKey:
        del now_s
        return (request.arrival_s, request.request_id)

    def key_changes_s(self, request: Candidate) -> float:
        del request
        return math.inf

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=lambda r: (r.arrival_s, r.request_id))  # the newest has lost the least
