"""Attacks on what a run gives away: lower bounds on epsilon, membership inference, reconstruction from gradients.

`base` says what an audit is, `observed` what an attacker sees of a run, `canaries` and `epsilon` bound epsilon from
below, `membership` and `influence` ask who was in the data, `inversion` and, with a generator, `generative` rebuild
inputs. They may import the engine and what is below. Start with `base`.
"""

from fedsim.audit import epsilon, generative, inversion, membership
from fedsim.audit.base import Audit, Finding, Subject
from fedsim.audit.observed import Observed
from fedsim.audit.reconstruction import Guess, Reconstruction

__all__ = [
    "Audit",
    "Finding",
    "Guess",
    "Observed",
    "Reconstruction",
    "Subject",
    "epsilon",
    "generative",
    "inversion",
    "membership",
]
