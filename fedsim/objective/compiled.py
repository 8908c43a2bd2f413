"""One client's SGD steps of a chain of linear layers, without Python between the operators.

A step of a small model is a dozen operators of some microseconds. Between two of them Python takes as long again, and
threads wait for its lock. TorchScript runs all operators of a step, and all steps of a client's round, in one call that
holds no lock, and the client's model stays in a core's own cache meanwhile. PyTorch keeps TorchScript as it is and will
not extend it; where it cannot compile them (Python 3.14), the same functions run as Python: the numbers are the same
bit for bit, they take longer. A row's numbers do not depend on the rows beside it either.

Samples are columns here: a layer's output is ``W h + b`` ``[k, b]``, for which matrix products are faster where there
are more outputs than samples.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import List, Optional, Self  # noqa: UP035 - TorchScript knows no others

import torch
from torch import Tensor, nn

from fedsim.core import crew
from fedsim.core.rules import AdamRule, Climb, HeavyBall, Rule
from fedsim.models.losses import Loss, cross_entropy, logistic, mse
from fedsim.objective.kernel import Walk

_FEW = 3  # rows, of which one after the other is faster than a dozen operators on all of them
_WORK = 2**18  # parameters times samples, from which on that is so of any number of rows; of more layers their square
_READ = 8  # samples whose products take as long as it does to go over the parameters
_PORTION = 2**23  # of work: a millisecond or less, for which waking another thread pays
_CALL = 2**31  # of work in one call at most: a tenth of a second, in which nothing can interrupt it
_STEP = 2**20  # of work in whose time a step's operators begin
_EARLY = 1000  # steps that Python takes before anything is compiled, in about the time that compiling takes
_TARGETS = 2**9  # of work that an output of a sample counts for: a call writes one matrix of targets for all its steps

_POINTWISE: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Tanh: 2, nn.Sigmoid: 3}
_LOSSES: dict[Loss, int] = {cross_entropy: 0, mse: 1, logistic: 2}


def _pass(
    weights: List[Tensor],  # noqa: UP006
    biases: List[Optional[Tensor]],  # noqa: UP006, UP045
    into: List[Tensor],  # noqa: UP006
    into_biases: List[Optional[Tensor]],  # noqa: UP006, UP045
    keep: float,
    pointwise: List[int],  # noqa: UP006
    loss: int,
    inputs: Tensor,
    targets: Tensor,
    scale: Tensor,
    ones: Tensor,
) -> None:
    """Forward and backward of a minibatch ``[b, n]``; a layer's gradient is added to `keep` times what is in its place.

    Targets are numbers ``[k, b]``, of classes 1 for the right one and 0 for the others, or signs ``[1, b]``; `scale`
    ``[b]`` or ``[1]`` is what each sample's loss counts, and `ones` are ``[b, 1]``.
    """
    few = inputs.size(0) < 16  # as columns, products of fewer samples take longer
    h = inputs.t()
    tape = [h]
    for i in range(len(weights)):
        bias = biases[i]
        if few:
            h = (
                torch.mm(h.t(), weights[i].t()).t()
                if bias is None
                else torch.addmm(bias.t(), h.t(), weights[i].t()).t()
            )
        else:
            h = torch.mm(weights[i], h) if bias is None else torch.addmm(bias, weights[i], h)
        if pointwise[i] == 1:
            h = h.relu_()
        elif pointwise[i] == 2:
            h = h.tanh_()
        elif pointwise[i] == 3:
            h = h.sigmoid_()
        tape.append(h)
    if loss == 0:
        dy = torch.softmax(h.contiguous(), 0).sub_(targets).mul_(scale)
    elif loss == 1:
        dy = h.sub(targets).mul_(2.0 / h.size(0)).mul_(scale)
    else:
        dy = torch.sigmoid(h.mul(targets).neg_()).mul_(targets).mul_(scale.neg())
    for j in range(len(weights)):
        i = len(weights) - 1 - j
        if pointwise[i] == 1:
            dy = torch.ops.aten.threshold_backward(dy, tape[i + 1], 0)
        elif pointwise[i] == 2:
            dy = torch.ops.aten.tanh_backward(dy, tape[i + 1])
        elif pointwise[i] == 3:
            dy = torch.ops.aten.sigmoid_backward(dy, tape[i + 1])
        below = dy
        if i > 0:
            below = torch.mm(dy.t(), weights[i]).t() if few else torch.mm(weights[i].t(), dy)
        before = tape[i].t()
        if before.size(0) > 1:
            into[i].addmm_(dy, before, beta=keep)
        else:
            if keep == 0.0:
                into[i].zero_()
            elif keep != 1.0:
                into[i].mul_(keep)
            into[i].addcmul_(dy, before)
        bias = into_biases[i]
        if bias is not None:
            bias.addmm_(dy, ones, beta=keep)  # half as long as a sum and what it is added to
        dy = below


def _parts(
    row: Tensor,
    sizes: List[int],  # noqa: UP006
    biased: List[bool],  # noqa: UP006
) -> tuple[List[Tensor], List[Optional[Tensor]]]:  # noqa: UP006, UP045
    """Weights ``[k, n]`` and biases ``[k, 1]`` of the layers between `sizes` numbers, as views of a row ``[d]``."""
    weights: List[Tensor] = []  # noqa: UP006
    biases: List[Optional[Tensor]] = []  # noqa: UP006, UP045
    at = 0
    for i in range(len(biased)):
        n, k = sizes[i], sizes[i + 1]
        weights.append(row[at : at + n * k].view(k, n))
        at += n * k
        if biased[i]:
            biases.append(row[at : at + k].unsqueeze(1))
            at += k
        else:
            biases.append(None)
    return weights, biases


def _walk(
    x: Tensor,
    start: Optional[Tensor],  # noqa: UP045
    remembered: List[Tensor],  # noqa: UP006
    shift: Optional[Tensor],  # noqa: UP045
    lr: float,
    kind: int,
    numbers: List[float],  # noqa: UP006
    decay: float,
    factor: float,
    clip: float,
    rho: float,
    unit: bool,
    share: float,
    sizes: List[int],  # noqa: UP006
    biased: List[bool],  # noqa: UP006
    pointwise: List[int],  # noqa: UP006
    loss: int,
    inputs: Tensor,
    index: Optional[Tensor],  # noqa: UP045
    targets: Tensor,
    scale: Tensor,
) -> None:
    """Steps of x ``[d]`` in place, one minibatch after the other: rows ``index[step]`` of the inputs ``[N, ...]``.

    Of kind 0 is a step of plain SGD; of kind 1 `HeavyBall`'s with momentum, of kind 2 with Nesterov's, where b is
    remembered and `numbers` are the momentum; of kind 3 `AdamRule`'s, where m and s are remembered and `numbers` are
    beta1, beta2, eps, shrink and the steps before. `factor` is what the rule multiplies the gradient with, a `clip` of
    0 is none, and a `rho` of 0 no `Climb`, whose other numbers are `unit` and `share`. Targets are ``[steps, ...]``,
    classes ``[steps, b]``, and so is `scale`: what each sample counts in the gradient, or in the step where a step of
    plain SGD is added to the parameters as it is.
    """
    own = x.clone() if start is None else start.clone()  # where rows lie, products may round otherwise
    weights, biases = _parts(own, sizes, biased)
    wanted = targets
    if loss == 0:  # of all steps at once: dozens of single numbers take longer to write than a small matrix to subtract
        wanted = own.new_zeros([targets.size(0), sizes[-1], targets.size(1)])
        wanted.scatter_(1, targets.unsqueeze(1), 1.0)
    ones = own.new_ones([targets.size(-1), 1])
    if clip > 0.0 or kind > 1 or rho != 0.0:
        g = torch.empty_like(own)
        into, into_biases = _parts(g, sizes, biased)
        above = own if rho == 0.0 else torch.empty_like(own)
        weights_above, biases_above = _parts(above, sizes, biased)
        for step in range(targets.size(0)):
            seen = (inputs if index is None else inputs.index_select(0, index[step])).flatten(1)
            to, each = wanted[step], scale[step]
            _pass(weights, biases, into, into_biases, 0.0, pointwise, loss, seen, to, each, ones)
            if rho != 0.0:
                torch.add(own, g, alpha=rho / (float(torch.linalg.vector_norm(g)) + 1e-7) if unit else rho, out=above)
                each = each if share == 1.0 else each * share
                if kind == 0 and clip == 0.0:  # added to the parameters as it is
                    keep, each = 1.0 - lr * decay, each * (-lr * factor)
                    _pass(weights_above, biases_above, weights, biases, keep, pointwise, loss, seen, to, each, ones)
                    if share != 1.0:
                        own.add_(g, alpha=-lr * factor * (1.0 - share))
                    if shift is not None:
                        own.add_(shift, alpha=-lr)
                    continue
                keep = 1.0 - share
                _pass(weights_above, biases_above, into, into_biases, keep, pointwise, loss, seen, to, each, ones)
            if clip > 0.0:
                shorter = clip / max(float(torch.linalg.vector_norm(g)), 1e-12)
                if not (shorter >= 1.0):  # nan as well
                    g.mul_(shorter)
            if factor != 1.0:
                g.mul_(factor)
            if decay != 0.0:
                g.add_(own, alpha=decay)
            if shift is not None:
                g.add_(shift)
            if kind == 3:
                if numbers[3] != 0.0:
                    own.mul_(1.0 - lr * numbers[3])
                m, s, t = remembered[0], remembered[1], numbers[4] + float(step + 1)
                m.lerp_(g, 1.0 - numbers[0])
                s.mul_(numbers[1]).addcmul_(g, g, value=1.0 - numbers[1])
                below = torch.div(s, 1.0 - numbers[1] ** t, out=g).sqrt_().add_(numbers[2])
                own.addcdiv_(m, below, value=-lr / (1.0 - numbers[0] ** t))
            elif kind > 0:
                ball = remembered[0].mul_(numbers[0]).add_(g)
                if kind == 2:
                    own.add_(g.add_(ball, alpha=numbers[0]), alpha=-lr)
                else:
                    own.add_(ball, alpha=-lr)
            else:
                own.add_(g, alpha=-lr)
    elif kind == 0:
        keep = 1.0 - lr * decay
        for step in range(targets.size(0)):
            seen = (inputs if index is None else inputs.index_select(0, index[step])).flatten(1)
            _pass(weights, biases, weights, biases, keep, pointwise, loss, seen, wanted[step], scale[step], ones)
            if shift is not None:
                own.add_(shift, alpha=-lr)
    else:
        rolling, keep = remembered[0].clone(), numbers[0]
        into, into_biases = _parts(rolling, sizes, biased)
        for step in range(targets.size(0)):
            seen = (inputs if index is None else inputs.index_select(0, index[step])).flatten(1)
            _pass(weights, biases, into, into_biases, keep, pointwise, loss, seen, wanted[step], scale[step], ones)
            if decay != 0.0:
                rolling.add_(own, alpha=decay)
            if shift is not None:
                rolling.add_(shift)
            own.add_(rolling, alpha=-lr)
        remembered[0].copy_(rolling)
    x.copy_(own)


_BALL, _NESTEROV, _ADAM = 1, 2, 3  # kinds of rules

_compiling = threading.Lock()
_taken = 0  # steps, until there are enough of them


def _scripted(function: Callable[..., None]) -> Callable[..., None]:
    """The function by TorchScript, its operators as they are: what optimising them takes, small models never gain."""
    script = torch.jit.script(function)
    as_it_is = partial(torch.jit.optimized_execution, False)  # type: ignore[attr-defined]

    def call(*arguments: object) -> None:
        with as_it_is():
            script(*arguments)

    return call


@cache
def _compiled() -> Callable[..., None]:
    """`_walk` by TorchScript."""
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return _scripted(_walk)
    except Exception as error:  # whatever a Python or a PyTorch that no longer has it makes of that
        warnings.warn(f"small models train slower: TorchScript fails with {type(error).__name__}", stacklevel=2)
        return _walk


def _function(steps: int) -> Callable[..., None]:
    """What takes the process's next `steps`: Python at first, for a run may be over before compiling has paid."""
    global _taken
    with _compiling:
        _taken += steps
        return _walk if _taken <= _EARLY else _compiled()


def _numbers(rule: Rule) -> tuple[int, tuple[str, ...], list[float]]:
    """The kind of a rule, the names of what it remembers ``[m, d]``, and its numbers, as `_walk` wants them."""
    if isinstance(rule, AdamRule):
        return _ADAM, ("m", "s"), [rule.beta1, rule.beta2, rule.eps, rule.shrink]
    assert isinstance(rule, HeavyBall)
    if rule.momentum == 0:
        return 0, (), [0.0]
    return _NESTEROV if rule.nesterov else _BALL, ("b",), [rule.momentum]


@dataclass(frozen=True)
class CompiledChain:
    """A chain ``Linear, pointwise, Linear, ...`` as the functions above want to be told of it."""

    sizes: list[int]
    biased: list[bool]
    pointwise: list[int]
    loss: int
    total: int
    """Parameters."""

    @classmethod
    def of(cls, chain: Sequence[nn.Module], loss: Loss) -> Self | None:
        """None where a layer or the loss is another one."""
        sizes: list[int] = []
        biased: list[bool] = []
        pointwise: list[int] = []
        for layer in chain:
            if isinstance(layer, nn.Linear):
                outputs, inputs = layer.weight.shape  # `in_features` stays where another weight is put in its place
                sizes = [*(sizes or [inputs]), outputs]
                biased.append(layer.bias is not None)
                pointwise.append(0)
            elif type(layer) in _POINTWISE and pointwise and not pointwise[-1]:
                pointwise[-1] = _POINTWISE[type(layer)]
            else:
                return None
        if loss not in _LOSSES or (loss is logistic and sizes[-1] != 1):
            return None
        total = sum(n * k + b * k for n, k, b in zip(sizes, sizes[1:], biased, strict=False))
        return cls(sizes, biased, pointwise, _LOSSES[loss], total)

    def takes(self, x: Tensor, inputs: Tensor) -> bool:
        """Whether it can compute on models x ``[m, d]`` and such inputs."""
        return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and inputs.dtype == x.dtype

    def walks(self, rows: int, samples: int) -> bool:
        """Whether steps of one row after the other are faster than steps of all rows at once, by sizes alone."""
        work = self.total * (samples + _READ)
        return rows <= _FEW or work >= _WORK * len(self.biased) ** 2

    def follows(self, rule: Rule) -> bool:
        """Whether it can take steps by that rule: one of the known kinds in all that it does."""
        return type(rule) in (HeavyBall, AdamRule) and type(rule.climb) in (type(None), Climb)

    def walk(self, x: Tensor, inputs: Tensor, walk: Walk, lr: Tensor, start: Tensor | None) -> None:
        """As `Kernel.walk`, by a rule that it `follows`."""
        index, rule = walk.index, walk.rule
        kind, names, numbers = _numbers(rule)
        kept = [walk.remembered[name] for name in names]
        before = walk.remembered["t"][:, 0].tolist() if kind == _ADAM else None
        climb = rule.climb or Climb(0.0)
        at_once = rule.clip is None and climb.rho == 0  # a gradient may be scaled before anything is made of it
        folded, factor = (rule.scale, 1.0) if at_once else (1.0, rule.scale)
        how = (rule.decay, factor, rule.clip or 0.0, climb.rho, climb.normalize, climb.share)
        count = walk.weights * folded
        count = count if isinstance(count, Tensor) else x.new_full((1, 1, 1), count)
        scale = (-lr.unsqueeze(-1) * count if at_once and not kind else count).expand(len(x), walk.targets.shape[1], -1)
        shifts = None if rule.shift is None else rule.shift.expand_as(x)
        rates = lr[:, 0].tolist()
        steps, samples = walk.targets.shape[1:3]
        function, wanted = _function(len(x) * steps), self._wanted(walk.targets, x.dtype)
        each = self.total * (samples + _READ) + _STEP + samples * self.sizes[-1] * _TARGETS
        most = max(1, _CALL // (each if climb.rho == 0 else 2 * each))
        ended: list[bool] = []

        def one(i: int) -> None:
            begin, shift = (None if rows is None else rows[i] for rows in (start, shifts))
            own = [rows[i] for rows in kept]
            try:
                for first in range(0, steps, most):
                    part = slice(first, first + most)
                    now = numbers if before is None else [*numbers, before[i] + first]
                    function(
                        x[i], begin, own, shift, rates[i], kind, now, *how, self.sizes, self.biased, self.pointwise,
                        self.loss, inputs, None if index is None else index[i, part], wanted[i, part], scale[i, part],
                    )  # fmt: skip
                    begin = None
                    if ended:  # another row's thread is interrupted, or fails
                        return
            except BaseException:
                ended.append(True)
                raise

        self._each(one, len(x), steps * samples)
        if before is not None:
            walk.remembered["t"].add_(steps)

    def _wanted(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets ``[m, steps, b, ...]`` as `_walk` wants them: classes, or columns of numbers."""
        if self.loss == 0:
            return targets
        numbers = targets.reshape(*targets.shape[:3], self.sizes[-1]).to(dtype)
        return (numbers if self.loss == 1 else 2 * numbers - 1).mT

    def _each(self, one: Callable[[int], None], rows: int, samples: int) -> None:
        """Do `one` to every row, by all threads where there is work enough."""

        def some(part: slice) -> None:
            for i in range(part.start, part.stop):
                one(i)

        work = rows * self.total * (samples + _READ)
        crew.each([partial(some, part) for part in crew.even(rows, min(rows, work // _PORTION))])
