"""Attacks on what a run gives away: lower bounds on epsilon, membership inference, reconstruction from gradients."""

from fedsim.audit import epsilon, membership
from fedsim.audit.base import Audit, Finding, Subject

__all__ = ["Audit", "Finding", "Subject", "epsilon", "membership"]
