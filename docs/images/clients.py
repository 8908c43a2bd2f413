"""The picture of docs/runs.md, from run directories: python docs/images/clients.py runs/clients/*"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import fedsim

with tempfile.TemporaryDirectory() as folder:
    fedsim.report(sys.argv[1:], out=Path(folder) / "report.html")
    shutil.copy(Path(folder) / "figures" / "clients-accuracy.png", Path(__file__).with_name("clients.png"))
