"""The command line: one typer app whose commands call the packages below and print.

It begins in `start`, so that signals are answered at once. `app` has the commands, `terminal` and `sweep_view` what
they show while something runs. Heavy packages are imported only inside the commands that need them, so that ``fedsim
--help`` is quick. Start with `app`.
"""
