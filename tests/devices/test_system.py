"""How long things take: laws against scipy's, what lasts and what is drawn anew, and the sum of a job's parts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from fedsim.cli.app import main
from fedsim.core.clock import TICKS_PER_SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.devices.system import Durations, SystemSection


def durations(n: int = 4, seed: int = 0, down: int = 0, up: int = 0, **section: Any) -> Durations:
    return Durations(make_part(SystemSection, section), n, seed, down, up)


def lengths(made: Durations, job: int = 0, steps: int = 1) -> list[Fraction]:
    """Exact seconds of one job of every client."""
    return [Fraction(made.of(c, job, steps), TICKS_PER_SECOND) for c in range(made.n)]


LAWS: dict[str, tuple[dict[str, Any], Any]] = {
    "uniform": ({"low": 0.5, "high": 2.0}, stats.uniform(0.5, 1.5)),
    "truncated_normal": ({"mean": 1.0, "std": 0.8, "low": 0.3}, stats.truncnorm(-0.7 / 0.8, np.inf, 1.0, 0.8)),
    "half_normal": ({"std": 1.5, "low": 0.2}, stats.halfnorm(0.2, 1.5)),
    "exponential": ({"mean": 2.0}, stats.expon(0, 2.0)),
    "shifted_exponential": ({"mean": 2.0, "low": 1.0}, stats.expon(1.0, 2.0)),
    "lognormal": ({"sigma": 0.6, "scale": 3.0}, stats.lognorm(0.6, scale=3.0)),
    "pareto": ({"alpha": 1.5, "low": 0.5, "cap": 1e9}, stats.pareto(1.5, scale=0.5)),
}


@pytest.mark.parametrize("model", LAWS)
def test_quantiles(model: str) -> None:
    keys, expected = LAWS[model]
    law = make_part(SystemSection, {"compute": {"model": model, **keys}}).compute
    for u in (1e-12, 1e-9, 0.01, 0.25, 0.5, 0.75, 0.99, 1 - 1e-9):
        assert law.quantile(u) == pytest.approx(float(expected.ppf(u)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("model", LAWS)
def test_draws_of_clients_and_of_jobs_follow_the_law(model: str) -> None:
    keys, expected = LAWS[model]
    clients = [float(t) for t in lengths(durations(n=2000, compute={"model": model, **keys}))]
    made = durations(n=1, compute=0.0, jitter={"model": model, **keys})
    jobs = [made.of(0, k, 1) / TICKS_PER_SECOND for k in range(2000)]
    assert stats.kstest(clients, expected.cdf).pvalue > 1e-3
    assert stats.kstest(jobs, expected.cdf).pvalue > 1e-3


def test_pareto_is_capped_and_far_tails_are_finite() -> None:
    pareto = make_part(SystemSection, {"compute": {"model": "pareto", "alpha": 0.001, "low": 1.0, "cap": 7.0}}).compute
    assert pareto.quantile(0.5) == 7.0
    assert pareto.quantile(0.001) == pytest.approx(0.999**-1000)
    keys = {"model": "truncated_normal", "mean": 0.0, "std": 1.0, "low": 12.0}
    far = make_part(SystemSection, {"compute": keys}).compute
    assert far.quantile(0.5) == pytest.approx(float(stats.truncnorm(12, np.inf).ppf(0.5)), rel=1e-9)


def test_a_client_keeps_its_speed() -> None:
    one = durations(n=50, compute={"model": "lognormal", "sigma": 1.0})
    assert lengths(one, job=0) == lengths(one, job=7)
    assert len(set(lengths(one))) == 50
    assert lengths(durations(n=80, compute={"model": "lognormal", "sigma": 1.0}))[:50] == lengths(one)
    assert lengths(durations(n=50, seed=1, compute={"model": "lognormal", "sigma": 1.0})) != lengths(one)
    assert one.constant


def test_jitter_is_drawn_anew_for_every_job_and_added() -> None:
    made = durations(n=3, compute=2.0, jitter={"model": "exponential", "mean": 0.5})
    drawn = [t for k in range(40) for t in lengths(made, k)]
    assert len(set(drawn)) == 120
    assert min(drawn) > 2
    assert not made.constant
    assert lengths(made, 5) == lengths(durations(n=3, compute=2.0, jitter={"model": "exponential", "mean": 0.5}), 5)
    assert lengths(durations(n=3, compute=2.0, jitter=0.25)) == [Fraction(9, 4)] * 3


def test_purposes_draw_independently() -> None:
    law = {"model": "uniform", "low": 0.0, "high": 1.0}
    compute = [float(t) for t in lengths(durations(n=1000, compute=law))]
    latency = [float(t) / 2 for t in lengths(durations(n=1000, compute=0.0, network={"latency": law}))]
    jitter = [float(t) for t in lengths(durations(n=1000, compute=0.0, jitter=law))]
    assert np.abs(np.corrcoef([compute, latency, jitter]) - np.eye(3)).max() < 0.1


def test_a_job_is_latency_both_ways_transfer_and_compute() -> None:
    network = {"latency": {"model": "table", "values": [0.1, 0.2]}, "bandwidth": 1000.0}
    made = durations(n=2, down=300, up=100, compute={"model": "table", "values": [1.0, 3.0]}, network=network)
    assert lengths(made) == [Fraction("0.2") + Fraction("0.4") + 1, Fraction("0.4") + Fraction("0.4") + 3]
    assert lengths(durations(n=1, down=300, up=100, compute=1.0, network={"latency": 0.1})) == [Fraction("1.2")]


def test_steps_cost_time_where_the_scenario_says_so() -> None:
    assert lengths(durations(n=2, compute=0.2, per="step", network={"latency": 0.5}), steps=7) == [Fraction("2.4")] * 2
    assert lengths(durations(n=2, compute=0.2), steps=7) == [Fraction(1, 5)] * 2


def test_f80_is_exact() -> None:
    f80 = {"model": "linear", "slowest": 1.0, "fastest": 0.2}
    assert lengths(durations(n=4, compute=f80)) == [Fraction(1), Fraction(11, 15), Fraction(7, 15), Fraction(1, 5)]
    twenty = durations(n=20, compute=f80)
    assert lengths(twenty) == [1 - Fraction(4, 5) * Fraction(i, 19) for i in range(20)]
    assert -(-twenty.of(19, 0, 1) // ticks(0.2)) == 1  # in floating point 2
    assert lengths(durations(n=1, compute=f80)) == [Fraction(1)]


def test_no_job_ends_when_it_starts() -> None:
    assert durations(compute=0.0).of(0, 0, 1) == 1


SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100, "partition": {"scheme": "iid"}},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1},
    "participation": {"mode": "asynchronous"},
    "system": {"compute": 1.0},
    "run": {"rounds": 2, "device": "cpu"},
}
EXPONENTIAL = {"model": "exponential", "mean": 1.0}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"system": {"compute": {"model": "table", "values": [1.0, 2.0]}}}, "system.compute.values",
        "found 2 numbers, allowed: 4 (one per client)"),
    ({"system": {"compute": {"model": "table", "values": [1.0, -2.0, 1.0, 1.0]}}}, "system.compute.values.1",
        "found -2.0, allowed: greater than or equal to 0"),
    ({"system": {"network": {"latency": {"model": "table", "values": [1.0]}}}}, "system.network.latency.values",
        "found 1 numbers, allowed: 4"),
    ({"system": {"network": {"bandwidth": {"model": "table", "values": [1.0] * 5}}}}, "system.network.bandwidth.values",
        "found 5 numbers, allowed: 4"),
    ({"system": {"network": {"bandwidth": 0}}}, "system.network.bandwidth", "found a bandwidth of 0, allowed: above 0"),
    ({"system": {"compute": {"model": "lognormel", "sigma": 1.0}}}, "system.compute",
        "unknown law 'lognormel' (did you mean 'lognormal'?)"),
    ({"system": {"compute": {"sigma": 1.0}}}, "system.compute", "allowed: a number or a law {model:"),
    ({"system": {"compute": "fast"}}, "system.compute", "found 'fast', allowed: a number or a law"),
    ({"system": {"compute": True}}, "system.compute", "found True, allowed: a number or a law"),
    ({"system": {"compute": -1}}, "system.compute", "found -1, allowed: greater than or equal to 0"),
    ({"system": {"compute": {"model": "lognormal", "sigma": 1000.0}}}, "system.compute.sigma", "at most 10"),
    ({"system": {"compute": {"model": "lognormal", "sigma": 1.0, "sigmo": 1.0}}}, "system.compute.sigmo",
        "(did you mean 'sigma'?)"),
    ({"system": {"compute": {"model": "uniform", "low": 2.0, "high": 1.0}}}, "system.compute",
        "found low 2.0 above high 1.0, allowed: low <= high"),
    ({"system": {"compute": {"model": "linear", "fastest": 2.0}}}, "system.compute",
        "found fastest 2.0 above slowest 1.0"),
    ({"system": {"jitter": {"model": "linear", "fastest": 0.2}}}, "system.jitter",
        "found model linear, allowed: a law that can be drawn anew for every job"),
    ({"system": {"jitter": {"model": "table", "values": [1.0] * 4}}}, "system.jitter", "found model table"),
    ({"system": {"per": "epoch"}}, "system.per", "found 'epoch', allowed: 'round' or 'step'"),
    ({"system": {"computes": 1.0}}, "system.computes", "(did you mean 'compute'?)"),
    ({"system": {"jitter": EXPONENTIAL}}, "participation.weights", "durations vary from job to job"),
    ({"system": {"per": "step"}, "algorithm": {"name": "fedavg", "local_steps": {"uniform": [1, 3]}}},
        "participation.weights", "allowed: estimated, identical"),
    ({"algorithm": {"name": "scaffold"}}, "participation.mode", "found 'asynchronous': "),
    ({"algorithm": {"name": "feddyn"}, "participation": {"mode": "fedbuff", "buffer": 2}}, "participation.mode",
        "allowed with 'feddyn': synchronous"),
    ({"participation": {"mode": "fedbuff"}}, "participation.buffer", "missing"),
    ({"participation": {"mode": "fedbuff", "buffer": 0}}, "participation.buffer", "found 0, allowed: greater than 0"),
    ({"participation": {"mode": "fedbuff", "buffer": 5, "restart": "barrier"}}, "participation.buffer",
        "found 5, allowed: at most data.clients = 4"),
    ({"participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 5}}, "participation.concurrency",
        "found 5, allowed: at most data.clients = 4"),
    ({"participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 2, "restart": "barrier"}},
        "participation.concurrency", "remove the key"),
    ({"participation": {"mode": "fedbuff", "buffer": 2, "weights": "debiased"}}, "participation.weights",
        "allowed: estimated, identical"),
    ({"participation": {"mode": "fixed_interval"}}, "participation.window", "missing"),
    ({"participation": {"mode": "fixed_interval", "window": 0.0}}, "participation.window", "greater than 0"),
    ({"participation": {"mode": "asynchronous", "staleness": {"hinge": [1.0]}}}, "participation.staleness.hinge",
        "at least 2"),
    ({"participation": {"mode": "asynchronous", "staleness": {"polynomial": 1.0, "hinge": [1.0, 2.0]}}},
        "participation.staleness", "found both"),
    ({"participation": {"mode": "asynchronous", "staleness": {"polynomial": -1.0}}},
        "participation.staleness.polynomial", "found -1.0"),
    ({"run": {"rounds": 2, "seconds": 0.0}}, "run.seconds", "greater than 0"),
    ({"algorithm": {"name": "dspodfl"}, "topology": {"graph": "ring"}, "participation": {"mode": "gossip"},
        "system": {"network": {}}},
        "system.network", "latency_ms"),
]  # fmt: skip


@pytest.mark.parametrize("changes,key,says", BAD, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_bad_input_is_answered(
    verb: str, changes: dict[str, Any], key: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump({**SCENARIO, **changes}))
    monkeypatch.setattr("sys.argv", ["fedsim", verb, "s.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    answer = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in answer
    (line,) = answer.splitlines()
    assert line.startswith("s.yaml:")
    assert f": {key}: " in line
    assert says in line
    assert not Path("runs").exists()


def test_very_long_durations_are_no_error(tmp_path: Path) -> None:
    import fedsim

    for mode in ({"mode": "asynchronous"}, {"mode": "fixed_interval", "window": 1e12}):
        run = fedsim.run(
            {**SCENARIO, "system": {"compute": 1e12}, "participation": mode},
            out=tmp_path / mode["mode"],  # type: ignore[arg-type]
        )
        assert run.metrics["time"].iloc[-1] == pytest.approx(1e12 if mode["mode"] == "asynchronous" else 2e12)


def test_linear_and_table_cannot_be_drawn_per_job() -> None:
    law = make_part(SystemSection, {"compute": {"model": "linear", "fastest": 0.2}}).compute
    with pytest.raises(InputError, match="cannot vary from job to job"):
        law.quantile(0.5)


def test_times_that_all_share_are_those_of_each_by_itself():
    def each(value: float) -> dict[str, Any]:
        return {"model": "table", "values": [value] * 4}

    shared = durations(down=100, up=33, compute=0.3, network={"latency": 0.1, "bandwidth": 700.0})
    apart = durations(down=100, up=33, compute=each(0.3), network={"latency": each(0.1), "bandwidth": each(700.0)})
    assert lengths(shared, steps=3) == lengths(apart, steps=3)
    assert shared.of(1, 0, 1) == ticks(Fraction(3, 10) + Fraction(2, 10) + Fraction(133, 700))
