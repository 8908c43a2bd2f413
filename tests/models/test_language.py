"""Models of token ids: PyTorch's own layers, causality, every kernel, exports, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.registry import lookup, names
from fedsim.core.tokens import Tokens
from fedsim.models import build, exported
from fedsim.models.build import flatten
from fedsim.models.language import Recurrent, TokenModel
from fedsim.models.losses import loss_function
from fedsim.objective.sequence import SequenceKernel
from fedsim.objective.stacked import RowKernel, VmapKernel, build_kernel

F64 = torch.float64
CROSS = loss_function("cross_entropy")
LAST, EVERY = Tokens(11, True), Tokens(11, True, positions=6)
SMALL: dict[str, dict[str, Any]] = {
    "char_lstm": {"name": "char_lstm", "embedding": 3, "hidden": 5},
    "text_cnn": {"name": "text_cnn", "embedding": 4, "channels": 3, "kernels": [2, 3]},
    "transformer": {"name": "transformer", "width": 8, "heads": 2, "layers": 2},
}
CASES = [(name, tokens) for name in SMALL for tokens in (LAST, EVERY) if (name, tokens) != ("text_cnn", EVERY)]


def made(section: dict[str, Any], tokens: Tokens = LAST, shape: tuple[int, ...] = (6,), outputs: int = 11) -> nn.Module:
    model = part_from("model", "name", section)
    return build.build_model(model, shape, outputs, 3, F64, name=section["name"], tokens=tokens)[0]


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def test_every_model_of_tokens_is_tested() -> None:
    found = {n for n in names("model") if lookup("model", n).__module__ == "fedsim.models.language"}
    assert found == set(SMALL)
    assert all(issubclass(lookup("model", n), TokenModel) for n in found)


def test_leafs_parameters() -> None:
    """Of 80 characters; PyTorch's cells have two biases each where LEAF's have one."""
    cells = 4 * 256 * (8 + 256) + 4 * 256 * (256 + 256) + 2 * 2 * 4 * 256
    module = made({"name": "char_lstm"}, Tokens(80, True), (80,), 80)
    assert sum(p.numel() for p in module.parameters()) == 80 * 8 + cells + 256 * 80 + 80


@pytest.mark.parametrize("name,tokens", CASES)
def test_shapes_and_gradients(name: str, tokens: Tokens) -> None:
    module, x = made(SMALL[name], tokens), ids(4, 6)
    out = module(x)
    assert out.shape == ((4, 11) if tokens.positions is None else (4, 6, 11))
    CROSS(out, ids(4) if tokens.positions is None else ids(4, 6)).sum().backward()
    for key, p in module.named_parameters():
        assert p.grad is not None, key
        assert p.grad.norm() > 1e-9, key


@pytest.mark.parametrize("name", ["char_lstm", "transformer"])
def test_a_position_knows_nothing_of_later_ones(name: str) -> None:
    module, x = made(SMALL[name], EVERY), ids(2, 6)
    y = x.clone()
    y[:, 4:] = (y[:, 4:] + 1) % 11
    assert (module(x)[:, :4] - module(y)[:, :4]).abs().max() <= 1e-12
    assert (module(x)[:, 4:] - module(y)[:, 4:]).abs().max() > 1e-6
    last = made(SMALL[name], LAST)
    assert (last(x) - module(x)[:, -1]).abs().max() <= 1e-12  # one seed, one model


def test_the_cells_of_many_clients_are_pytorchs_lstm() -> None:
    """Outputs and gradients under vmap against ``nn.LSTM`` for each client."""
    own, theirs = Recurrent(3, 5, 2).double(), nn.LSTM(3, 5, 2, batch_first=True).double()
    assert list(own.state_dict()) == list(theirs.state_dict())
    random = torch.Generator().manual_seed(2)
    rows = {k: torch.randn(4, *v.shape, dtype=F64, generator=random) for k, v in own.named_parameters()}
    x = torch.randn(4, 7, 6, 3, dtype=F64, generator=random)
    leaves = {k: v.clone().requires_grad_() for k, v in rows.items()}
    out = vmap(lambda p, batch: functional_call(own, p, (batch,)))(leaves, x)
    (out**3).sum().backward()
    for i in range(4):
        one = {k: v[i].clone().requires_grad_() for k, v in rows.items()}
        expected = functional_call(theirs, one, (x[i],))[0]
        (expected**3).sum().backward()
        assert (out[i] - expected).abs().max() <= 1e-10
        for key, leaf in leaves.items():
            found, wanted = leaf.grad, one[key].grad
            assert found is not None
            assert wanted is not None
            assert (found[i] - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max()))


def test_a_block_is_pytorchs_encoder_layer() -> None:
    torch.manual_seed(0)
    own = exported.Block(8, 2, 12, 0.0).double()
    theirs = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True, dtype=F64)
    pairs = {
        "self_attn.in_proj_": "attended.", "self_attn.out_proj.": "projected.", "linear1.": "wide.",
        "linear2.": "narrow.", "norm1.": "first.", "norm2.": "second.",
    }  # fmt: skip
    state = own.state_dict()
    theirs.load_state_dict({a + k: state[b + k] for a, b in pairs.items() for k in ("weight", "bias")})
    x = torch.randn(3, 6, 8, dtype=F64)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=F64)
    assert (own(x) - theirs(x, src_mask=mask, is_causal=True)).abs().max() <= 1e-10


@pytest.mark.parametrize("name,tokens", CASES)
def test_every_kernel_gives_the_same(name: str, tokens: Tokens) -> None:
    module = made(SMALL[name], tokens)
    rows, stacked = RowKernel(module, CROSS), VmapKernel(module, CROSS)
    x = torch.stack([flatten(module) * (1 + 0.1 * i) for i in range(3)])
    inputs, targets = ids(3, 4, 6), ids(3, 4) if tokens.positions is None else ids(3, 4, 6)
    weights = torch.rand(3, 4, dtype=F64, generator=torch.Generator().manual_seed(4))
    g = rows.grad(x, inputs, targets, weights)
    assert g.norm() > 0
    assert (stacked.grad(x, inputs, targets, weights) - g).abs().max() <= 1e-12
    assert (stacked.outputs(x, inputs[0]) - rows.outputs(x, inputs[0])).abs().max() <= 1e-12
    each = rows.per_sample_grad(x, inputs, targets)
    assert ((each * weights.unsqueeze(-1)).sum(1) - g).abs().max() <= 1e-12


def test_which_kernel_a_cpu_takes() -> None:
    """Measured: with large recurrent layers one client after the other with PyTorch's own LSTM is as fast."""
    sections = {**SMALL, "large": {"name": "char_lstm", "hidden": 64}}
    found = {n: type(build_kernel(made(s), CROSS, torch.device("cpu"), ids(6))) for n, s in sections.items()}
    assert found == {
        "char_lstm": SequenceKernel, "text_cnn": RowKernel, "transformer": SequenceKernel, "large": RowKernel,
    }  # fmt: skip


@pytest.mark.parametrize("name,tokens", CASES)
def test_an_export_describes_its_layers(name: str, tokens: Tokens) -> None:
    module = made(SMALL[name], tokens)
    layers = exported.describe(module)
    assert layers is not None
    again = exported.assemble(layers).double()
    again.load_state_dict(module.state_dict())
    assert (again(ids(3, 6)) - module(ids(3, 6))).abs().max() <= 1e-12
    assert not any(type(m).__module__ == "fedsim.models.language" for m in again.modules())


@pytest.mark.parametrize(
    "section,tokens,shape,key,message",
    [
        ({"name": "text_cnn"}, EVERY, (6,), "name", "one answer per text.*allowed: char_lstm, transformer"),
        ({"name": "text_cnn", "kernels": [3, 9]}, LAST, (6,), "kernels", "found 9, texts have 6 tokens"),
        ({"name": "transformer", "heads": 3}, LAST, (6,), "heads", "found 3, which do not divide a width of 64"),
        ({"name": "transformer", "context": 5}, LAST, (6,), "context", "found 5, the data have 6 positions"),
        ({"name": "char_lstm"}, Tokens(), (6,), "name", "takes token ids .*that are numbers"),
        ({"name": "char_lstm"}, LAST, (2, 6), "name", r"found inputs of shape \[2, 6\]"),
        ({"name": "mlp"}, EVERY, (6,), "name", "one answer per sample, but the data have targets at 6 positions"),
        ({"name": "char_lstm", "loss": "multi_margin"}, EVERY, (6,), "loss", "of one class per sample.*cross_entropy"),
    ],
)
def test_refusals(section: dict[str, Any], tokens: Tokens, shape: tuple[int, ...], key: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        made(section, tokens, shape)
    assert caught.value.problems[0].key == key
