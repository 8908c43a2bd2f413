"""Every broken scenario, graph, data file, sweep and command line is answered: exit code 2, where, what, what else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bad_input_makers import (
    GOSSIP,
    SERVER,
    SWEEP,
    Case,
    arrays,
    assert_answers,
    at,
    command,
    data,
    gossip,
    graph,
    idx_files,
    image_files,
    own_model,
    quadratic,
    server,
    setting,
    sweep,
    whole,
    write,
)
from data_makers import idx_bytes

from fedsim.cli.app import main
from fedsim.core.errors import InputError
from fedsim.scenario.load import parse

X, Y = np.ones((20, 3)), np.arange(20) % 2
HALF_DONE = """\
import dataclasses
from fedsim.algorithms.base import Algorithm

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Algorithm):
    setting = "server"
"""

# fmt: off
UNKNOWN_KEYS = [
    server("algorithm:", "algoritm:", at(11, "algoritm"), "(did you mean 'algorithm'?)", "s.yaml: algorithm: missing"),
    server("  limit: 100", "  limt: 100", at(6, "data.limt"), "(did you mean 'limit'?)", "allowed: normalize, limit"),
    server("{scheme: iid}", "{scheme: dirichlet, alpha: 1.0, alpa: 2}", at(7, "data.partition.alpa"), "'alpha'?"),
    server("  hidden: [8]", "  hiden: [8]", at(10, "model.hiden"), "(did you mean 'hidden'?)"),
    server("  lr: 0.1", "  learning_rate: 0.1", at(13, "algorithm.learning_rate"), "unknown key", "lr, local_steps"),
    server("  fraction: 0.5", "  fractoin: 0.5", at(16, "participation.fractoin"), "(did you mean 'fraction'?)"),
    server("rounds: 2", "round: 2", at(17, "run.round"), "(did you mean 'rounds'?)"),
    server("run:", "backend: {nam: vectorized}\nrun:", at(17, "backend.nam"), "(did you mean 'name'?)"),
    server("run:", "aggregator: {name: mean, trim: 0.1}\nrun:", at(17, "aggregator.trim"), "allowed: no keys"),
    gossip("graph: ring", "grph: ring", at(8, "topology.grph"), "missing"),
    gossip("graph: ring", "graph: ring\n  radius: 0.4", at(9, "topology.radius"), "allowed: nodes"),
    gossip("compute: 0.5", "compute: {bta: [1, 1]}", at(10, "participation.compute.bta"), "(did you mean 'beta'?)"),
    server("  lr: 0.1", "  lr_decay: {stp: 0.1, every: 3}", at(13, "algorithm.lr_decay.stp"),
        "(did you mean 'step'?)"),
    server("  lr: 0.1", "  local_steps: {unifrm: [1, 3]}", at(13, "algorithm.local_steps.unifrm"), "'uniform'?"),
    server("seed: 0", "1: 0", "s.yaml:2: 1: unknown key"),
]
NAMES = [
    server("dataset: digits", "dataset: digit", at(4, "data.dataset"), "(did you mean 'digits'?)", "allowed: calif"),
    server("name: mlp", "name: mpl", at(9, "model.name"), "unknown model 'mpl' (did you mean 'mlp'?)"),
    server("name: fedavg", "name: fedagv", at(12, "algorithm.name"), "(did you mean 'fedavg'?)", "scaffold"),
    server("scheme: iid", "scheme: dirichle", at(7, "data.partition.scheme"), "(did you mean 'dirichlet'?)"),
    server("  fraction: 0.5", "  mode: synchronus", at(16, "participation.mode"), "(did you mean 'synchronous'?)"),
    server("  fraction: 0.5", "  sampling: bernouli", at(16, "participation.sampling"), "(did you mean 'bernoulli'?)"),
    server("run:", "aggregator: {name: trimed_mean}\nrun:", at(17, "aggregator.name"),
        "(did you mean 'trimmed_mean'?)"),
    server("run:", "backend: {name: rai}\nrun:", at(17, "backend.name"), "found 'rai', allowed: 'vectorized' or 'ray'"),
    server("run:", "backend: {actors: 2}\nrun:", at(17, "backend.actors"), "belongs to the backend 'ray'"),
    server("  hidden: [8]", "  activation: rlu", at(10, "model.activation"), "found 'rlu'", "(did you mean 'relu'?)"),
    server("  hidden: [8]", "  loss: crossentropy", at(10, "model.loss"), "(did you mean 'cross_entropy'?)"),
    gossip("graph: ring", "graph: rng", at(8, "topology.graph"), "unknown graph 'rng' (did you mean 'ring'?)"),
    gossip("graph: ring", "graph: ring\n  weights: metropolys", at(9, "topology.weights"),
        "(did you mean 'metropolis'?)"),
]
TYPES = [
    server("  lr: 0.1", "  lr: fast", at(13, "algorithm.lr"), "found 'fast', allowed: a number"),
    server("  lr: 0.1", "  lr: true", at(13, "algorithm.lr"), "found True, allowed: a number"),
    server("  lr: 0.1", "  lr:", at(13, "algorithm.lr"), "found None, allowed: a number"),
    server("rounds: 2", "rounds: true", at(17, "run.rounds"), "found True, allowed: a whole number"),
    server("rounds: 2", "rounds: 2.5", at(17, "run.rounds"), "found 2.5, allowed: a whole number"),
    server("rounds: 2", "trace: 1", at(17, "run.trace"), "found 1, allowed: true or false"),
    server("seed: 0", "seed: 0x", at(2, "seed"), "found '0x', allowed: a whole number"),
    server("name: bad", "name: 7", at(1, "name"), "found 7, allowed: text"),
    server("name: bad", "name: a/b", at(1, "name"), "found 'a/b', allowed: text that matches"),
    server("clients: 4", "clients: [4]", at(5, "data.clients"), "found [4], allowed: a whole number"),
    server("hidden: [8]", "hidden: 8", at(10, "model.hidden"), "found 8, allowed: a list"),
    server("hidden: [8]", "hidden: [8, wide]", at(10, "model.hidden.1"), "found 'wide', allowed: a whole number"),
    server("hidden: [8]", "hidden:\n    - 8\n    - x", at(12, "model.hidden.1"), "found 'x'"),
    server("{scheme: iid}", "iid", at(7, "data.partition"), "found 'iid', allowed: a mapping with the key 'scheme'"),
    server("{rounds: 2, device: cpu}", "[2]", at(17, "run"), "found [2], allowed: a mapping"),
    server("{rounds: 2, device: cpu}", "", at(17, "run"), "found nothing, allowed: a mapping"),
    server("batch_size: 8", "batch_size: ful", at(14, "algorithm.batch_size"),
        "a whole number or 'full' (did you mean"),
    server("name: fedavg", "name: [fedavg]", at(12, "algorithm.name"), "found ['fedavg'], allowed: a name"),
    server("  lr: 0.1", "  lr_decay: none", at(13, "algorithm.lr_decay"), "found 'none', allowed: a factor per round"),
    gossip("compute: 0.5", "compute: often", at(10, "participation.compute"), "found 'often', allowed: a probability"),
]
RANGES = [
    server("seed: 0", "seed: -1", at(2, "seed"), "found -1, allowed: greater than or equal to 0"),
    server("clients: 4", "clients: 0", at(5, "data.clients"), "found 0"),
    server("lr: 0.1", "lr: 0", at(13, "algorithm.lr"), "found 0, allowed: greater than 0"),
    server("lr: 0.1", "lr: .inf", at(13, "algorithm.lr"), "found inf, allowed: a finite number"),
    server("lr: 0.1", "momentum: 1", at(13, "algorithm.momentum"), "found 1, allowed: less than 1"),
    server("lr: 0.1", "lr_decay: 1.5", at(13, "algorithm.lr_decay"), "found 1.5, allowed: less than or equal to 1"),
    server("batch_size: 8", "batch_size: 0", at(14, "algorithm.batch_size"), "greater than 0 or 'full'"),
    server("fraction: 0.5", "fraction: 1.5", at(16, "participation.fraction"),
        "found 1.5, allowed: less than or equal to 1"),
    server("rounds: 2", "threads: 100000", at(17, "run.threads"), "found 100000, allowed: less than or equal to 1024"),
    server("rounds: 2", "operator_threads: 0", at(17, "run.operator_threads"), "found 0, allowed: greater than 0"),
    server("rounds: 2", "threads: 2, operator_threads: 2", at(17, "run.operator_threads"),
        "found together with run.threads, allowed: one of the two"),
    server("device: cpu", "device: gpu", at(17, "run.device"),
        "found 'gpu', allowed: text that matches ^(auto|cpu|cuda"),
    server("device: cpu", "device: 'cuda:99'", at(17, "run.device"), "found cuda:99, but PyTorch sees"),
    gossip("compute: 0.5", "compute: 1.5", at(10, "participation.compute"),
        "found 1.5, allowed: less than or equal to 1"),
    gossip("compute: 0.5", "compute: [0.5, 0.5, 1.5]", at(10, "participation.compute.2"), "found 1.5"),
    gossip("compute: 0.5", "compute: {beta: [1]}", at(10, "participation.compute.beta"), "found [1]", "at least 2"),
    gossip("compute: 0.5", "compute: {uniform: [0.9, 0.1]}", at(10, "participation.compute"), "allowed: [lo, hi]"),
]
MISSING = [
    server("model:\n  name: mlp\n  hidden: [8]\n", "", "s.yaml: model: missing; e.g. model: {name: linear}"),
    server("  name: mlp", "  bias: true", at(8, "model.name"), "missing; allowed: char_lstm, cnn, linear"),
    server("  dataset: digits\n", "", at(3, "data.dataset"), "missing; allowed: calif"),
    server("  clients: 4\n", "", at(3, "data.clients"), "missing; allowed: the number of clients"),
    server("{scheme: iid}", "{scheme: dirichlet}", at(7, "data.partition.alpha"), "missing"),
    server("  name: fedavg\n", "", at(11, "algorithm.name"), "missing; allowed: acid, "),
    gossip("topology:\n  graph: ring\n", "", "s.yaml: topology: missing", "e.g. topology: {graph: ring}"),
    gossip("graph: ring", "graph: file", at(7, "topology.path"), "missing"),
    gossip("file: q.npz", "noise: 0.0", at(1, "data.file"), "missing"),
    whole("no sections", "name: x\n", "s.yaml: data: missing", "s.yaml: algorithm: missing"),
]
TOGETHER = [
    server("fraction: 0.5", "fraction: 0.5\n  clients_per_round: 2", at(16, "participation.fraction"),
        "one of the two"),
    server("lr: 0.1", "local_steps: 1\n  local_epochs: 1", at(14, "algorithm.local_epochs"), "found both",
        "one of the two"),
    server("fraction: 0.5", "mode: gossip", at(16, "participation.mode"),
        "'fedavg' is a server algorithm, allowed: mode asynchronous, fedbuff, fixed_interval, synchronous"),
    server("fraction: 0.5", "clients_per_round: 9", at(16, "participation.clients_per_round"),
        "at most data.clients = 4"),
    server("run:", "topology: {graph: ring}\nrun:", at(17, "topology"), "'fedavg' has a server and uses no graph"),
    gossip("compute: 0.5", "mode: synchronous", at(10, "participation.mode"), "'dspodfl' is a gossip algorithm"),
    gossip("algorithm:\n  name: dspodfl", "aggregator: {name: median}\nalgorithm:\n  name: gradient_tracking",
        at(4, "aggregator.name"), "only where a matrix mixes them"),
    server("run:", "aggregator: {name: nna, f: 1}\nrun:", at(17, "aggregator.name"),
        "found 'nna', but that is a rule of a graph's nodes"),
    gossip("run:", "model: {name: linear}\nrun:", at(11, "model"), "a quadratic problem has no model"),
    gossip("file: q.npz", "file: q.npz\n  partition: {scheme: iid}", at(4, "data.partition"), "already divided"),
    gossip("file: q.npz", "file: q.npz\n  clients: 7", at(4, "data.clients"), "found 7", "describes 3"),
    gossip("compute: 0.5", "compute: [0.5, 0.5]", at(10, "participation.compute"), "found a list of 2",
        "3 (one per node)"),
    gossip("compute: 0.5", "links: [0.5]", at(10, "participation.links"), "found a list of 1", "3 (one per link)"),
    gossip("compute: 0.5", "compute: {beta: [1, 1], bimodal: 0.1}", at(10, "participation.compute"),
        "allowed: a probability"),
    server("lr: 0.1", "local_steps: [1, 2]", at(13, "algorithm.local_steps"), "found a list of 2 numbers, allowed: 4"),
    server("lr: 0.1", "lr_decay: {step: 0.1}", at(13, "algorithm.lr_decay"), "'step' and 'every' go together"),
    server("lr: 0.1", "lr_decay: {cosine: 5, inverse: 1.0}", at(13, "algorithm.lr_decay"),
        "exactly one of exponential"),
    server("hidden: [8]", "loss: mse", at(10, "model.loss"), "mse is for regression", "use cross_entropy"),
    server("hidden: [8]", "loss: logistic", at(10, "model.loss"), "logistic needs 2 classes, found 10"),
    server("hidden: [8]", "init: zeros", at(10, "model.init"), "found zeros, allowed: default"),
]
PARTITIONS = [
    server("clients: 4", "clients: 101", at(5, "data.clients"),
        "found 101 clients for 100 training rows; allowed: 1 to 100"),
    server("scheme: iid", "scheme: dirichlet, alpha: 0", at(7, "data.partition.alpha"),
        "found 0, allowed: greater than 0"),
    server("scheme: iid", "scheme: dirichlet, alpha: [1, 2]", at(7, "data.partition.alpha"), "2 values for 4 clients"),
    server("scheme: iid", "scheme: dirichlet, alpha: 1, min_partition_size: 30", "min_partition_size: found 30",
        "0 to 25"),
    server("scheme: iid", "scheme: dirichlet, alpha: 0.01, min_partition_size: 24", "alpha: in 11 draws",
        "a larger alpha"),
    server("scheme: iid", "scheme: pathological, num_classes_per_partition: 11", "found 11", "allowed: 1 to 10"),
    server("scheme: iid", "scheme: labels_per_node, labels: 11", at(7, "data.partition.labels"), "allowed: 1 to 10"),
    server("scheme: iid", "scheme: size, partition_sizes: [90, 10, 1, 1]", "sum to 102, there are 100 rows"),
    server("scheme: iid", "scheme: shard", at(7, "data.partition.num_shards_per_partition"), "missing"),
    server("scheme: iid", "scheme: continuous, strictness: 0.5", at(7, "data.partition.scheme"), "found labels"),
    server("  clients: 4\n  limit: 100\n  partition: {scheme: iid}",
        "  clients: 20\n  partition: {scheme: exponential}", at(6, "data.partition"),
        "leave the smallest of 20 clients without any; allowed: fewer clients"),
]
GRAPHS = [
    gossip("graph: ring", "graph: ring\n  nodes: 5", at(9, "topology.nodes"), "found 5 nodes for 3 clients"),
    gossip("graph: ring", "graph: torus", "topology.nodes: ", "3 is prime"),
    gossip("graph: ring", "graph: erdos_renyi\n  p: 0.0001", at(9, "topology.p"), "no connected graph on 3 nodes"),
    gossip("graph: ring", "graph: path\n  weights: uniform", at(9, "topology.weights"),
        "needs symmetric mixing weights"),
    gossip("graph: ring", "graph: sequence\n  graphs: []", at(9, "topology.graphs"), "found an empty list"),
    gossip("graph: ring", "graph: sequence\n  graphs:\n    - {graph: rng}", at(10, "topology.graphs.0.graph"),
        "'ring'?"),
    gossip("graph: ring", "graph: file\n  path: g.csv\n  directed: true", at(8, "topology.graph"),
        "found a directed graph", files={"g.csv": "0,1\n1,2\n2,0\n"}),
    gossip("name: dspodfl\n  lr: 0.1\ntopology:\n  graph: ring",
        "name: dgd\ntopology:\n  graph: path\n  weights: uniform", at(8, "topology.weights"), "doubly stochastic",
        "Allowed: metropolis"),
    graph("g.csv", "0,1\n2,3\n", "has 4 nodes, but there are 3 clients", at(9, "topology.path")),
    graph("g.edges", "3\n0 1\n", "g.edges is not connected; its 2 components: {0, 1}; {2}", at(8, "topology.graph")),
    graph("g.csv", "source,target,latency_ms\n0,1,5\n1,2,-5\n", "g.csv:3: ", "found latency_ms -5",
        "finite number >= 0"),
    graph("g.csv", "0,1\n1,1\n", "g.csv:2: ", "found a self loop at node '1'"),
    graph("g.csv", "0,1\n1,2\n1,0\n", "g.csv:3: ", "is there twice"),
    graph("g.csv", "0,1,9\n", "g.csv:1: ", "found 3 column(s), allowed: 2"),
    graph("g.edges", "three\n0 1\n", "g.edges:1: ", "found 'three', allowed: whole numbers"),
    graph("g.graphml", "<graphml><graph>", "g.graphml: ", "cannot be read as graphml"),
    graph("g.gml", "graph [ node [", "g.gml: ", "cannot be read as gml"),
    graph("g.doc", "0 1\n", "g.doc: ", "found a file ending in '.doc', allowed: .graphml"),
    graph("g.csv", b"\xff\xfe\x00\x01", "g.csv: ", "cannot be read as csv"),
    gossip("graph: ring", "graph: file\n  path: none.gml", "none.gml: topology.path: no such file"),
]
QUADRATICS = [
    quadratic("shapes", "q.npz: data.file: ", "A has shape [3, 4, 4] and b [3, 2]; allowed for A", A=np.ones((3, 4,
        4))),
    quadratic("no b", "unknown array", "'b'", b=None),
    quadratic("nan", "b[0, 0] is nan; allowed: finite numbers", b=np.full((3, 2), np.nan)),
    quadratic("asymmetric", "A[0] is not symmetric", A=np.stack([np.array([[1.0, 0.5], [0.0, 1.0]])] * 3)),
    quadratic("negative p", "p[1] is -1.0; allowed: positive", p=np.array([1.0, -1.0, 1.0])),
    quadratic("x0", "x0 has shape [3]; allowed: [2]", x0=np.zeros(3)),
    quadratic("text", "has type", "allowed: numbers", b=np.array([["a", "b"]] * 3)),
    gossip("file: q.npz", "file: p.npz", at(3, "data.file"), "no file or folder", "(did you mean 'q.npz'?)"),
    Case("quadratic: no npz", ["plan", "s.yaml"], ("q.npz: data.file: cannot read"), {"s.yaml": GOSSIP,
        "q.npz": b"PK"}),
]
DATA = [
    data("no folder", "dataset: mnist, path: nowhere", at(1, "data.path"), "no file or folder", files={}),
    data("empty folder", "dataset: mnist, path: .", at(1, "data.path"), "no train*.parquet in", "s.yaml", files={}),
    data("label", "dataset: hub, hub: a/b, path: ., num_classes: 2", "data: found label -1 with 2 classes",
        files={"x": image_files([-1, 0, 1])}),
    data("no column", "dataset: parquet, path: ., target: lable", at(1, "data.target"), "(did you mean 'label'?)",
        files={"x": image_files([0, 1, 1])}),
    data("no parquet", "dataset: mnist, path: .", "train.parquet: data.path: cannot read",
        files={"train.parquet": b"no parquet", "test.parquet": b"none"}),
    data("idx magic", "dataset: idx, path: .",
        "train-labels-idx1-ubyte: data.path: wrong IDX magic 6e6f6e65; allowed: 00000801",
        files={"x": idx_files(b"none")}),
    data("idx cut short", "dataset: idx, path: .",
        "truncated or damaged IDX file: shape (4,) needs 12 bytes, found 11",
        files={"x": idx_files(idx_bytes(np.arange(4))[:-1])}),
    data("csv text", "dataset: csv, path: d.csv, target: y", at(1, "data.features"),
        "is not numeric (first value 'red')", files={"d.csv": "x,y\nred,0\nblue,1\n"}),
    data("csv target", "dataset: csv, path: d.csv, target: z", at(1, "data.target"), "unknown column",
        "allowed: x, y", files={"d.csv": "x,y\n1,0\n2,1\n"}),
    data("csv empty", "dataset: csv, path: d.csv, target: y", "d.csv: data.path: cannot read", files={"d.csv": ""}),
    data("npz names", "dataset: npz, path: d.npz", at(1, "data.path"),
        "allowed: x_train, y_train, x_test, y_test, or x, y", files={"x": arrays(X=X, y=Y)}),
    data("npz shapes", "dataset: npz, path: d.npz", "x has shape [20, 3] and y [19]", files={"x": arrays(x=X,
        y=Y[1:])}),
    data("npz nan", "dataset: npz, path: d.npz", "not finite", files={"x": arrays(x=X * np.nan, y=Y)}),
    data("npz pickle", "dataset: npz, path: d.npz", "d.npz: data.path: cannot read",
        files={"x": arrays(x=np.array([{}] * 20), y=Y)}),
    data("classes", "dataset: npz, path: d.npz, num_classes: 1", "found label 1 with 1 classes",
        files={"x": arrays(x=X, y=Y)}),
]
MODELS = [
    own_model("bad_norm", "def Net(): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, 1e-5, 0.1, True, False))",
        at(8, "model.batch_norm"), "sub-module '1' (BatchNorm1d)", "allowed: group"),
    own_model("bad_draws", "def Net(): return nn.Sequential(nn.Flatten(), nn.RReLU(), nn.Linear(64, 10))",
        at(9, "model.name"), "rrelu"),
    own_model("bad_result", "def Net(): return 5", at(9, "model.name"), "must return a torch.nn.Module, found int"),
    own_model("bad_call", "def Net(): return nn.Linear(1)", at(9, "model.name"), "failed: TypeError"),
    own_model("bad_shape", "def Net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))", at(9, "model.name"),
        "must give outputs [4, 10] for 4 samples, found [4, 3]"),
    own_model("bad_import", "import no_such_package", at(9, "model.name"), "cannot import 'bad_import'",
        "no_such_package"),
    own_model("bad_syntax", "def Net(:", at(9, "model.name"), "cannot import 'bad_syntax'", "SyntaxError"),
    own_model("bad_name", "def Nett(): pass", at(9, "model.name"), "(did you mean 'Nett'?)"),
    server("name: mlp", "name: no_such_module:Net", at(9, "model.name"), "cannot import 'no_such_module'"),
    server("name: mlp\n  hidden: [8]", "name: math:pi", at(9, "model.name"), "'math:pi' is float, not a callable"),
    server("name: fedavg", "name: fedsim.data.sets:Digits", at(12, "algorithm.name"),
        "inherits fedsim.algorithms.base.Algorithm"),
    server("dataset: digits", "dataset: math:pi", at(4, "data.dataset"), "inherits fedsim.data.sets.DatasetPart"),
    server("fraction: 0.5", "mode: fedsim.data.sets:Digits", at(16, "participation.mode"),
        "fedsim.participation.synchronous.Participation"),
    server("name: fedavg", "name: 'half_done:Mine'", at(11, "algorithm"), "'Mine' cannot be made", "abstract",
        **{"half_done.py": HALF_DONE}),
]
FILES = [
    whole("empty file", "", "s.yaml: found nothing, allowed: keys and values"),
    whole("only a comment", "# nothing\n", "s.yaml: found nothing"),
    whole("a list", "- a\n", "s.yaml: found no mapping, allowed: keys and values"),
    whole("a tab", "data:\n\tdataset: digits\n", "s.yaml:2: not valid YAML", "'\\t'"),
    whole("an open bracket", "data: [1, 2\n", "s.yaml:2: not valid YAML", "',' or ']'"),
    whole("an unknown alias", "data: *nothing\n", "s.yaml:1: not valid YAML", "undefined alias 'nothing'"),
    whole("an endless alias", "data: &a {b: *a}\n", "s.yaml: not valid YAML: nested too deeply"),
    whole("two documents", "a: 1\n---\nb: 1\n", "s.yaml:2: not valid YAML", "another document"),
    whole("a list as key", "? [1, 2]\n: 3\n", "s.yaml:1: not valid YAML", "unhashable key"),
    whole("a null byte", "a: 1\nb: \x00\n", "s.yaml:2: not valid YAML: the character '\\x00'"),
    whole("bytes", b"\x89PNG\r\n\xff\xd8", "s.yaml: cannot be read as UTF-8 text"),
    whole("a Python object", "a: !!python/object/apply:os.system [ls]\n", "s.yaml:1: not valid YAML"),
    server("seed: 0", "seed: 0\nseed: 1", at(3, "seed"), "found twice, here and in line 2; allowed: each key once"),
    server("lr: 0.1", "lr: 0.1\n  lr: 0.2", at(14, "algorithm.lr"), "found twice, here and in line 13"),
    server("{rounds: 2,", "{rounds: 2, rounds: 3,", at(17, "run.rounds"), "found twice"),
    command("plan", "nothing.yaml", says=("nothing.yaml: no such file")),
    command("plan", ".", says=(".: is a folder, allowed: a YAML file")),
    Case("three at once", ["plan", "s.yaml"], (at(2, "seed"), at(10, "model.hidden"), at(13, "algorithm.lr")),
        {"s.yaml": SERVER.replace("seed: 0", "seed: x").replace("[8]", "8").replace("0.1", "-1")}),
]
SETTINGS = [
    setting("algorithm.lr=0", "--set: algorithm.lr: found 0, allowed: greater than 0"),
    setting("algorithm.lrr=1", "--set: algorithm.lrr: unknown key (did you mean 'lr'?)"),
    setting("algorith.lr=1", "--set: algorith: unknown key 'algorith' (did you mean 'algorithm'?)"),
    setting("algorithm.lr", "--set: found 'algorithm.lr', allowed: key.path=value"),
    setting("=1", "--set: found '=1', allowed: key.path=value"),
    setting("run..rounds=1", "--set: found 'run..rounds=1', allowed: key.path=value"),
    setting("run.rounds.x=1", "--set: run.rounds.x: 'run.rounds' is 2, not a mapping with a key 'x'"),
    setting("run.rounds={", "--set: run.rounds: '{' is not valid YAML"),
    setting("run.rounds=a: b: c", "--set: run.rounds: 'a: b: c' is not valid YAML"),
    setting("model={name: mlp, hidden: 8}", "--set: model.hidden: found 8, allowed: a list"),
    setting("data=null", "--set: data: found nothing, allowed: a mapping"),
]
SWEEPS = [
    sweep("scenario: s.yaml", "scenario: t.yaml", "w.yaml:1: scenario: found no file t.yaml"),
    sweep("scenario: s.yaml", "name: w", "w.yaml: scenario: missing"),
    sweep("scenario: s.yaml", "scenario: 5", "w.yaml:1: scenario: found 5, allowed: text"),
    sweep("grid:", "gird:", "w.yaml:8: gird: unknown key (did you mean 'grid'?)"),
    sweep("[0.1, 0.2]", "[]", "w.yaml:9: grid.algorithm.lr: found []", "at least 1 item"),
    sweep("[0.1, 0.2]", "0.1", "w.yaml:9: grid.algorithm.lr: found 0.1, allowed: a list"),
    sweep("[0.1, 0.2]", "[0.1, 0]", at(9, "algorithm.lr", "w.yaml"),
        "found 0, allowed: greater than 0 (in 'plain_lr=0'"),
    sweep("algorithm.lr: [", "algorithm.lrr: [", at(9, "algorithm.lrr", "w.yaml"), "(did you mean 'lr'?)"),
    sweep("[0.1, 0.2]", "[0.1, 0.1]", "w.yaml:8: grid: two runs are called 'plain_lr=0.1'"),
    sweep("plain: {}", "prox/imal: {}\n  prox imal: {}", "two runs are called 'prox-imal_lr=0.1'"),
    sweep("plain: {}", "proximal: {}", "w.yaml:6: cases.proximal: found twice, here and in line 5"),
    sweep("name: fedprox", "name: fedprx", at(7, "algorithm.name", "w.yaml"), "(did you mean 'fedprox'?)",
        "in 'proximal_lr=0.1'"),
    sweep("run.rounds: 2", "run.rounds: none", at(3, "run.rounds", "w.yaml"), "found 'none'", "and 1 more"),
    sweep("run.rounds: 2", "seed.x: 2", at(3, "seed.x", "w.yaml"), "'seed' is 0, not a mapping"),
    sweep("run.rounds: 2", "data.clients: 101", "plain_lr=0.1: w.yaml:3: data.clients: found 101 clients"),
    command("sweep", "w.yaml", says=("w.yaml: no such file")),
    Case("sweep: --set", ["sweep", "w.yaml", "--set", "seed=x"], ("--set: seed: found 'x'"), {"s.yaml": SERVER,
        "w.yaml": SWEEP}),
    Case("sweep: its scenario", ["sweep", "w.yaml"], (at(2, "seed"), "found 'x'"),
        {"s.yaml": SERVER.replace("seed: 0", "seed: x"), "w.yaml": SWEEP}),
]
COMMANDS = [
    command("rn", "s.yaml", says=("No such command 'rn'", "'run'")),
    command("run", says=("Missing argument 'SCENARIO'")),
    command("run", "s.yaml", "--rounds", "5", says=("No such option: --rounds")),
    command("run", "s.yaml", "--set", says=("'--set' requires an argument")),
    command("run", "s.yaml", "--out", "taken", says=("taken: cannot be used as run directory"), **{"s.yaml": SERVER,
        "taken": "x"}),
    command("run", "s.yaml", "--out", "taken/x", says=("taken/x: cannot be used as run directory"),
        **{"s.yaml": SERVER, "taken": "x"}),
    command("list", "algoritms", says=("unknown kind 'algoritms' (did you mean 'algorithms'?)")),
    command("check", "fedagv", says=("unknown algorithm 'fedagv' (did you mean 'fedavg'?)")),
    command("topology", "rng", says=("graph: unknown graph 'rng' (did you mean 'ring'?)")),
    command("topology", "ring", says=("nodes: the number of nodes is not known")),
    command("topology", "ring", "--nodes", "1", says=("nodes: found 1 node(s), allowed: at least 2")),
    command("topology", "ring", "--nodes", "many", says=("Invalid value for '--nodes'")),
    command("topology", "ring", "-n", "5", "--weights", "metropolys", says=("weights: unknown",
        "(did you mean 'metropolis'?)")),
    command("topology", "ring", "-n", "5", "--set", "radius=1", says=("radius: unknown key; allowed: nodes")),
    command("topology", "ring", "-n", "5", "--out", "picture.txt",
        says=("--out: the picture cannot be written to picture.txt")),
    command("topology", "none.graphml", says=("none.graphml: no such file")),
    command("topology", "g.edges", says=("g.edges is not connected; its 2 components"), **{"g.edges": "3\n0 1\n"}),
    command("topology", "s.yaml", says=("s.yaml: this scenario has a server and no topology"), **{"s.yaml": SERVER}),
    command("report", "empty", says=("empty"), **{"empty/readme.txt": "no run"}),
    command("report", "nowhere", says=("nowhere")),
]
CASES = [
    *UNKNOWN_KEYS, *NAMES, *TYPES, *RANGES, *MISSING, *TOGETHER, *PARTITIONS, *GRAPHS, *QUADRATICS, *DATA, *MODELS,
    *FILES, *SETTINGS, *SWEEPS, *COMMANDS,
]
# fmt: on


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; what a scenario's own modules add to sys.path is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("\n", " ")[:70])
def test_bad_input_is_answered(
    case: Case, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(case, folder)
    monkeypatch.setattr(sys, "argv", ["fedsim", *case.argv])
    with pytest.raises(SystemExit) as ended:
        main()
    assert_answers(case, ended.value.code, *capsys.readouterr())
    assert not list(folder.glob("runs/*"))


@pytest.mark.parametrize("case", [FILES[-1], SWEEPS[5], GRAPHS[10]], ids=lambda case: case.name)
def test_bad_input_is_answered_by_the_real_command(case: Case, folder: Path) -> None:
    write(case, folder)
    done = subprocess.run(
        [sys.executable, "-m", "fedsim.cli.app", *case.argv], capture_output=True, text=True, check=False
    )
    assert_answers(case, done.returncode, done.stdout, done.stderr)


def test_every_problem_has_its_own_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(FILES[-1], folder)
    monkeypatch.setattr(sys, "argv", ["fedsim", "run", "s.yaml"])
    with pytest.raises(SystemExit):
        main()
    places = [line.split(" found")[0] for line in capsys.readouterr().err.splitlines()]
    assert places == ["s.yaml:2: seed:", "s.yaml:10: model.hidden:", "s.yaml:13: algorithm.lr:"]


def test_one_line_whatever_a_key_or_a_value_is() -> None:
    """Line ends in keys are escaped, and of words of thousands of letters the middle is left out."""
    for change, begins in (
        ({"a\nb": 1}, "a\\nb: unknown key"),
        ({"data": {"dataset": "x" * 5000}}, "data.dataset: unknown dataset 'xxx"),
    ):
        with pytest.raises(InputError) as caught:
            parse(yaml.safe_load(SERVER) | change)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(begins)
        assert len(line) < 500


@pytest.mark.parametrize(
    ("availability", "says"),
    [
        ({"on": 20.0, "off": 10.0}, "allowed: {model: ..., ...} with one of on_off, periodic"),
        ({"model": "on_of"}, "unknown availability 'on_of' (did you mean 'on_off'?)"),
        (5, "found 5, allowed: {model: ..., ...} with one of on_off, periodic"),
    ],
)
def test_a_choice_without_its_key(availability: Any, says: str) -> None:
    values = yaml.safe_load(SERVER) | {"system": {"availability": availability}}
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        parse(values)
    assert caught.value.problems[0].key == "system.availability"
