"""A small generator of 8 x 8 digits: ``generator`` gives it, ``python digits_generator.py`` trains it anew.

It is the decoder of a variational autoencoder (Kingma & Welling, arXiv 1312.6114) that is told the class. The training
data of scikit-learn's digits from row 400 on made it, so clients of a scenario with ``limit: 400`` have images that it
has never seen. Training takes about half a minute of one core, and gives the same numbers on the same machine.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

KEPT_BACK = 400
"""Rows of the training data that the generator does not see."""
WEIGHTS = Path(__file__).with_name("digits_generator.safetensors")
CODE, CLASSES, SIDE = 16, 10, 8
_VARIANCE = 0.02  # of a pixel around what the decoder says: less makes codes exact, more makes them normal


class First(nn.Module):
    """The first layer, which alone is told the classes ``[b]``; codes are ``[b, 16]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.code, self.classes = nn.Linear(CODE, width), nn.Embedding(CLASSES, width)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return functional.silu(self.code(z) + self.classes(labels))


class Generator(nn.ModuleList):
    """From a code to an image ``[b, 1, 8, 8]`` in 0..1, in three layers; `latent` is the shape of a code."""

    latent = (CODE,)

    def __init__(self) -> None:
        hidden = nn.Sequential(nn.Linear(64, 128), nn.SiLU())
        last = nn.Sequential(nn.Linear(128, SIDE * SIDE), nn.Sigmoid(), nn.Unflatten(-1, (1, SIDE, SIDE)))
        super().__init__([First(64), hidden, last])

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        first, hidden, last = self
        made: Tensor = last(hidden(first(z, labels)))
        return made


class Encoder(nn.Module):
    """Means and log variances ``[b, 16]`` of the codes of images and their classes; only training needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(SIDE * SIDE + CLASSES, 128), nn.SiLU(), nn.Linear(128, 2 * CODE))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        given = torch.cat([x.flatten(1), functional.one_hot(labels, CLASSES).to(x.dtype)], 1)
        mean, log_variance = self.body(given).chunk(2, 1)
        return mean, log_variance


def generator() -> Generator:
    """The generator with the weights that lie beside this file."""
    from safetensors.torch import load_file

    made = Generator()
    made.load_state_dict(load_file(WEIGHTS))
    return made


def images(start: int = KEPT_BACK) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 8, 8]`` and classes ``[N]`` of the training data from row `start` on, as scenarios have them."""
    from fedsim.data.sets import Dataset, Digits

    digits = Digits().load(clients=None, seed=0, base=Path())
    assert isinstance(digits, Dataset)
    return digits.train_x[start:], digits.train_y[start:]


def train(x: Tensor, labels: Tensor, steps: int = 6000, seed: int = 0) -> Generator:
    """A generator of images like `x` ``[N, 1, 8, 8]`` of classes ``[N]``; no global generator moves."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        decoder, encoder = Generator(), Encoder()
        optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            mean, log_variance = encoder(x[rows], labels[rows])
            z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
            error = (decoder(z, labels[rows]) - x[rows]).square().sum() / (2 * _VARIANCE)
            divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
            optimizer.zero_grad()
            ((error + divergence) / len(rows)).backward()
            optimizer.step()
            schedule.step()
    return decoder


if __name__ == "__main__":
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    save_file(train(*images()).state_dict(), WEIGHTS)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size:,} bytes")
