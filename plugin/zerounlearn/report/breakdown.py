"""What lies behind a study's means: the facts one by one, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from zerounlearn.report.canvas import INK, LABEL, Plot, bare, colour, figure, saved, short, style
from zerounlearn.report.table import BASE, Table

_FACTS = 40
"""Facts that a page still shows readably."""
_COLUMNS = 40
"""Columns that a page's width has room for; with more methods these are the rows, of which there may be any number."""
_KEY = ["prompt", "answer"]


def hardest(facts: pd.DataFrame) -> pd.DataFrame:
    """Those rows of `Frames.facts` that are of the facts likeliest after all methods; the likeliest come first."""
    own = facts[facts["wording"] == facts["prompt"]]
    order = own.groupby(_KEY)["probability_after"].mean().sort_values(ascending=False, kind="stable").index[:_FACTS]
    ranked = facts.set_index(_KEY).loc[order] if len(order) else facts.set_index(_KEY)
    return ranked.reset_index()


def one_by_one(facts: pd.DataFrame, methods: Sequence[str]) -> dict[str, str]:
    """By each of the `hardest` facts' prompt and answer an HTML table of what every method leaves of it.

    A row a method and seed, the base model's first: the completion and, of the prompt and each paraphrase, whether the
    sensitive answer is said, with its probability.
    """
    tables = {}
    for (prompt, answer), own in hardest(facts).groupby(_KEY, sort=False):
        once = own.drop_duplicates(["method", "seed", "wording"])
        last = once.assign(method=pd.Categorical(once["method"], methods, ordered=True))
        phases = {"before": last.drop_duplicates(["seed", "wording"]).assign(method=BASE), "after": last}
        parts = []
        for phase, rows in phases.items():
            verdict = rows[f"said_{phase}"].map({True: "said", False: "not said"})
            shown = rows.assign(shown=verdict + rows[f"probability_{phase}"].map(" ({:.3f})".format))
            wide = shown.pivot(index=["method", "seed"], columns="wording", values="shown")
            wide = wide[list(dict.fromkeys(own["wording"]))]
            texts = rows[rows["wording"] == prompt].set_index(["method", "seed"])[f"completion_{phase}"]
            wide.insert(0, "completion", texts.map(lambda text: " ".join(text.split()), na_action="ignore"))
            parts.append(wide.reset_index().astype({"method": str}).rename_axis(columns=None))
        with pd.option_context("display.max_colwidth", None):
            html = pd.concat(parts).fillna("–").to_html(index=False, border=0, classes="words facts")
        tables[f"{prompt} → {answer}"] = html
    return tables


def heat_map(facts: pd.DataFrame, methods: Sequence[str], name: str) -> Plot | None:
    """Facts of one data set and size against methods: the sensitive answer's probability, a dot where it is said."""
    if facts.empty:
        return None
    everything = len(facts[_KEY].drop_duplicates())
    chosen = hardest(facts)
    chosen = chosen[chosen["wording"] == chosen["prompt"]].astype({"said_before": float, "said_after": float})
    order = list(dict.fromkeys(zip(chosen["prompt"], chosen["answer"], strict=True)))
    base = chosen.groupby(_KEY)[["probability_before", "said_before"]].mean()

    def grid(what: str) -> np.ndarray:
        after = chosen.pivot_table(f"{what}_after", _KEY, "method", aggfunc="mean")
        after.insert(0, BASE, base[f"{what}_before"])
        return after.loc[order, [BASE, *present]].to_numpy()

    present = [m for m in methods if m in set(chosen["method"])]
    p, s = grid("probability"), grid("said")
    across = ("method", 7.5, [short(label, LABEL) for label in (BASE, *present)])
    down = ("fact", 6.5, [short(f"{prompt} → {answer}", 56) for prompt, answer in order])
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
        size: dict[str, Any] = {
            "fraction": 0.05,
            "aspect": 30,
            "shrink": min(1.0, 7.0 / drawn.get_figheight()),
            "anchor": (0.0, 1.0),
        }
        bar = drawn.colorbar(mesh, ax=axes, label="probability of the sensitive answer", **size)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
        bar.outline.set_visible(False)
        alt = f"Probability of {len(order)} sensitive answers, before and after {len(present)} methods."
        image = saved(drawn, name, alt)
    cut = (
        f" The {len(order)} of {everything} facts that are likeliest after all methods."
        if len(order) < everything
        else ""
    )
    return Plot(
        "Each fact's sensitive answer: its probability, mean over the seeds that drew it; a dot where it is still "
        f"said (by half of those seeds or more); empty where it was not measured.{cut}",
        (image,),
    )


def time_bars(table: Table, name: str, *, own: str | None = None) -> Plot | None:
    """Seconds of unlearning by method, from a table of costs; None where nothing was timed."""
    timed = [
        (row.label, e) for row in table.rows if (e := table.entry(row, "unlearn_seconds")) and math.isfinite(e.mean)
    ]
    if not timed:
        return None
    with style():
        drawn = figure(0.7 + 0.24 * len(timed))
        axes = drawn.add_subplot()
        for i, (label, e) in enumerate(timed):
            axes.barh(i, e.mean, 0.6, color=colour(label, own))
            axes.plot([e.low, e.high], [i, i], color=INK, linewidth=0.8)
            # Beside the range, not on it.
            axes.annotate(f"{e.shown} s", (e.high, i), (4, 0), textcoords="offset points", va="center", fontsize=7)
        axes.set_yticks(range(len(timed)), [short(label, LABEL) for label, _ in timed])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set_xlabel("seconds of unlearning a forget set")
        image = saved(drawn, name, f"Seconds of unlearning by method on {table.dataset}, n = {table.n}.")
    return Plot("Wall-clock time of unlearning: means, with lines from the seeds' lowest to their highest.", (image,))
