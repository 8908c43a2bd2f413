"""From data and a model to gradients: the only place that knows that models have layers.

`supervised` turns rows and a module into a task, `kernel` chooses how gradients of many clients are computed at once:
`stacked` with vmap, `chain` with kernels of our own for chains of layers, `persample` for each sample's own.
`quadratic` needs no data. They may import `core`, `data` and `models`. Start with `supervised`.
"""
