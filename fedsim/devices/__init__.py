"""How fast devices and links are, and when they are there, in ticks of virtual time.

`system` is a scenario's section: durations of computing and sending by `laws`, devices that are on and off by
`availability`, recorded ones by `traces`. They may import `core` alone. Start with `system`.
"""
