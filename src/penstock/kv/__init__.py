"""Which blocks hold what, and who may read them. Integers only; the scheduler's door is kv.manager."""
