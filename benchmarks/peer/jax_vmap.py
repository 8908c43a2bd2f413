"""JAX: one jitted function for a whole round, a scan over local steps, clients under vmap (or one after the other).

    python jax_vmap.py FOLDER [vmap|map] [devices] [unrolled steps]

Convolutions under vmap become grouped ones, which XLA computes slowly on a CPU; `map` takes clients one after the other
inside the same jitted function, and was no faster. Neither were channels last, nor pooling over a reshaped axis: they
took five times as long. Steps of the CNN are unrolled, since convolutions in a loop are slower still. Data, draws and
parameters stay on the device; with several threads a CPU is as many devices, which clients are divided among.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from gate import Over, begin

given, gate = begin("jax")
DEFAULTS = (
    "vmap",
    str(given.threads if given.work.cohort % given.threads == 0 else 1),
    str(given.work.steps if given.work.model == "cnn" else 1),
)
HOW, DEVICES, UNROLL = (*sys.argv[2:], *DEFAULTS[len(sys.argv) - 2 :])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import Array, lax, random  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from works import CHANNELS, CNN_HIDDEN, HIDDEN, KERNEL  # noqa: E402

work, lr = given.work, given.lr
Params = list[Array]
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "softmax": [(10, 784), (10,)],
    "mlp": [(HIDDEN, 784), (HIDDEN,), (10, HIDDEN), (10,)],
    "cnn": [
        (CHANNELS[0], 1, KERNEL, KERNEL), (CHANNELS[0],), (CHANNELS[1], CHANNELS[0], KERNEL, KERNEL), (CHANNELS[1],),
        (CNN_HIDDEN, CHANNELS[1] * 49), (CNN_HIDDEN,), (10, CNN_HIDDEN), (10,),
    ],
}  # fmt: skip


def parameters_of(flat: Any) -> Params:
    """Of ``[..., d]`` the parameters, each ``[..., *shape]``."""
    shapes = SHAPES[work.model]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    pieces = np.split(np.asarray(flat), ends[:-1], axis=-1)
    return [jnp.asarray(p.reshape(*p.shape[:-1], *shape)) for p, shape in zip(pieces, shapes, strict=True)]


def flat_of(params: Params, rows: tuple[int, ...] = ()) -> np.ndarray:
    return np.concatenate([np.asarray(p).reshape(*rows, -1) for p in params], axis=-1)


def outputs(params: Params, x: Array) -> Array:
    for weight, bias in zip(params[:-4:2], params[1:-4:2], strict=True):
        x = lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        x = jax.nn.relu(x + bias[:, None, None])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = x.reshape(len(x), -1)
    if len(params) > 2:
        x = jax.nn.relu(x @ params[-4].T + params[-3])
    return x @ params[-2].T + params[-1]


def loss(params: Params, x: Array, y: Array) -> Array:
    logs = jax.nn.log_softmax(outputs(params, x))
    return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()


def stepped(params: Params, rows: Array, x: Array, y: Array) -> Params:
    """A step of SGD on the samples `rows`."""
    gradients = jax.grad(loss)(params, x[rows], y[rows])
    return [p - lr * g for p, g in zip(params, gradients, strict=True)]


def trained(params: Params, orders: Array, x: Array, y: Array) -> Params:
    """The mean of the models of clients with minibatches `orders` ``[m, steps, batch]``."""

    def client(order: Array) -> Params:
        return lax.scan(lambda p, rows: (stepped(p, rows, x, y), None), params, order, unroll=int(UNROLL))[0]

    models = jax.vmap(client)(orders) if HOW == "vmap" else lax.map(client, orders)
    return [p.mean(0) for p in models]


def drawn(key: Array, rows: Array) -> Array:
    """Minibatches of an epoch of a random cohort."""
    first, second = random.split(key)
    cohort = jnp.arange(work.clients)
    if work.cohort < work.clients:
        cohort = random.permutation(first, work.clients)[: work.cohort]
    shuffled = jax.vmap(random.permutation)(random.split(second, work.cohort), rows[cohort])
    return shuffled.reshape(work.cohort, work.steps, work.batch)


def mixed(params: Params, rows: Array, x: Array, y: Array, mixing: Array) -> Params:
    """D-PSGD: x_i = sum_j w_ij x_j - lr g_i(x_i)"""
    after = jax.vmap(stepped, in_axes=(0, 0, None, None))(params, rows, x, y)
    return [jnp.tensordot(mixing, p, 1) + (q - p) for p, q in zip(params, after, strict=True)]


def drawn_each(key: Array, rows: Array) -> Array:
    """A minibatch of each node."""
    places = random.randint(key, (work.clients, work.batch), 0, work.samples)
    return jnp.take_along_axis(rows, places, axis=1)


def gossip(key: Array | None, params: Params, orders: Array, x: Array, y: Array, rows: Array, mixing: Array) -> Params:
    """A round of a graph, on random minibatches, or without a key on `orders`."""
    if key is not None:
        orders = lax.with_sharding_constraint(drawn_each(key, rows), APART)
    return mixed(params, orders, x, y, mixing)


def fedavg(key: Array | None, params: Params, orders: Array, x: Array, y: Array, rows: Array) -> Params:
    """A round of a random cohort, or without a key of those whose minibatches are `orders`."""
    if key is not None:
        orders = lax.with_sharding_constraint(drawn(key, rows), APART)
    return trained(params, orders, x, y)


MESH = jax.make_mesh((int(DEVICES),), ("clients",), axis_types=(AxisType.Auto,))
EVERYWHERE, APART = NamedSharding(MESH, PartitionSpec()), NamedSharding(MESH, PartitionSpec("clients"))


def placed(array: Any, apart: bool = False) -> Array:
    return jax.device_put(np.asarray(array), APART if apart else EVERYWHERE)


def run() -> None:
    data, orders = tuple(placed(v) for v in (given.x, given.y, given.rows)), placed(given.orders, True)
    start = np.tile(given.start, (work.clients, 1)) if work.gossip else given.start
    params = [placed(p, work.gossip) for p in parameters_of(start)]
    count: tuple[int, ...] = ()
    compute = jax.jit(fedavg)
    if work.gossip:
        data, orders, count, compute = (
            (*data, placed(given.mixing, True)),
            orders[:, 0],
            (work.clients,),
            jax.jit(gossip),
        )
    key = random.key(0)
    gate.between(lambda: flat_of(params, count), "jax", "jaxlib", "numpy")
    params = jax.block_until_ready(compute(None, params, orders, *data))
    while True:
        gate.between(lambda now=params: flat_of(now, count))
        key, own = random.split(key)
        params = jax.block_until_ready(compute(own, params, orders, *data))


with suppress(Over):
    run()
