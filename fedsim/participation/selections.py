"""All selections of clients; importing this module registers them."""

from fedsim.participation import oort, power_of_choice

__all__ = ["oort", "power_of_choice"]
