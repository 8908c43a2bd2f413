"""The figure that all pictures are drawn on: it belongs to no pyplot state, and notebooks show it."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class Drawing(Figure):
    """A matplotlib figure that a notebook shows as a picture, also where nothing has imported pyplot.

    Jupyter knows how to show matplotlib's own figures only once pyplot is imported, and shows their ``repr`` before.
    """

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()
