"""Who works, when and how much."""
