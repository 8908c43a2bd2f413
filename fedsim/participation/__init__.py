"""Who works, when and how much: modes of participation turn a scenario into events of the one loop.

`base` says what an event is. `synchronous` has cohorts, `clocked` asynchronous modes in virtual time (`schedule` makes
their order, `fates` what becomes of a job), `gossip` and `poisson` the nodes of a graph, `wall_clock` real clients.
They may import `algorithms`, `graphs`, `devices` and `core`. Start with `base`, then `synchronous`.
"""
