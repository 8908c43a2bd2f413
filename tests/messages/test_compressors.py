"""Compressors: exact values, bits, unbiasedness, error feedback, and what of it shards and resumed runs repeat."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.messages.compressor import Compressor
from fedsim.messages.compressors import QSGD, Natural, RandK, Sign, TopK

V = torch.tensor([[3.0, -1.0, 0.0, 4.0, -2.0]], dtype=torch.float64)
U = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.7]], dtype=torch.float64)
RUN = RunFacts(3, 6)


@pytest.mark.parametrize(
    "compressor,expected,bits",
    [
        (TopK(k=2), [3, 0, 0, 4, 0], 133),
        (RandK(k=2), [0, -1, 0, 4, 0], 128),
        (RandK(k=2, scaled=True), [0, -2.5, 0, 10, 0], 128),
        (Sign(), [2, -2, 2, 2, -2], 69),
        (QSGD(levels=4), [2.7386127875, -1.3693063938, 0, 4.1079191813, -1.3693063938], 84),
        (QSGD(levels=4, contractive=True), [2.0865621238, -1.0432810619, 0, 3.1298431857, -1.0432810619], 84),
        (Natural(), [2, -1, 0, 4, -2], 60),
    ],
)
def test_values_and_bits(compressor: Compressor, expected: list[float], bits: int) -> None:
    assert compressor(V, U)[0].tolist() == pytest.approx(expected, abs=5e-11)
    assert compressor.bits(5, 64) == bits


def test_ties_and_powers() -> None:
    assert TopK(k=2)(torch.tensor([[1.0, -1.0, 1.0]]), V[:, :0])[0].tolist() == [1, -1, 0]
    v, u = torch.tensor([[0.3, -5.0, 1.0]]), torch.tensor([[0.1, 0.3, 0.0]])
    assert Natural()(v, u)[0].tolist() == [0.5, -4, 1]
    assert Sign()(torch.tensor([[0.0, -0.0, -2.0]]), V[:, :0])[0].tolist() == pytest.approx([2 / 3, 2 / 3, -2 / 3])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "compressor", [TopK(k=2), RandK(k=5), Sign(), QSGD(levels=4), Natural()], ids=lambda c: type(c).__name__
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_what_is_not_finite_arrives_as_such(compressor: Compressor, dtype: torch.dtype, bad: float) -> None:
    """A client that diverged does not look like one that has nothing to say, and the others stay as they are."""
    v, u = V.to(dtype).repeat(2, 1), U.to(dtype).repeat(2, 1)
    v[0, 1] = bad
    sent = compressor(v, u)
    assert not sent[0].isfinite().all()
    assert torch.equal(sent[1:], compressor(v[1:], u[1:]))
    torch.testing.assert_close(compressor.unpack(compressor.pack(v, u), v, u), sent, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "compressor,size",
    [
        (TopK(fraction=0.01), 53), (RandK(fraction=0.01), 40), (TopK(k=200), 925), (Sign(), 129),
        (QSGD(levels=15), 629), (Natural(), 1125),
    ],
)  # fmt: skip
def test_bytes_of_a_thousand_floats(compressor: Compressor, size: int) -> None:
    assert compressor.row_bytes({"delta": torch.zeros(1, 1000)}) == size
    assert compressor.row_bytes({"delta": torch.zeros(1, 1000), "norm": torch.zeros(1, 1)}) == size + 4


@pytest.mark.parametrize(
    "compressor,variance", [(QSGD(levels=4), 0.042), (Natural(), 0.0333), (RandK(k=2, scaled=True), 1.502)]
)
def test_unbiased_ones_are(compressor: Compressor, variance: float) -> None:
    n = 20_000
    u = torch.rand(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = compressor(V.expand(n, -1), u)
    error = out.std(0) / math.sqrt(n)
    assert bool(((out.mean(0) - V[0]).abs() <= 3 * error + 1e-12).all())
    relative = float(((out - V) ** 2).sum(1).mean() / (V**2).sum())
    assert relative == pytest.approx(variance, rel=0.05)
    assert relative <= (compressor.omega(5) or 0)


@pytest.mark.parametrize("compressor", [TopK(k=2), Sign(), RandK(k=2), QSGD(levels=4, contractive=True)])
def test_contractive_ones_are(compressor: Compressor) -> None:
    n = 4000
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    u = torch.rand(n, 5, generator=generator, dtype=torch.float64)
    left = float(((compressor(v, u) - v) ** 2).sum() / (v**2).sum())
    assert left <= (1 - (compressor.alpha(5) or 0)) * 1.01


def _job(clients: Any, number: int) -> Job:
    clients = np.asarray(clients)
    return Job(clients, np.full(len(clients), number), np.ones(len(clients), dtype=np.int64), {})


def _rows(seed: int) -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "compressor", [TopK(k=2), RandK(k=3), Sign(), QSGD(levels=3), Natural()], ids=lambda c: type(c).__name__
)
def test_what_was_sent_and_what_is_left_add_up(compressor: Compressor) -> None:
    """EF14: the sum of what was sent and the error is the sum of the messages; EF21: what is kept is what was sent."""
    for feedback in ("ef14", "ef21"):
        part = replace(compressor, feedback=feedback)
        kept = {k: v.expand(6, -1) for k, v in part.fresh({"delta": torch.zeros(1, 8, dtype=torch.float64)}).items()}
        sent_sum = message_sum = torch.zeros(6, 8, dtype=torch.float64)
        for number in range(1, 8):
            message = _rows(number)
            sent, kept = part.send({"delta": message}, kept, _job(range(6), number), RUN)
            sent_sum, message_sum = sent_sum + sent["delta"], message_sum + message
            if feedback == "ef21":
                assert torch.equal(kept["delta"], sent["delta"])
        if feedback == "ef14":
            assert (sent_sum + kept["delta"] - message_sum).abs().max() <= 1e-12


@pytest.mark.parametrize("compressor", [RandK(k=3), QSGD(levels=3), Natural()], ids=lambda c: type(c).__name__)
def test_draws_belong_to_clients_and_rounds(compressor: Compressor) -> None:
    message = _rows(1)
    whole, _ = compressor.send({"delta": message}, {}, _job(range(6), 4), RUN)
    one, _ = compressor.send({"delta": message[[4, 1]]}, {}, _job([4, 1], 4), RUN)
    assert torch.equal(whole["delta"][[4, 1]], one["delta"])
    later, _ = compressor.send({"delta": message}, {}, _job(range(6), 5), RUN)
    assert not torch.equal(whole["delta"], later["delta"])


BASE = {
    "seed": 1,
    "data": {"dataset": "synthetic", "alpha": 0.5, "beta": 0.5, "clients": 6},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 2, "batch_size": 10},
    "run": {"rounds": 6, "eval_every": 2, "dtype": "float64"},
}


def _run(folder: Path, **sections: Any) -> Any:
    return fedsim.run({**BASE, **sections}, out=folder)


def test_all_coordinates_are_the_run_without_compression(tmp_path: Path) -> None:
    plain = _run(tmp_path / "plain")
    d = len(plain.params)
    for feedback in ("none", "ef14", "ef21"):
        same = _run(tmp_path / feedback, compression={"name": "top_k", "k": d, "feedback": feedback})
        tolerance = 0 if feedback == "none" else 1e-12
        assert (same.params - plain.params).abs().max() <= tolerance
        assert list(same.metrics["bytes_sent"]) == list(plain.metrics["bytes_sent"])


def test_bytes_are_those_that_travel(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", compression={"name": "sign", "feedback": "ef14"})
    d = len(run.params)
    assert run.metrics["bytes_sent"].iloc[-1] == 6 * 6 * (8 * d + math.ceil((d + 64) / 8))


@pytest.mark.parametrize("feedback", ["none", "ef14"])
def test_chunks_disk_and_resume_change_nothing(tmp_path: Path, feedback: str) -> None:
    section = {"name": "qsgd", "levels": 3, "contractive": True, "feedback": feedback}
    mode = {"mode": "synchronous", "fraction": 0.5}
    whole = _run(tmp_path / "whole", compression=section, participation=mode)
    for how in ({"chunk_rows": 1}, {"client_state": "disk"}):
        other = _run(tmp_path / next(iter(how)), compression=section, participation=mode, run={**BASE["run"], **how})
        assert (other.params - whole.params).abs().max() <= 1e-12
    first = _run(tmp_path / "parts", compression=section, participation=mode, run={**BASE["run"], "rounds": 3})
    assert len(first.metrics) == 3
    again = fedsim.run({**BASE, "compression": section, "participation": mode}, out=tmp_path / "parts", resume=True)
    assert torch.equal(again.params, whole.params)


@pytest.mark.parametrize(
    "section,key,words",
    [
        ({"name": "top_k"}, "compression.k", "neither 'k' nor 'fraction'"),
        ({"name": "top_k", "k": 10**6}, "compression.k", "allowed: at most"),
        ({"name": "sign", "keys": ["detla"]}, "compression.keys", "allowed: delta"),
        ({"name": "qsgd", "levels": 0}, "compression.levels", "greater than or equal to 1"),
        ({"name": "rand_k", "k": 3, "scaled": True, "feedback": "ef14"}, "compression.feedback", "grow without bound"),
        ({"name": "qsgd", "levels": 1, "feedback": "ef21"}, "compression.feedback", "contractive: true"),
        ({"name": "top_q", "k": 1}, "compression.name", "did you mean 'top_k'"),
    ],
)
def test_bad_sections(tmp_path: Path, section: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        _run(tmp_path / "run", compression=section)
    assert caught.value.problems[0].key == key
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


SIGN = {"name": "sign"}


@pytest.mark.parametrize(
    "sections,key,words",
    [
        (
            {"algorithm": {"name": "scaffold"}},
            "compression",
            "'scaffold' moves client and server along the same messages",
        ),
        ({"algorithm": {"name": "diff2"}}, "compression", "adds up what all clients send"),
        ({"algorithm": {"name": "dgd"}, "topology": {"graph": "ring"}}, "compression", "nodes send models"),
        (
            {"privacy": {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "clip_norm": 1.0}},
            "compression",
            "beside 'dp_fedavg'",
        ),
        (
            {"compression": {**SIGN, "feedback": "ef21"}, "participation": {"mode": "synchronous", "fraction": 0.5}},
            "participation.fraction",
            "ef21",
        ),
        (
            {
                "compression": {**SIGN, "feedback": "ef21"},
                "participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 3},
            },
            "participation.mode",
            "ef21",
        ),
        ({"compression": None, "attack": {"name": "sign_flip", "attackers": 6}}, "attack.attackers", "not all"),
        ({"compression": None, "attack": {"name": "sign_flip", "attackers": [9]}}, "attack.attackers", "0 to 5"),
        (
            {"compression": None, "attack": {"name": "sign_flip", "attackers": 1}, "algorithm": {"name": "feddyn"}},
            "attack",
            "'feddyn' moves client and server",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, sections: dict[str, Any], key: str, words: str) -> None:
    scenario = {k: v for k, v in {**BASE, "compression": SIGN, **sections}.items() if v is not None}
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=tmp_path / "run")
    assert [p.key for p in caught.value.problems] == [key]
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_local_noise_comes_first(tmp_path: Path) -> None:
    """Compression is post-processing: noise is drawn for the clipped message, and what travels is compressed."""
    privacy = {"mechanism": "local_dp", "noise_multiplier": 0.5, "clip_norm": 1.0}
    run = _run(tmp_path / "run", compression=SIGN, privacy=privacy)
    d = len(run.params)
    assert run.metrics["bytes_sent"].iloc[-1] == 6 * 6 * (8 * d + math.ceil((d + 64) / 8))
    assert run.metrics["epsilon"].iloc[-1] == _run(tmp_path / "plain", privacy=privacy).metrics["epsilon"].iloc[-1]


def test_attackers_are_replaced_as_they_arrive(tmp_path: Path) -> None:
    """All but one client flipped: the step is that of the weights with their signs flipped; a median resists a few."""
    file = tmp_path / "q.npz"
    np.savez(file, A=np.ones((5, 2)), b=np.array([[1.0, 2.0]] * 5))
    base = {
        "data": {"dataset": "quadratic", "file": str(file)},
        "algorithm": {"name": "fedavg", "lr": 1.0, "local_steps": 1},
        "run": {"rounds": 1, "eval_every": 1, "dtype": "float64"},
    }
    attack = {"name": "sign_flip", "attackers": [0, 3], "scale": 2.0}
    mean = fedsim.run({**base, "attack": attack}, out=tmp_path / "mean")
    assert mean.params.tolist() == pytest.approx([-0.2, -0.4])  # (3 - 2 * 2) / 5
    median = fedsim.run({**base, "attack": attack, "aggregator": {"name": "median"}}, out=tmp_path / "median")
    assert median.params.tolist() == pytest.approx([1.0, 2.0])
    nobody = fedsim.run({**base, "attack": {**attack, "attackers": 0}}, out=tmp_path / "nobody")
    assert nobody.params.tolist() == pytest.approx([1.0, 2.0])
