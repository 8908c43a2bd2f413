"""Pages and tables about runs: what a run will do, what it did, and how several compare.

`plan` tells before anything runs, `timeline` draws the schedule, `report` makes the page of one or several runs from
their directories alone. They may import the engine and what is below. Start with `report`.
"""
