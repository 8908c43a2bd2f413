"""One contract over all participation modes, and proof that each of its laws can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.contract.check import check
from fedsim.contract.participation_laws import LAWS
from fedsim.core.errors import InputError
from fedsim.core.registry import names

ORDER, JOBS, NUMBERS, RESUMED, KEYED = LAWS
VARIANTS: list[tuple[str, list[str]]] = [
    ("synchronous", []),
    ("synchronous", ["fraction=0.5", "stragglers=0.5", "dropout=0.3"]),
    ("synchronous", ["clients_per_round=3", "over_selection=1.5"]),
    ("synchronous", ["deadline=0.6"]),
    ("synchronous", ["sampling=weighted", "clients_per_round=3"]),
    ("synchronous", ["sampling=poisson", "fraction=0.2"]),
    ("asynchronous", []),
    ("asynchronous", ["weights=identical", "staleness={polynomial: 0.5}"]),
    ("asynchronous", ["weights=estimated", "pilot=400", "timeout=1.5"]),
    ("fixed_interval", ["window=0.4"]),
    ("fixed_interval", ["window=0.4", "weights=identical", "timeout=0.7"]),
    ("fedbuff", ["buffer=3"]),
    ("fedbuff", ["buffer=3", "concurrency=4", "weights=estimated", "pilot=300"]),
    ("fedbuff", ["buffer=3", "restart=barrier"]),
    ("gossip", []),
    ("gossip", ["compute=0.6", "links={beta: [1, 2]}"]),
    ("poisson", []),
    ("poisson", ["compute=2.0", "links=0.3", "window=0.5", "pair_weight=half"]),
]
BROKEN = {
    "SkipsNumbers": ORDER, "GoesBack": ORDER, "ArrivesTwice": JOBS, "TooEarly": JOBS, "NotANumber": NUMBERS,
    "Unknown": NUMBERS, "BeginsAnew": RESUMED, "Rolls": KEYED,
}  # fmt: skip


def failed(name: str, *settings: str) -> dict[str, str]:
    return {r.name: r.detail for r in check(name, list(settings)) if not r.passed}


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_every_mode_keeps_the_laws(name: str, settings: list[str]) -> None:
    assert failed(name, *settings) == {}


def test_every_registered_mode_is_among_them() -> None:
    assert {name for name, _ in VARIANTS} == set(names("participation"))


@pytest.mark.parametrize(("name", "settings"), [("Half", ["weights=identical"]), ("Shifts", ["size=4"]), ("Turns", [])])
def test_own_modes_keep_them_too(name: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "participation"))
    assert failed(f"own_modes:{name}", *settings) == {}


@pytest.mark.parametrize("name", BROKEN)
def test_every_law_can_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert BROKEN[name] in failed(f"broken_modes:{name}")
    assert set(BROKEN.values()) == set(LAWS)


def test_the_command_finds_out_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    result = CliRunner().invoke(app, ["check", "fedbuff", "--set", "buffer=2"])
    assert result.exit_code == 0, result.output
    assert RESUMED in result.output
    result = CliRunner().invoke(app, ["check", "broken_modes:NotANumber"])
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert any(r.name == ORDER for r in fedsim.check("synchronous", []))
    with pytest.raises(InputError, match=r"allowed: a subclass of Aggregator, Algorithm, .*Participation"):
        check("broken_modes:random", [])
    with pytest.raises(InputError, match=r"unknown part 'fedbuf' \(did you mean 'fedbuff'"):
        check("fedbuf", [])
