"""Differential privacy: mechanisms, accounting, and the ledger; importing this package registers the mechanisms.

``base`` says what a mechanism is and where the engine calls it; ``accounting`` turns noise into epsilon; ``ledger``
keeps what has been released; ``clipping`` and ``noise`` are what mechanisms are made of. They may import `algorithms`,
`clients`, `participation`, `objective` and what is below. Start with ``base``.
"""

from fedsim.privacy import bvr, dpfedavg, dpsgd, ftrl, gaussian, graphs, local_dp

__all__ = ["bvr", "dpfedavg", "dpsgd", "ftrl", "gaussian", "graphs", "local_dp"]
