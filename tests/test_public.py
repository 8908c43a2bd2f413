"""What ``import fedsim`` offers: every name is there, TAB finds it, and torch waits until it is needed."""

from __future__ import annotations

import subprocess
import sys

import fedsim


def test_every_name_is_there_once() -> None:
    assert sorted(fedsim.__all__) == fedsim.__all__
    assert set(fedsim.__all__) == set(fedsim._HOME)
    for name in fedsim.__all__:
        assert getattr(fedsim, name) is not None, name


def test_tab_completes() -> None:
    assert set(fedsim.__all__) <= set(dir(fedsim))
    assert not any(name.startswith("_") and name != "__version__" for name in dir(fedsim))


def test_no_name_is_a_package() -> None:
    """A package of the same name would take a verb's place as soon as something imports it."""
    code = (
        "import pkgutil, fedsim; names = {m.name for m in pkgutil.iter_modules(fedsim.__path__)};"
        "print(sorted(names & set(fedsim.__all__)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torch_waits() -> None:
    code = "import sys, fedsim; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
