"""Whether an app has all that its modules need: it is packed as Flower packs it, and tried in another process.

That process does not see the folders that the modules came from. It builds everything that a run is made of, does one
local step of one client, and imports both components. ``python -m fedsim.deployment.proof`` is what runs there.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import traceback
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import fedsim
from fedsim.core.errors import InputError

_SECONDS = 600.0


def prove(app: Path, package: str, homes: Sequence[Path]) -> list[str]:
    """Try the app in the folder `app`, whose modules came from `homes`.

    Returns names of modules that it took from folders where nothing is installed (``PYTHONPATH``).

    Raises
    ------
    InputError
        Flower does not pack it, or something is missing in what it packs.
    """
    with tempfile.TemporaryDirectory(prefix="fedsim-proof-") as folder:
        here = Path(folder)
        packed, empty, own = here / "app", here / "empty", here / "fedsim"
        for place in (packed, empty, own):
            place.mkdir()
        _unpack(app, packed)
        root = Path(fedsim.__file__).parent
        (own / root.name).symlink_to(root, target_is_directory=True)
        hidden = [str(place) for place in dict.fromkeys([*homes, Path.cwd()])]
        paths = [str(own), *(p for p in sys.path if p and os.path.realpath(p) not in hidden)]
        answer = here / "answer.json"  # modules may print whatever they like
        told = {"app": str(packed), "package": package, "hidden": hidden, "answer": str(answer)}
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "fedsim.deployment.proof"],
                input=json.dumps(told), env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, cwd=empty,
                capture_output=True, text=True, timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            message = f"the app was tried in another process, which did not end within {_SECONDS:g} seconds"
            raise InputError(f"{message}; allowed: an app whose first local step takes less") from None
        if ended.returncode != 0 or not answer.exists():
            last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no word")
            raise InputError(f"the app was tried in another process, which ended with {ended.returncode}: {last}")
        found, loose = json.loads(answer.read_text(encoding="utf-8"))
    if found is not None:
        raise InputError(
            f"the app does not work without the folders that its modules come from: {found}; "
            "allowed: modules and data files beside those that name them, or installed on every machine"
        )
    return list(loose)


def _unpack(app: Path, folder: Path) -> None:
    """The app as it comes out of what Flower makes of it; as it is where flwr is not installed."""
    if find_spec("flwr") is None:
        folder.rmdir()
        folder.symlink_to(app, target_is_directory=True)
        return
    from flwr.cli.build import build_fab_from_disk

    try:
        fab = build_fab_from_disk(app)
    except Exception as error:  # of several kinds, none of them Flower's own alone
        raise InputError(f"Flower does not pack the app: {' '.join(str(error).split())}") from None
    with zipfile.ZipFile(BytesIO(fab)) as archive:
        archive.extractall(folder)


# --- in the other process ---------------------------------------------------------------------------------------------


def _tried(app: Path, package: str, hidden: Sequence[str]) -> str | None:
    """What does not work, in words; None where everything does."""
    sys.path.insert(0, str(app))
    try:
        _one_step(app / package / "scenario.yaml")
        if find_spec("flwr") is not None:
            for side in ("server", "client"):
                importlib.import_module(f"{package}.{side}_app")
    except Exception as error:
        text = " ".join(str(error).split()).replace(f"{app / package}{os.sep}", "")
        return f"{type(error).__name__}: {text}{_where(error, app / package)}"
    for name, top in _tops().items():
        if str(top) in hidden:
            return f"'{name}' was found in {top}, which is on this machine's path but not in the app"
    return None


def _tops() -> dict[str, Path]:
    """Modules that were imported, those inside packages apart, and the folders they lie in."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and "." not in name and name != "fedsim" and not name.startswith("__"):
            inside = Path(file).name == "__init__.py"
            found[name] = (Path(file).parent.parent if inside else Path(file).parent).resolve()
    return found


def _loose(app: Path) -> list[str]:
    """Names of modules that lie where nothing is installed, and not in the app."""
    installed = {Path(p).resolve() for p in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, str(app))}
    return sorted(name for name, top in _tops().items() if not any(top.is_relative_to(p) for p in installed))


def _one_step(file: Path) -> None:
    """One local step of client 0, on what it would receive in round 1."""
    import numpy as np

    from fedsim.clients.round import begin, initial
    from fedsim.core.job import Job
    from fedsim.engine.assembly import assemble
    from fedsim.scenario.load import load

    scenario = load(file, notes=False)
    assembly = assemble(scenario)
    worker, one = assembly.worker(scenario), np.ones(1, np.int64)
    state = initial(worker.algorithm, assembly.task, None if assembly.network is None else assembly.task.num_clients)
    received = {k: v if v.dim() == 1 else v[:1] for k, v in begin(worker.algorithm, state).items()}
    worker.run(Job(np.zeros(1, np.int64), one, one, received))


def _where(error: Exception, package: Path) -> str:
    """The last line of the app's own modules on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    names = (os.path.relpath(os.path.realpath(f.filename), package.resolve()) for f in frames)
    lines = [f" ({name}, line {f.lineno})" for name, f in zip(names, frames, strict=True) if not name.startswith("..")]
    own = [line for line in lines if not line.startswith((" (server_app.py", " (client_app.py", " (__init__.py"))]
    return own[-1] if own else ""


def _main() -> None:
    told: dict[str, Any] = json.loads(sys.stdin.read())
    found = _tried(Path(told["app"]), told["package"], told["hidden"])
    loose = _loose(Path(told["app"]).resolve())
    Path(told["answer"]).write_text(json.dumps([found, loose]), encoding="utf-8")


if __name__ == "__main__":
    _main()
