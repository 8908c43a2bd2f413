"""Reproduced results: what a paper reports, the sweep that measures it here, and how the two agree.

`files` reads a reproduction, `measured` takes its quantities from runs and checks the paper's claims on them, `run`
does both and writes what was found, `page` tells it. They may import the sweeps, the figures and what is below. Start
with `run`.
"""
