"""The wheel of the fedsim that is running, made from its own files: for machines that have no index to install from."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import fedsim
from fedsim.core.about import DISTRIBUTION
from fedsim.core.errors import InputError

_WHEEL = "Wheel-Version: 1.0\nGenerator: fedsim deploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_LEFT_OUT = {"__pycache__"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files make the same wheel


def write_wheel(folder: Path) -> Path:
    """Write the wheel into `folder`; its file.

    Raises
    ------
    InputError
        This fedsim was not installed, so that nothing says what it needs; or another version of it was.
    OSError
        The file cannot be written.
    """
    installed = _installed()
    name = DISTRIBUTION.replace("-", "_")
    about = f"{name}-{fedsim.__version__}.dist-info"
    files = dict(_files())
    files[f"{about}/METADATA"] = _text(installed, "METADATA", "PKG-INFO").encode()
    files[f"{about}/entry_points.txt"] = _text(installed, "entry_points.txt").encode()
    files[f"{about}/WHEEL"] = _WHEEL.encode()
    record = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    files[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{fedsim.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return wheel


def _installed() -> Distribution:
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        message = f"--wheel: {DISTRIBUTION} is not installed, so that nothing says what it needs"
        raise InputError(f"{message}; allowed: after pip install, also -e, of this checkout") from None
    if found.version != fedsim.__version__:
        message = f"--wheel: {DISTRIBUTION} {found.version} is installed, but {fedsim.__version__} runs"
        raise InputError(f"{message}; allowed: the same: install it anew")
    return found


def _files() -> Iterator[tuple[str, bytes]]:
    """Paths in the wheel and contents of the package's files."""
    package = Path(fedsim.__file__).parent
    for file in sorted(package.rglob("*")):
        if file.is_file() and not _LEFT_OUT & set(file.parts):
            yield file.relative_to(package.parent).as_posix(), file.read_bytes()


def _text(installed: Distribution, *names: str) -> str:
    return next((text for name in names if (text := installed.read_text(name))), "")


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
