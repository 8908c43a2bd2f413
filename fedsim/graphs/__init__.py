"""Graphs: generators, files of real networks, mixing weights and the realised mixing matrix of a round.

`generators` and `files` make networkx graphs, `topology` puts them into a scenario, `mixing` gives weights,
`mixing_matrix` applies them to rows, and `network` joins a topology with its matrices. They may import `core` alone.
Start with `topology`.
"""
