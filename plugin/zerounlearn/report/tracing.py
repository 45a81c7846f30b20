"""What a trace shows: heat maps over layers and tokens, and a page and JSON beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from zerounlearn.files import whole_file, write_text
from zerounlearn.method.zerounlearn.separability import GROUPS, PLACES, SeparabilityMap, Suggestion
from zerounlearn.method.zerounlearn.tracing import STATES, TRACED_TOKENS, CausalTrace
from zerounlearn.report.canvas import Image, bare, figure, saved, style

_HEADS = {
    "block": "A block's output put back",
    "mlp": "MLPs of {window} blocks put back",
    "attention": "Attentions of {window} blocks put back",
}


def trace_images(trace: CausalTrace, separation: SeparabilityMap | None) -> list[Image]:
    """A heat map each: states put back, logit lens, and shares of the update by group of prompts and place."""
    tokens = [token.replace("_", " ") for token in TRACED_TOKENS]
    shown = [(f"trace-{state}", _HEADS[state].format(window=trace.window), trace.restored[state]) for state in STATES]
    shown.append(("trace-lens", "A block's output read by the logit lens", trace.lens))
    images = [
        _heat_map(name, title, rows, tokens, "mean probability of the answer")
        for name, title, rows in shown
        if not all(math.isnan(value) for row in rows for value in row)
    ]
    if separation is not None:
        for place in PLACES:
            of_place = [s for s in separation.separations if s.fact_token == place]
            rows = [tuple(s.share[group] for group in GROUPS) for s in of_place]
            title = f"An update at the {'prompt' if place == 'last' else 'subject'}'s last token"
            images.append(
                _heat_map(f"separability-{place.replace('_', '-')}", title, rows, GROUPS, "mean share of the update")
            )
    return images


def write_trace(
    folder: Path, trace: CausalTrace, separation: SeparabilityMap | None, suggested: Suggestion | None
) -> None:
    """Write trace.json, trace.md and each heat map as SVG and PNG.

    Raises:
        OutputError: the folder cannot be written.
    """
    images = trace_images(trace, separation)
    for image in images:
        for kind in ("svg", "png"):
            place = folder / f"{image.name}.{kind}"
            with whole_file(place, "wb", remedy="name another folder or free space") as stream:
                stream.write(image.files[kind])
    values = {
        "trace": trace.to_dict(),
        "separability": separation.to_dict() if separation is not None else None,
        "suggested": vars(suggested) if suggested is not None else None,
    }
    write_text(folder / "trace.json", json.dumps(_finite(values), indent=1) + "\n")
    write_text(folder / "trace.md", _page(trace, suggested, images))


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _page(trace: CausalTrace, suggested: Suggestion | None, images: Sequence[Image]) -> str:
    lines = [
        "# Where the model looks these facts up",
        "",
        f"{trace.facts} facts that the model says. Their answers' first tokens have the probability {trace.clean:.3f}, "
        f"with noise on the subject {trace.corrupted:.3f}.",
        "",
    ]
    if suggested is not None:
        lines += [f"Suggested: {suggested}", ""]
    lines += [f"![{image.alt}]({image.name}.svg)\n" for image in images]
    return "\n".join(lines)


def _heat_map(name: str, title: str, rows: Sequence[Sequence[float]], columns: Sequence[str], label: str) -> Image:
    grid = np.array(rows, dtype=float)
    with style():
        drawn = figure(1.0 + 0.13 * len(grid))
        drawn.set_figwidth(3.6)
        axes = drawn.add_subplot()
        mesh = axes.pcolormesh(grid, cmap=mpl.colormaps["cividis"], vmin=0.0, edgecolors="white", linewidth=0.3)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=30, ha="right")
        step = max(1, len(grid) // 12)
        axes.set_yticks(np.arange(0, len(grid), step) + 0.5, [str(i) for i in range(0, len(grid), step)])
        axes.set_ylabel("layer")
        axes.set_title(title, fontsize=8)
        bare(axes)
        bar = drawn.colorbar(mesh, ax=axes, label=label)
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
        return saved(drawn, name, f"{title}: {label}, {len(grid)} layers by {len(columns)}.")
