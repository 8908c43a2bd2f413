"""Data made by formula or given as arrays: Synthetic(alpha, beta) and quadratic objectives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.rng import generator
from fedsim.data.arrays import read_npz

_SYMMETRY = 1e-9


def synthetic_client(
    alpha: float, beta: float, iid: bool, dimension: int, num_classes: int, cap: int | None, seed: int, client: int
) -> tuple[Array, Array]:
    """One client's samples of Synthetic(alpha, beta): x float32 ``[n_k, dimension]``, y int64 ``[n_k]``.

    ``n_k = int(lognormal(4, 2)) + 50`` (at most `cap`); ``W_k, b_k ~ N(u_k, 1)`` with ``u_k ~ N(0, alpha)``; ``x ~
    N(v_k, diag(j^-1.2))`` with ``v_k ~ N(B_k, 1)``, ``B_k ~ N(0, beta)``; ``y = argmax softmax(W_k x + b_k)``. As in
    the authors' code, alpha and beta are standard deviations. `iid`: all clients share one ``W, b ~ N(0, 1)`` and have
    ``v_k = 0``.

    Source: Li et al., Federated Optimization in Heterogeneous Networks (FedProx), arXiv 1812.06127, section 5.1 and its
    code.
    """
    rng = generator(seed, "synthetic", client)
    samples = int(rng.lognormal(4.0, 2.0)) + 50
    if cap is not None:
        samples = min(samples, cap)
    shared = generator(seed, "synthetic shared model") if iid else rng
    u = 0.0 if iid else rng.normal(0.0, alpha)
    centre = np.zeros(dimension) if iid else rng.normal(rng.normal(0.0, beta), 1.0, dimension)
    weight = shared.normal(u, 1.0, (dimension, num_classes))
    bias = shared.normal(u, 1.0, num_classes)
    deviation = np.arange(1, dimension + 1) ** -0.6  # the square root of the covariance's diagonal j^-1.2
    x = centre + deviation * rng.standard_normal((samples, dimension))
    return x.astype(np.float32), np.argmax(x @ weight + bias, axis=1)


def synthetic(
    clients: int, alpha: float, beta: float, iid: bool, dimension: int, num_classes: int, cap: int | None, seed: int
) -> tuple[Array, Array, Array, Array, list[Array]]:
    """All clients of Synthetic(alpha, beta), each divided 90/10 into train and test.

    Returns
    -------
    train_x ``[N, dimension]``, train_y ``[N]``, test_x, test_y, and the rows of train per client. A client's data do
    not depend on how many other clients there are.
    """
    parts = [synthetic_client(alpha, beta, iid, dimension, num_classes, cap, seed, k) for k in range(clients)]
    cuts = [int(0.9 * len(y)) for _, y in parts]
    ends = np.cumsum(cuts)
    rows = [np.arange(end - cut, end) for end, cut in zip(ends, cuts, strict=True)]
    train = [np.concatenate([part[i][:cut] for part, cut in zip(parts, cuts, strict=True)]) for i in (0, 1)]
    test = [np.concatenate([part[i][cut:] for part, cut in zip(parts, cuts, strict=True)]) for i in (0, 1)]
    return train[0], train[1], test[0], test[1], rows


def read_quadratic(file: Path) -> dict[str, Array]:
    """Arrays of an npz file, float64: A ``[n, d, d]`` or ``[n, d]`` (diagonals), b ``[n, d]``, x0 ``[d]``, p ``[n]``.

    x0 defaults to zeros and p to 1/n; p is scaled to sum 1.

    Raises
    ------
    InputError
        An array is missing, has the wrong shape or a value that is not finite; A is not symmetric (to 1e-9, relative to
        its largest entry where that exceeds 1); p is not positive.
    """
    raw = read_npz(file, ["A", "b"], ["x0", "p"], key="file")

    def wrong(message: str) -> InputError:
        return InputError(message, key="file", file=str(file))

    arrays = {name: array.astype(np.float64) for name, array in raw.items()}
    a, b = arrays["A"], arrays["b"]
    if b.ndim != 2 or b.size == 0:
        raise wrong(f"b has shape {list(b.shape)}; allowed: [n, d], with at least one client and one parameter")
    n, d = b.shape
    if a.shape not in ((n, d, d), (n, d)):
        raise wrong(
            f"A has shape {list(a.shape)} and b [{n}, {d}]; allowed for A: [{n}, {d}, {d}] or [{n}, {d}] (diagonals)"
        )
    x0, p = arrays.get("x0", np.zeros(d)), arrays.get("p", np.full(n, 1.0 / n))
    for name, array, shape in (("x0", x0, (d,)), ("p", p, (n,))):
        if array.shape != shape:
            raise wrong(f"{name} has shape {list(array.shape)}; allowed: {list(shape)}")
    for name, array in (("A", a), ("b", b), ("x0", x0), ("p", p)):
        if not np.isfinite(array).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            raise wrong(f"{name}{at} is {array[tuple(at)]}; allowed: finite numbers")
    if (p <= 0).any():
        i = int(np.argmax(p <= 0))
        raise wrong(f"p[{i}] is {p[i]}; allowed: positive client importances")
    if a.ndim == 3:
        gap = np.abs(a - a.transpose(0, 2, 1)).max(axis=(1, 2))
        i = int(gap.argmax())
        if gap[i] > _SYMMETRY * max(1.0, float(np.abs(a).max())):
            raise wrong(
                f"A[{i}] is not symmetric: it differs from its transpose by {gap[i]:.3g}; allowed: {_SYMMETRY:g}"
            )
    return {"A": a, "b": b, "x0": x0, "p": p / p.sum()}
