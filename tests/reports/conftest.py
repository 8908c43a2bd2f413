"""What tests of reports share: runs that are made once for each file."""

from report_runs import recorded, runs  # noqa: F401 (fixtures)
