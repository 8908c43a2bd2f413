"""Where clients are computed: every backend dispatches jobs and collects messages."""
