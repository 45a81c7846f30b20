"""Which entries of a data set a run forgets, and which it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zerounlearn.data.entry import Entry, facts_of
from zerounlearn.errors import ConfigError


def split(
    entries: Sequence[Entry], n: int, seed: int, keep: Sequence[Entry] | None = None
) -> tuple[list[Entry], list[Entry]]:
    """The paper's protocol: `n` entries to forget, drawn by `seed` from one half of the data set; the other is kept.

    As in the published evaluation the halves are fixed by position, the first to keep and the second to forget,
    so no seed ever keeps what another forgets. The draw has a generator of its own, seeded with `seed`: the same
    seed gives the same entries, and the first 10 of 50 are the 10, so a curve over sizes grows one set. (The
    published code draws with Python's global generator; its very samples cannot be had from ours.)

    Of the half to keep, entries that ask a prompt of the drawn ones are left out: MQuAKE's cases share rewrites.

    Args:
        entries: a data set in its own order, at least two entries.
        n: how many to forget, from 1 to the size of the forget half.
        seed: of the draw.
        keep: entries to keep that come as a set of their own, as TOFU's do; `n` are then drawn from all `entries`.

    Returns:
        The entries to forget, in the order drawn, and those to keep, in the data set's order.

    Raises:
        ConfigError: `n` is out of range.
    """
    forget, of = entries, f"all {len(entries)} entries to forget"
    if keep is None:
        middle = len(entries) // 2
        keep, forget = entries[:middle], entries[middle:]
        of = f"the forget half of {len(entries)} entries"
    if not 1 <= n <= len(forget):
        raise ConfigError(f"n={n}: expected 1 to {len(forget)}, {of}")
    order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [forget[i] for i in order[:n]]
    prompts = {fact.request.key for fact in facts_of(drawn)}
    return drawn, [e for e in keep if not any(fact.request.key in prompts for fact in e.facts)]
