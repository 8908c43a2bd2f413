"""What happens to messages between a client's local work and the state that they change.

`aggregators` combine the messages of a round at a server; a server is a one-row mixing matrix, whose rules need not
be linear. They may import `core` alone. Start with `aggregators`.
"""
