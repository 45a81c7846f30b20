"""EasyEdit's own methods as entries of the registry of methods, by the way that anybody's plugin takes.

It stands beside the package `easyedit`, whose import needs EasyEdit: here nothing of it is imported before one of its
methods is used.
"""

from __future__ import annotations

from zerounlearn.method.base import methods

_METHODS = {
    "FT": ("fine-tuning of a few layers", "arXiv 2012.00363"),
    "LoRA": ("low-rank adapters, merged", "arXiv 2106.09685"),
    "ROME": ("rank-one editing of one layer", "arXiv 2202.05262"),
    "R-ROME": ("ROME without collapse", "arXiv 2403.07175"),
    "MEMIT": ("mass editing of several layers", "arXiv 2210.07229"),
    "MEMIT_seq": ("MEMIT in groups that keep the keys of those before", "arXiv 2410.02355"),
    "MEMIT_rect": ("MEMIT's largest relative changes alone (RECT)", "arXiv 2401.04700"),
    "MEMIT_prune": ("MEMIT with its large singular values lowered (PRUNE)", "arXiv 2405.16821"),
    "EMMET": ("mass editing under equality constraints", "arXiv 2403.14236"),
    "PMET": ("MEMIT with attention's part left out", "arXiv 2308.08742"),
    "AlphaEdit": ("MEMIT in the null space of ordinary keys", "arXiv 2410.02355"),
    "WISE": ("a side memory with a router", "arXiv 2405.14768"),
    "GRACE": ("a codebook in front of a layer", "arXiv 2211.11031"),
    "UltraEdit": ("one least-squares step a module", "arXiv 2505.14679"),
}


def register() -> None:
    """The entry point of the group `zerounlearn.plugins`."""
    for name, (summary, source) in _METHODS.items():
        target = f"zerounlearn.easyedit.methods:{name.replace('-', '_')}"
        methods.add(name, target, summary=f"{summary}, by EasyEdit", source=source)
