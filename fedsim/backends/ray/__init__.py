"""Actors of a Ray cluster that hold clients or nodes of a graph; the only place that imports ``ray`` for runs."""
