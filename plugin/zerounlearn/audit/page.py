"""The audit's page: the certificate, each attack, each fact with what brought it back, a heat map, recovery curves.

One HTML file with its styles and plots in it, which asks for nothing; every text in it is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from zerounlearn.audit.certificate import Certificate, successful
from zerounlearn.audit.results import Audit, Variant
from zerounlearn.errors import FrameworkError
from zerounlearn.files import write_text
from zerounlearn.resources import template

try:
    from zerounlearn.report.canvas import OTHERS, OWN, Image, figure, saved, style
except ImportError as error:
    raise FrameworkError(
        f"an audit's page needs {str(error.name).partition('.')[0]}: pip install 'zerounlearn[audit]'"
    ) from error

FILE = "audit.html"
_CURVES = 3  # beside each other


@dataclass(frozen=True)
class _Row:
    """One variant in the table of attacks."""

    variant: Variant
    p: float
    won: bool


def write_page(folder: Path, audit: Audit, certificate: Certificate) -> None:
    """Write audit.html.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(folder / FILE, page(audit, certificate))


def page(audit: Audit, certificate: Certificate) -> str:
    """The whole page."""
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    won = {id(variant) for variant in successful(audit)}
    corrected = zip(audit.variants, audit.corrected, strict=True)
    return env.from_string(template("audit", "audit.html.jinja")).render(
        audit=audit,
        certificate=certificate,
        rows=[_Row(variant, p, id(variant) in won) for variant, p in corrected],
        curves=curves(audit),
        style=Markup(template("report", "report.css")),  # our own file
    )


def curves(audit: Audit) -> Image | None:
    """What every attack with a curve finds as it gets stronger: facts against controls; None where there is none."""
    drawn = [variant for variant in audit.variants if len(variant.edited.curve) > 1]
    if not drawn:
        return None
    rows = -(-len(drawn) // _CURVES)
    with style():
        canvas = figure(1.7 * rows)
        for k, variant in enumerate(drawn):
            axes = canvas.add_subplot(rows, _CURVES, k + 1)
            xs = [point.x for point in variant.edited.curve]
            _line(axes, xs, [point.facts for point in variant.edited.curve], OWN, "facts")
            _line(axes, xs, [point.controls for point in variant.edited.curve], OTHERS, "controls")
            axes.set_ylim(-0.03, 1.03)
            axes.set_xlabel(variant.edited.axis)
            axes.set_title(variant.label, fontsize=7)
            if k == 0:
                axes.legend(loc="best", fontsize=6)
        names = "; ".join(variant.label for variant in drawn)
        return saved(canvas, "audit-curves", f"Shares of facts and controls that attacks bring back: {names}.")


def _line(axes: object, xs: Sequence[float], ys: Sequence[float], ink: str, label: str) -> None:
    axes.plot(xs, ys, color=ink, linewidth=1.2, marker="o", markersize=2.5, label=label)  # type: ignore[attr-defined]
