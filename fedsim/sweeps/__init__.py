"""Many runs from one file: a grid and cases, one after the other or side by side on Ray Tune.

`files` reads a sweep, `axes` says which runs it has, `run` runs them, `tune` on a cluster, `book` remembers what is
done. They may import the engine and what is below. Start with `run`.
"""
