"""One file per peer of `benchmarks/peers.py`: the same work, each as its own documentation would have it written.

`works.py` says what the work is, `gate.py` is the child's side of the conversation with `peers.py`, `environments.py`
makes an environment for each peer, `prepare.py` writes what all of them start from. The rest are the peers: programs
that need `gate.py` and `works.py`, and nothing of fedsim.
"""
