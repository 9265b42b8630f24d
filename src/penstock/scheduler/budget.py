"""What one step may still spend: tokens, and prompt rows that owe a logprob. Scheduler's own."""

from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """Spent request by request, given back when one is preempted in the same step.

    `scored_rows` bounds the rows whose logits are computed only for prompt logprobs: each is a whole
    vocabulary wide, so a long prompt that asks for them is read in smaller chunks.
    """

    tokens: int
    scored_rows: int

    def offer(self, wanted_tokens: int, *, num_to_serve: int, owes_rows: bool) -> int:
        """Tokens for one request, keeping one for each of those that must still have their turn."""
        offer = min(wanted_tokens, self.tokens - num_to_serve)
        if owes_rows:
            offer = min(offer, self.scored_rows)
        return max(0, offer)

    def spend(self, num_tokens: int, *, owes_rows: bool) -> None:
        self.tokens -= num_tokens
        if owes_rows:
            self.scored_rows -= num_tokens

    def refund(self, num_tokens: int, *, owes_rows: bool) -> None:
        self.tokens += num_tokens
        if owes_rows:
            self.scored_rows += num_tokens
