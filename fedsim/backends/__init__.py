"""Where clients are computed: every backend dispatches jobs and collects messages.

`base` says what a backend is, `in_process` is all clients in this process, `shard` some of them as an actor holds
them, `placement` who is where, and `ray/` actors on a cluster. They may import `clients`, `participation` and what is
below; `ray` is imported only in ``ray/``. Start with `in_process`.
"""
