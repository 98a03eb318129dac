"""The look of plots: colours that everyone can tell apart, and room for the curves."""

from __future__ import annotations

from typing import Any

from dsgd_mpi.errors import UsageError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")    # Okabe and Ito 2008
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")             # a new one when the colours are used up
STYLE = {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
         "axes.axisbelow": True, "lines.solid_capstyle": "round",
         "figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.08}     # inches
WIDTH = 10                                  # of the picture, in inches


def require_matplotlib() -> None:
    """UsageError if it is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("plotting needs matplotlib; pip install 'dsgd_mpi[plot]'") from None


def canvas(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """A figure of that height in inches, and its panels, an array (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # log-in nodes have no display
    from matplotlib.figure import Figure
    figure = Figure((WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
