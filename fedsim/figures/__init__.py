"""Figures: functions that return a matplotlib ``Figure`` and leave saving and closing it to the caller."""
