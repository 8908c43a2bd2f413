"""Attacks on what a run gives away: lower bounds on epsilon, membership inference, reconstruction from gradients.

`base` says what an audit is, `observed` what an attacker sees of a run, `canaries` and `epsilon` bound epsilon from
below, `membership` and `influence` ask who was in the data, `inversion` rebuilds inputs. They may import the engine
and what is below. Start with `base`.
"""

from fedsim.audit import epsilon, inversion, membership
from fedsim.audit.base import Audit, Finding, Subject
from fedsim.audit.inversion import Reconstruction
from fedsim.audit.observed import Observed

__all__ = ["Audit", "Finding", "Observed", "Reconstruction", "Subject", "epsilon", "inversion", "membership"]
