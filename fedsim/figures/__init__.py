"""Figures: functions that return a matplotlib ``Figure`` and leave saving and closing it to the caller.

They know arrays and words, never runs or scenarios: `reports` and `audit` hand them what they draw. `html` puts
figures and tables on a page of their own. They may import nothing else of fedsim. Start with `curves`.
"""
