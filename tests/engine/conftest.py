"""What tests of a run share: somebody's own measures and loggers, and problems with attackers."""

from attackers_bench import dumbbell, seven  # noqa: F401 (fixtures)
from measures_maker import own  # noqa: F401 (a fixture)
