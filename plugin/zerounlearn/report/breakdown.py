"""What lies behind a study's means: the facts one by one, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from zerounlearn.report.canvas import INK, LABEL, Look, Plot, bare, figure, saved, short, style
from zerounlearn.report.table import BASE, Table

_FACTS = 40
"""Facts of a heat map that a page still shows readably."""
_COLUMNS = 40
"""Columns that a page's width has room for; with more methods these are the rows, of which there may be any number."""


def heat_map(facts: pd.DataFrame, methods: Sequence[str], name: str) -> Plot | None:
    """Facts of one data set and size against methods: the sensitive answer's probability, a dot where it is said."""
    if facts.empty:
        return None
    key = ["prompt", "answer"]
    after = facts.pivot_table("probability_after", key, "method", aggfunc="mean", sort=True)
    said = facts.astype({"said_after": float}).pivot_table("said_after", key, "method", aggfunc="mean", sort=True)
    base = facts.astype({"said_before": float}).groupby(key, sort=True)[["probability_before", "said_before"]].mean()
    present = [m for m in methods if m in after.columns]
    p = pd.concat([base["probability_before"].rename(BASE), after[present]], axis=1).to_numpy()
    s = pd.concat([base["said_before"].rename(BASE), said[present]], axis=1).to_numpy()
    names = [f"{prompt} → {answer}" for prompt, answer in base.index]
    everything = len(names)
    # The hardest first: what is still there after most methods.
    order = np.argsort(-np.nan_to_num(np.nanmean(p[:, 1:], axis=1)), kind="stable")[:_FACTS]
    p, s, names = p[order], s[order], [names[i] for i in order]
    across = ("method", 7.5, [short(label, LABEL) for label in (BASE, *present)])
    down = ("fact", 6.5, [short(text, 56) for text in names])
    if len(across[2]) > _COLUMNS:
        across, down, p, s = down, across, p.T, s.T
    with style():
        drawn = figure(1.3 + 0.17 * len(down[2]) + 0.055 * max(len(head) for head in across[2]))
        axes = drawn.add_subplot()
        colours = mpl.colormaps["cividis"].resampled(20)
        mesh = axes.pcolormesh(p, cmap=colours, vmin=0.0, vmax=1.0, edgecolors="white", linewidth=0.4)
        rows, columns = np.nonzero(s >= 0.5)
        dots = ["black" if p[i, j] > 0.55 else "white" for i, j in zip(rows, columns, strict=True)]
        axes.scatter(columns + 0.5, rows + 0.5, s=7, c=dots, linewidths=0)
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(across[2])) + 0.5, across[2], rotation=90, fontsize=across[1])
        axes.set_yticks(np.arange(len(down[2])) + 0.5, down[2], fontsize=down[1])
        axes.set_xlabel(across[0])
        axes.set_ylabel(down[0])
        bare(axes)
        bar = drawn.colorbar(
            mesh, ax=axes, label="probability of the sensitive answer", fraction=0.05, aspect=30,
            shrink=min(1.0, 7.0 / drawn.get_figheight()), anchor=(0.0, 1.0),
        )  # fmt: skip
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
        bar.outline.set_visible(False)
        cut = (
            f" The {len(names)} of {everything} facts that are likeliest after all methods."
            if order.size < everything
            else ""
        )
        return saved(
            drawn,
            name,
            f"Probability of {len(names)} sensitive answers, before and after {len(present)} methods.",
            "Each fact's sensitive answer: its probability, mean over the seeds that drew it; a dot where it is still "
            f"said (by half of those seeds or more); empty where it was not measured.{cut}",
        )


def time_bars(table: Table, looks: Mapping[str, Look], name: str) -> Plot | None:
    """Seconds of unlearning and of evaluation by method, from a table of costs; None where nothing was timed."""
    metrics = ("unlearn_seconds", "evaluate_seconds")
    rows = [row for row in table.rows if any(table.entry(row, m) for m in metrics)]
    if not rows:
        return None
    with style():
        drawn = figure(0.9 + 0.36 * len(rows))
        axes = drawn.add_subplot()
        for k, metric in enumerate(metrics):
            for i, row in enumerate(rows):
                e = table.entry(row, metric)
                if e is None or not math.isfinite(e.mean):
                    continue
                bar = axes.barh(
                    i + 0.19 * (2 * k - 1), e.mean, 0.34, xerr=e.sd, color=looks[row.label].colour,
                    alpha=(1.0, 0.45)[k], hatch=("", "////")[k], edgecolor=INK, linewidth=0.5,
                    error_kw={"ecolor": INK, "elinewidth": 0.8},
                )  # fmt: skip
                # Beside the error bar, not on it.
                axes.annotate(
                    f"{e.shown} s", (e.mean + (e.sd or 0.0), bar[0].get_y() + 0.17), (4, 0),
                    textcoords="offset points", va="center", fontsize=7,
                )  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(row.label, LABEL) for row in rows])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set_xlabel("seconds a forget set")
        axes.set_ylabel("method")
        kinds = [Patch(facecolor="#7f7f7f", edgecolor=INK), Patch(facecolor="#bfbfbf", edgecolor=INK, hatch="////")]
        drawn.legend(kinds, ["unlearning", "evaluation"], loc="outside upper right", ncols=2)
        return saved(
            drawn,
            name,
            f"Seconds of unlearning and evaluation by method on {table.dataset}, n = {table.n}.",
            "Wall-clock time, mean ± standard deviation over seeds.",
        )
