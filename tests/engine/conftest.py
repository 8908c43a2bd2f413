"""What tests of a run share: somebody's own measures and loggers."""

from measures_maker import own  # noqa: F401 (a fixture)
