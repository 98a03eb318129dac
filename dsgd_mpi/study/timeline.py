"""Who computes, who talks to whom and waits for whom: the first moments of a simulated run, a line a rank.

An arrow is a message, from when it is sent to when it has arrived; a line with a dot for each of its ranks is what
these then had together: a mean, or one rank's values. A wait for other ranks has two parts: until the last has come,
from which a thin line leads to those that wait, and then until the data are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dsgd_mpi.net.simulated.spans import Span, Travel
from dsgd_mpi.study.style import COLOURS, STYLE, canvas

KINDS = {"compute": ("computes", COLOURS[0]), "wait": ("waits for others", COLOURS[1]),
         "network": ("data on their way", COLOURS[5]), "one-sided": ("one-sided call", COLOURS[2]),
         "dead": ("is dead", "0.8")}         # drawn over what it does not do meanwhile
MOST_RANKS = 32                             # that a picture shows
THICK = 0.8                                 # of a line of the picture
MOST_TRAVELS = 400                          # that it shows; more would be a grey sheet


def parts(spans: Iterable[Span]) -> list[tuple[int, str, float, float, int | None]]:
    """rank, kind, begin, end, and the rank that was waited for: the spans, waits divided when the last peer came.

    Of the first MOST_RANKS ranks.
    """
    found: list[tuple[int, str, float, float, int | None]] = []
    for rank, what, begin, end, last in spans:
        if rank >= MOST_RANKS:
            continue
        if last is None:
            found.append((rank, what, begin, end, None))
            continue
        came, who = last
        if came > begin:
            found.append((rank, "wait", begin, came, who))
        if end > max(came, begin):
            found.append((rank, "network", max(came, begin), end, None))
    return found


def draw(spans: Iterable[Span], travels: Iterable[Travel], title: str, path: Path, until_s: float) -> None:
    """A picture, up to that simulated time."""
    from matplotlib import style
    from matplotlib.patches import Patch

    found = parts(spans)
    ranks = sorted({rank for rank, *_ in found})
    with style.context(["default", STYLE, {"axes.grid": False}]):
        figure, ((axes,),) = canvas(1, 1, 1.4 + 0.34 * len(ranks))
        for kind, (_, colour) in KINDS.items():
            for rank in ranks:
                bars = [(begin, end - begin) for at, what, begin, end, _ in found if (at, what) == (rank, kind)]
                axes.broken_barh(bars, (rank - THICK / 2, THICK), facecolors=colour, linewidth=0)
        for rank, _, _, end, waited_for in found:
            if waited_for is not None and waited_for in ranks:
                axes.plot([end, end], [waited_for, rank], color=COLOURS[6], linewidth=0.6, marker=".", markersize=3,
                          markevery=[0])
        shown = [each for each in travels if each.end <= until_s and max(each.ranks) < len(ranks)]
        for together, between, begin, end in shown if len(shown) <= MOST_TRAVELS else ():
            if together:
                axes.plot([end] * len(between), between, color="black", linewidth=0.8, marker="o", markersize=3)
            else:
                axes.annotate("", (end, between[1]), (begin, between[0]), arrowprops={
                    "arrowstyle": "-|>", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7,
                    "color": "black"})
        axes.set(xlim=(0, until_s), ylim=(len(ranks) - 0.4, -0.6), xlabel="simulated seconds", ylabel="rank",
                 yticks=ranks)
        axes.set_title(title, loc="left", fontsize="medium")
        seen = {kind for _, kind, *_ in found}
        figure.legend(handles=[Patch(color=colour, label=label) for kind, (label, colour) in KINDS.items()
                               if kind in seen], loc="outside lower center", ncols=len(seen), frameon=False)
        figure.savefig(path, dpi=150)
