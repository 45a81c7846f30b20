"""Undoing an edit from the edited weights alone: its few strong directions stand out in their spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerounlearn.audit.matrices import changed
from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.states import layout_of
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.model.layout import Layout

_GUESSES = 5
# Up to this side all singular values are computed, of larger matrices the largest ones by subspace iteration.
_EXACT = 2048
_ITERATIONS, _MORE = 6, 16


@dataclass(frozen=True)
class Top:
    """The largest singular values of a matrix W (out, in), and their vectors on its shorter side.

    Attributes:
        values: descending (r,), float64.
        vectors: (min(out, in), r), float64.
        left: whether they are output directions.
    """

    values: Tensor
    vectors: Tensor
    left: bool

    @classmethod
    def of(cls, W: Tensor, r: int, generator: torch.Generator) -> Top:
        """From the eigenvalues of the smaller Gram matrix; by subspace iteration where that is large."""
        W = W.double()
        left = W.shape[0] <= W.shape[1]
        M = W if left else W.mT
        r = min(r, len(M))
        if len(M) <= _EXACT:
            squares, vectors = torch.linalg.eigh(M @ M.mT)
            return cls(squares.flip(0)[:r].clamp(min=0).sqrt(), vectors.flip(1)[:, :r].contiguous(), left)
        start = torch.randn(M.shape[1], r + _MORE, generator=generator, dtype=torch.float64).to(M.device)
        Q = torch.linalg.qr(M @ start).Q
        for _ in range(_ITERATIONS):
            Q = torch.linalg.qr(M @ (M.mT @ Q)).Q
        turned, values, _ = torch.linalg.svd(Q.mT @ M, full_matrices=False)
        return cls(values[:r], (Q @ turned)[:, :r], left)

    def peeled(self, W: Tensor, rank: int, *, shrink: bool) -> Tensor:
        """W without its first `rank` singular directions, or with them as large as the next one; float64."""
        rank = min(rank, len(self.values) - 1)
        kept = self.values[rank] / self.values[:rank].clamp(min=torch.finfo(torch.float64).tiny)
        share = 1 - kept if shrink else torch.ones_like(kept)
        P, W = self.vectors[:, :rank].to(W.device), W.double()
        share = share.to(W.device)
        return W - P * share @ (P.mT @ W) if self.left else W - (W @ P * share) @ P.mT


@attack(
    "reversal",
    label="Reversal from the weights",
    access=Access.WEIGHTS,
    quick={"ranks": (1, 4, 16), "where": ("guessed layers",)},
    standard={"ranks": (1, 2, 4, 8, 16, 32), "where": ("guessed layers", "all layers", "one layer"), "each": (1, 8)},
    thorough={
        "ranks": (1, 2, 4, 8, 16, 32, 64),
        "where": ("guessed layers", "all layers", "one layer"),
        "each": (1, 2, 4, 8, 16, 32, 64),
    },
    source="arXiv 2505.20819",
)
def reversal(
    target: Target, *, ranks: tuple[int, ...], where: tuple[str, ...], each: tuple[int, ...] = ()
) -> Iterator[Outcome]:
    """The top singular directions of the MLPs' down projections dropped, or shrunk to the next one, without the base.

    In all layers at once; in each alone, where the best counts; and in five layers that are guessed by how far their
    spectra stand above the other layers'. An attacker tries all ranks; so it is for the controls.
    """
    layout = layout_of(target, projections=True)
    generator = target.generator()
    most = max(*ranks, *each, 1) + 1
    tops = {layer: Top.of(layout.read(layer), most, generator) for layer in layout.projections}
    every = list(tops)
    layers = {"guessed layers": [guessed(tops)], "all layers": [every], "one layer": [[layer] for layer in every]}
    for place in where:
        tried = each if place == "one layer" else ranks
        for form in ("dropped",) if place == "one layer" else ("dropped", "shrunk"):
            tries = {
                float(rank): _best(target, layout, tops, layers[place], rank, shrink=form == "shrunk")
                for rank in sorted(tried)
            }
            yield target.along(f"{place}, {form}", tries, "directions")


def guessed(tops: Mapping[int, Top]) -> list[int]:
    """The layers whose largest singular values stand furthest above what is usual of the layers, lowest first.

    Each spectrum is taken relative to its last value; what is usual is the median over the layers, value by value.
    """
    length = min(len(top.values) for top in tops.values())
    spectra = torch.stack([top.values[:length].cpu() for top in tops.values()]).clamp(min=1e-300).log()
    spectra = spectra - spectra[:, -1:]
    excess = (spectra - spectra.median(0).values).clamp(min=0).sum(1)
    order = excess.argsort(descending=True, stable=True)[:_GUESSES].tolist()
    return sorted(list(tops)[i] for i in order)


def _best(
    target: Target, layout: Layout, tops: Mapping[int, Top], tried: Sequence[Sequence[int]], rank: int, *, shrink: bool
) -> list[Finding]:
    """The best of the sets of layers for each fact and control."""
    found = []
    for layers in tried:
        names = {layout.weight_names[layer]: tops[layer] for layer in layers}

        def peel(name: str, W: Tensor, names: Mapping[str, Top] = names) -> Tensor:
            return names[name].peeled(W, rank, shrink=shrink)

        with changed(target.model, names, peel):
            how = f"layer {layers[0]}" if len(layers) == 1 else ""
            found.append([one._replace(how=how) for one in target.plain()])
    return [Finding.best(each) for each in zip(*found, strict=True)]
