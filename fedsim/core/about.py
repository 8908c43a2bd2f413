"""What this project is called where it is installed from: `fedsim` on the public index is somebody else's."""

from __future__ import annotations

DISTRIBUTION = "fedsim-learn"
"""Its name for installers; the package that is imported is `fedsim`."""


def install(*extras: str) -> str:
    """The command that installs it with some extras."""
    return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'" if extras else f"pip install {DISTRIBUTION}"
