"""The look of plots: colours that everyone can tell apart, and room for the curves."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")    # Okabe and Ito 2008
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")             # a new one when the colours are used up
STYLE = {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
         "axes.axisbelow": True, "lines.solid_capstyle": "round",
         "figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.08}     # inches
WIDTH = 10                                  # of the picture, in inches
