"""From data and a model to gradients: the only place that knows that models have layers.

`supervised` turns rows and a module into a task, `stacked` chooses how gradients of many clients are computed at once:
`general` row by row and with vmap, `chain` and `sequence` with backwards of our own for layers in a row (`layers`,
`recurrent`, `attention`), `persample` for each sample's own.
`quadratic` needs no data. They may import `core`, `data` and `models`. Start with `supervised`.
"""
