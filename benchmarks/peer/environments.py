"""An environment for each peer, made once: a virtual environment with what its list in ``requirements/`` names.

fedsim and the lean loop run in the environment that `peers.py` itself runs in: it has the fedsim that is measured.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

LISTS = Path(__file__).parent / "requirements"


def python_of(peer: str, envs: Path) -> str:
    """The interpreter of `peer`; made where it is not there, or where its list of packages has changed.

    Raises
    ------
    RuntimeError
        Its packages cannot be installed.
    """
    listed = LISTS / f"{peer}.txt"
    if not listed.exists():
        return sys.executable
    folder = (envs / peer).absolute()
    python, mark = folder / "bin" / "python", folder / "made-of.txt"
    wanted = hashlib.sha256(listed.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(listed)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip cannot install {listed.name} of {peer}: {done.stderr.strip()[-500:]}")
        mark.write_text(wanted)
    return str(python)
