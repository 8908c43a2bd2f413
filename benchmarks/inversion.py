"""What gradient inversion makes of 20 digits, with and without a generator, against compression and local noise.

Run with ``python benchmarks/inversion.py``: the audit of ``scenarios/audit-gifd-digits.yaml`` for each defence, as a
table, and what guesses are worth that never looked at a message. Some minutes of one core for each defence.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fedsim
from fedsim.audit.command import audit, write
from fedsim.audit.pictures import measured
from fedsim.audit.reconstruction import HEADINGS, compared
from fedsim.core.arrays import Floats
from fedsim.core.modules import beside
from fedsim.core.registry import load_object

ROOT = Path(__file__).parents[1]
SCENARIO = ROOT / "scenarios" / "audit-gifd-digits.yaml"
DEFENCES: dict[str, list[str]] = {
    "none": [],
    "top_k": ["compression={name: top_k, fraction: 0.05}"],
    "noise": ["privacy={mechanism: local_dp, clip_norm: 1.0, noise_multiplier: 0.015}"],
    "epsilon": ["privacy={mechanism: local_dp, clip_norm: 1.0, epsilon: 8}"],
}
WEAKER = "audit.inverting_gradients.total_variation=1.0e-4"
"""The default weight is too much for pictures of 8 x 8 pixels without noise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("defences", nargs="*", help=f"default: {', '.join(DEFENCES)}")
    parser.add_argument("--out", type=Path, help="a folder for the audits' pages")
    arguments = parser.parse_args()
    print("| defence | " + " | ".join(HEADINGS) + " |\n" + "|---" * (len(HEADINGS) + 1) + "|")
    for name in arguments.defences or DEFENCES:
        report = audit(fedsim.load(SCENARIO, DEFENCES[name]), progress=tell)
        other = audit(fedsim.load(SCENARIO, [*DEFENCES[name], WEAKER]), ["inverting_gradients"], tell)
        found = {done.name: done.finding for done in report.audits}
        lines, _ = compared({**found, "inverting_gradients, total_variation 1e-4": other.audits[0].finding})
        for line in lines:
            print("| " + " | ".join([name, *line]) + " |", flush=True)
        if arguments.out is not None:
            write(report, arguments.out / name)
    originals = [original for original, _ in report.audits[0].finding.reconstructed]
    for name, guesses in blind(originals).items():
        each = [measured(a, b) for a, b in zip(originals, guesses, strict=True)]
        db, ssim = (statistics.median(m[key] for m in each) for key in ("psnr_db", "ssim"))
        print(f"{name}, without a message: PSNR {db:.1f} dB, SSIM {ssim:.3f} (medians)")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def blind(originals: Sequence[Floats]) -> dict[str, list[Floats]]:
    """Guesses that know the class alone: the mean of its images, and what the generator makes of a random code."""
    with beside(SCENARIO.parent):
        images, generator = (load_object(f"digits_generator:{name}") for name in ("images", "generator"))
    x, labels = images(0)
    rows = [int((x == torch.as_tensor(o)).flatten(1).all(1).nonzero()[0]) for o in originals]
    made = generator()
    z = torch.randn(len(rows), *made.latent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = made(z, labels[rows]).double().numpy()
    others, theirs = images()
    return {
        "the mean of the class": [others[theirs == labels[row]].mean(0).double().numpy() for row in rows],
        "a random image of the generator": list(drawn),
    }


if __name__ == "__main__":
    main()
