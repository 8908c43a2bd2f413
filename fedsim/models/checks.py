"""What a module must be to serve as a model: a function of its parameters and of one sample, and nothing else.

Results must not depend on how samples and clients are batched, and everything that training changes must be in the flat
parameter vector.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core.errors import InputError
from fedsim.core.tokens import outside, widened
from fedsim.models.draws import Keyed
from fedsim.models.kept import refuse_kept
from fedsim.models.nature import nature_of
from fedsim.models.norms import evaluating, training
from fedsim.models.outputs import logits_of

_LOOKED_AT = 64


def refuse_batch_statistics(module: nn.Module, adapted: bool = False) -> None:
    """Refuse modules whose output for a sample is no function of the parameters and that sample alone.

    One that is `adapted` later needs no parameter that trains.

    Raises
    ------
    InputError
        Parameters that are uninitialised (lazy), empty, complex or integer, two parameters that share their memory
        without being one, or no parameter that trains. The message names the sub-module.
    """
    owners: dict[int, tuple[nn.Parameter, str]] = {}
    _refuse_hooks(module)
    trains = False
    for name, sub in module.named_modules():
        where = f"sub-module '{name}' ({type(sub).__name__})" if name else f"the module ({type(sub).__name__})"
        for key, p in sub.named_parameters(recurse=False):
            _refuse_parameter(f"parameter '{key}' of {where}", p)
            trains |= p.requires_grad
            if p.numel():
                memory, what = p.untyped_storage().data_ptr(), f"parameter '{key}' of {where}"
                owner, its = owners.setdefault(memory, (p, what))
                if owner is not p:
                    raise _refusal(
                        f"{what} shares its memory with {its}; give each its own, or both the same nn.Parameter"
                    )
    for name, b in module.named_buffers():
        if b.numel() and not b.is_meta and b.untyped_storage().data_ptr() in owners:
            its = owners[b.untyped_storage().data_ptr()][1]
            raise _refusal(f"buffer '{name}' shares its memory with {its}; give it its own (clone), or none")
    if not (trains or adapted):
        raise _refusal(f"{type(module).__name__} has no trainable parameters")


def _refuse_hooks(module: nn.Module) -> None:
    """Refuse what changes gradients behind the back of those who take them: many clients' are taken at once."""
    for name, p in module.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise _refusal(f"parameter '{name}' has a hook on its gradient; allowed: none (model.freeze, or a loss)")
    for name, sub in module.named_modules():
        if sub._backward_hooks or sub._backward_pre_hooks:
            where = f"sub-module '{name}'" if name else "the module"
            raise _refusal(f"{where} ({type(sub).__name__}) has a backward hook; allowed: forward hooks")


def typical_rows(train: Tensor, test: Tensor) -> Tensor:
    """Up to four different rows that a model is tried on; of integers also those with the smallest and the largest."""
    rows: Tensor = torch.unique(train[:_LOOKED_AT].flatten(1), dim=0)[:4].view(-1, *train.shape[1:])
    if train.is_floating_point():
        return rows
    ends = [rows]
    for split in (train, test):
        flat = split.flatten(1)
        if len(flat):
            ends += [split[flat.amin(1).argmin()][None], split[flat.amax(1).argmax()][None]]
    return torch.cat([widened(rows) for rows in ends])  # the splits may be stored in different types


@torch.no_grad()
def refuse_foreign_ids(module: nn.Module, rows: Tensor, splits: Mapping[str, Tensor], key: str) -> None:
    """Refuse inputs with ids that the embedding which takes them has no entry for.

    Parameters
    ----------
    rows : some inputs ``[n, ...]``, int64, the smallest and the largest ids among them.
    splits : all inputs, by what to call them.
    key : the one to blame.

    Raises
    ------
    InputError
        It names the first such id, its row, and the embedding.
    """
    takers: list[tuple[str, nn.Embedding]] = []

    def looks(name: str, layer: nn.Embedding) -> Any:
        def before(_: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Tensor) and given[0].shape == rows.shape and torch.equal(given[0], rows):
                takers.append((name, layer))

        return layer.register_forward_pre_hook(before)

    hooks = [looks(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Embedding)]
    try:
        takes(module, rows)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in takers:
        for what, inputs in splits.items():
            if (found := outside(inputs, layer.num_embeddings)) is not None:
                row, wrong = found
                count = layer.num_embeddings
                message = f"found id {wrong} in row {row} of the {what} data, but '{name}' has {count} entries"
                raise InputError(f"{message}; allowed: ids 0 to {count - 1}, or more entries", key=key)


@torch.no_grad()
def takes(module: nn.Module, rows: Tensor) -> bool:
    """Whether a module takes inputs ``[b, ...]`` of this type: an embedding takes integers, a linear layer does not."""
    try:
        with evaluating(module):
            module(rows)
    except Exception:  # a model may refuse them in any way
        return False
    return True


@torch.no_grad()
def try_out(name: str, module: nn.Module, rows: Tensor, num_outputs: int, positions: int | None = None) -> None:
    """Run somebody's own module on some rows of the data: together, and each alone, which must make no difference.

    A module that draws or counts while it trains is asked for what it says in evaluations.

    Parameters
    ----------
    rows : ``[n, *shape]`` in the data's type; integers reach a module that takes none as floats.

    Raises
    ------
    InputError
        It cannot take ``[n, *shape]``, does not give ``[n, num_outputs]`` (``[n, positions, num_outputs]`` with targets
        at several `positions`), gives outputs that are NaN, changes a buffer in evaluations or a parameter at any time,
        draws in a way that cannot be keyed, keeps what is in no buffer, treats a sample differently in a batch, has no
        gradient, or cannot be copied.
    """
    dtype, shape, count = next(module.parameters()).dtype, rows.shape[1:], len(rows)
    x = rows.to(dtype) if rows.is_floating_point() else rows
    kind = str(x.dtype).removeprefix("torch.")
    before = {key: b.clone() for key, b in module.named_buffers()}
    parameters = {key: _state(p) for key, p in module.named_parameters()}
    if not x.is_floating_point() and not takes(module, x) and takes(module, x.to(dtype)):
        x = x.to(dtype)
    untouched = x._version
    try:
        nature = nature_of(module, x)
        plain = nature.plain
        with nullcontext() if plain else evaluating(module):
            together = logits_of(module(x))
            _refuse_changed_inputs(name, x, untouched)
            alone = [logits_of(module(row.unsqueeze(0))) for row in x]
    except InputError:
        raise
    except Exception as error:
        what = f"inputs [b, {', '.join(map(str, shape))}]"
        text = f"'{name}' cannot take {what}: {type(error).__name__}: {error} (tried on rows of {kind})"
        raise InputError(text, key="name") from error
    found = list(together.shape) if isinstance(together, Tensor) else type(together).__name__
    wanted = [count, num_outputs] if positions is None else [count, positions, num_outputs]
    if found != wanted:
        way = "; where an argument of its own says how many, give it as a key" if _more(found, wanted) else ""
        raise InputError(f"'{name}' must give outputs {wanted} for {count} samples, found {found}{way}", key="name")
    if together.isnan().any():
        raise InputError(f"'{name}' gives outputs that are NaN before any training", key="name")
    for key, b in module.named_buffers():
        if key not in before or not torch.equal(b, before[key]):
            raise _refusal(f"buffer '{key}' changes in a forward pass of an evaluation; allowed: while it trains")
    lone = [1, *wanted[1:]]
    if (odd := next((list(v.shape) for v in alone if list(v.shape) != lone), None)) is not None:
        raise _refusal(f"'{name}' gives a sample alone an output of shape {odd}; allowed: {lone}")
    tolerance = torch.finfo(dtype).eps ** 0.5 * float(together.abs().max())
    if not torch.allclose(together, torch.cat(alone), rtol=0, atol=tolerance, equal_nan=True):
        raise _refusal(f"'{name}' gives a sample another output alone than in a batch (randomness, or mixed samples)")
    refuse_kept(name, module, x)
    _refuse_changed_inputs(name, x, untouched)
    for key, p in module.named_parameters():
        now = _state(p)
        if now[1:] != parameters[key][1:]:
            raise _refusal(f"parameter '{key}' changes in a forward pass (as by max_norm); allowed: in steps alone")
        if now[0] != parameters[key][0]:
            raise _refusal(f"parameter '{key}' is frozen or thawed in a forward pass; allowed: when it is made")
    _refuse_without_gradient(name, _copied(name, module), x)


def _state(p: nn.Parameter) -> tuple[bool, int, str, str]:
    """Whether it trains, and what tells whether it was changed: edits of `data` are not counted as versions."""
    now = p.detach()
    return p.requires_grad, p._version, repr(float(now.sum())), repr(float(now.abs().sum()))  # texts: NaN is as NaN


def _refuse_changed_inputs(name: str, x: Tensor, version: int) -> None:
    if x._version != version:
        raise _refusal(f"'{name}' changes its inputs in place, which are the data; allowed: a copy of them (x.clone())")


def _copied(name: str, module: nn.Module) -> nn.Module:
    """A copy with the same tensors, as threads compute with, of a module that has computed."""
    shared = {id(v): v for v in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # what a module has besides tensors may be anything
        text = f"'{name}' cannot be copied ({type(error).__name__}: {error}); allowed: what copy.deepcopy can copy"
        raise _refusal(text) from error


def _refuse_without_gradient(name: str, module: nn.Module, rows: Tensor) -> None:
    """Refuse a module through which no gradient comes back, or a sparse one."""
    params = {key: p.detach().requires_grad_() for key, p in module.named_parameters() if p.requires_grad}
    buffers = {key: b.clone() for key, b in module.named_buffers()}
    training(module, True)
    try:
        with torch.enable_grad(), Keyed(0):
            out = logits_of(functional_call(module, {**params, **buffers}, (rows,)))
        with torch.enable_grad():
            grads = torch.autograd.grad(out.square().sum(), list(params.values()), allow_unused=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise _refusal(f"'{name}' has no gradient by its parameters: {type(error).__name__}: {reason}") from error
    for key, g in zip(params, grads, strict=True):
        if g is not None and g.layout is not torch.strided:
            raise _refusal(f"parameter '{key}' has a sparse gradient; allowed: sparse=False")


def _more(found: list[int] | str, wanted: list[int]) -> bool:
    """Whether outputs differ in nothing but in how many there are of each."""
    return isinstance(found, list) and found[:-1] == wanted[:-1]


def _refuse_parameter(what: str, p: nn.Parameter) -> None:
    if nn.parameter.is_lazy(p) or p.is_meta:
        raise _refusal(f"{what} is not initialised; give the layer its input size")
    if not p.numel():
        raise _refusal(f"{what} has the shape {list(p.shape)}, without a number; allowed: at least one in and one out")
    if not p.is_floating_point():
        raise _refusal(f"{what} is {str(p.dtype).removeprefix('torch.')}; parameters are real floating-point numbers")


def _refusal(message: str) -> InputError:
    return InputError(message, key="name")
