"""Budget: what is offered, spent and given back."""

from penstock.scheduler.budget import Budget


def test_offers_what_is_wanted_or_what_is_left():
    budget = Budget(tokens=10, scored_rows=4)

    assert budget.offer(3, num_to_serve=0, owes_rows=False) == 3
    assert budget.offer(30, num_to_serve=0, owes_rows=False) == 10
    assert budget.offer(30, num_to_serve=2, owes_rows=False) == 8
    assert budget.offer(30, num_to_serve=0, owes_rows=True) == 4
    assert budget.offer(30, num_to_serve=11, owes_rows=False) == 0


def test_what_is_refunded_can_be_spent_again():
    budget = Budget(tokens=10, scored_rows=4)
    budget.spend(3, owes_rows=True)
    budget.spend(2, owes_rows=False)
    assert (budget.tokens, budget.scored_rows) == (5, 1)
    budget.refund(3, owes_rows=True)
    budget.refund(2, owes_rows=False)

    assert budget == Budget(tokens=10, scored_rows=4)
