"""The run: assembled from a scenario, one loop over events, and what is recorded of it.

`run` is the way in, `assembly` builds data, model, graph and mechanism, `place` the backend, `loop` runs, `evaluate`
measures, `watch` says who is told (`recorder` first), `run_directory`, `checkpoint` and `inputs` write, `export`
hands the model on. They may import everything but reports, sweeps, deployment, audit and the command line. Start with
`loop`.
"""
