"""Attacks on what a run gives away: lower bounds on epsilon, membership inference, reconstruction from gradients."""

from fedsim.audit import epsilon, inversion, membership
from fedsim.audit.base import Audit, Finding, Subject
from fedsim.audit.inversion import Reconstruction
from fedsim.audit.observed import Observed

__all__ = ["Audit", "Finding", "Observed", "Reconstruction", "Subject", "epsilon", "inversion", "membership"]
