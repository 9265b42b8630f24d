"""The least prompt left to read first."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.request import Request
from penstock.scheduler.policy import POLICIES, AdmissionKey, Candidate


@POLICIES.register("shortest_prefill")
@dataclass(frozen=True, slots=True)
class ShortestPrefill:
    """Lowers the mean time to first token when prompts differ widely in length.

    A request that has waited `patience_s` goes before all that have not, oldest first: with finite
    load the longest wait is bounded.
    """

    patience_s: float = 2.0

    def admission_key(self, request: Candidate, now_s: float) -> AdmissionKey:
        is_overdue = now_s >= self.key_changes_s(request)
        work = 0 if is_overdue else request.num_uncomputed_tokens
        return (not is_overdue, work, request.arrival_s, request.request_id)

    def key_changes_s(self, request: Candidate) -> float:
        return request.arrival_s + self.patience_s

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=lambda r: (r.arrival_s, r.request_id))  # the newest has lost the least
