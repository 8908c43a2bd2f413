"""Models by name and by factory, their losses, and what is checked of a module before it is trained.

`build` makes a ``torch.nn.Module`` from a scenario's section, `vision` has convolutional nets, `losses` per-sample
losses, `checks` finds what flat parameters cannot hold. They may import `core` alone. Start with `build`.
"""
