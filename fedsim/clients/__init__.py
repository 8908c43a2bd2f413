"""Clients at work: the only local-training loop, and what clients keep between their rounds.

`worker` runs some clients' steps in chunks of rows; every backend uses it. `store` keeps their state in memory or on
disk. They may import `algorithms`, `messages` and `core`. Start with `worker`.
"""
