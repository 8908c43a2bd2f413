"""Executes the notebooks and stores in them what they put out: python docs/notebooks/execute.py [NAME ...]"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 600
"""At most for a cell; nobody waits as long but on a crowded machine."""


def executed(notebook: Path, folder: Path, client: type[NotebookClient] = NotebookClient) -> nbformat.NotebookNode:
    """The notebook as a kernel of its own, in `folder`, with the package of this checkout, executes it.

    What depends on the machine and the hour is left out of the cells' metadata.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raises.
    """
    found = nbformat.read(notebook, as_version=4)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with TemporaryDirectory(prefix="kernel") as place:  # sockets need short paths
        manager = AsyncKernelManager(
            kernel_name="python3",
            connection_file=f"{place}/kernel.json",
            transport="ipc" if os.name == "posix" else "tcp",
        )
        client(found, km=manager, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute(
            cleanup_kc=True,  # else the kernel stays, for its manager is not the client's own
            env={**os.environ, "PYTHONPATH": path, "IPYTHONDIR": f"{place}/ipython"},
        )
    found.metadata = nbformat.from_dict(METADATA)
    for cell in found.cells:
        cell.metadata = nbformat.from_dict({})
    return found


if __name__ == "__main__":
    chosen = [FOLDER / f"{Path(name).stem}.ipynb" for name in sys.argv[1:]] or NOTEBOOKS
    for one in chosen:
        with TemporaryDirectory() as desk:
            nbformat.write(executed(one, Path(desk)), one)
        print(one.name)
