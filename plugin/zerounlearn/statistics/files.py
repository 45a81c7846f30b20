"""Second moments in files: finished ones in EasyEdit's own layout, unfinished ones beside them.

A finished one is `{stats_dir}/{model}/{corpus}_stats/{module}_{dtype}_mom2_{samples}.npz`, with the arrays that
EasyEdit's `layer_stats` writes and reads, so MEMIT, ROME, AlphaEdit and this package share it. Ours carry
one array more, a description of everything the statistic depends on. A file of ours whose description
does not match is left alone, and the statistic goes to a name of its own beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerounlearn.core.moments import SecondMoment
from zerounlearn.errors import IllPosedError, OutputError, StatisticsError
from zerounlearn.files import whole_file

log = logging.getLogger(__name__)

_OURS = "zerounlearn"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# Unfinished sums are kept this often, and less often where that took more than a twentieth of the time.
_SAVE_EVERY = 60.0


@dataclass(frozen=True)
class Key:
    """Everything that a cached statistic depends on."""

    module: str
    corpus: str
    samples: int
    max_length: int
    dtype: str
    weights: str
    version: int = 1

    def file(self, *, unique: bool = False) -> str:
        """The name under which EasyEdit looks for it, or with `unique` one that is this key's alone."""
        suffix = hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"{self.module}_{self.dtype}_mom2_{self.samples}{f'-{suffix}' if unique else ''}.npz"


@dataclass(frozen=True)
class MomentFile:
    """One layer's finished moment (m, m): what it must be, and where it is."""

    path: Path
    key: Key
    size: int

    def fits(self) -> bool:
        """Whether the file is there and holds this moment, read through once and found whole and finite.

        Raises:
            StatisticsError: it is unreadable, truncated, or of another shape.
            IllPosedError: it is not finite.
        """
        if not self.path.exists():
            return False
        moment = self._load()
        if moment is not None and not moment.is_finite():
            raise IllPosedError(
                f"{self.key.module}: its statistics in {str(self.path)!r} contain NaN or Inf; delete them and check "
                "the checkpoint"
            )
        return moment is not None

    def mean(self) -> Tensor:
        """C (m, m) in the file's precision; nothing else of its size is held meanwhile.

        Raises:
            StatisticsError: the file has gone, or has been replaced by another.
        """
        moment = self._load()
        if moment is None:
            raise StatisticsError(f"statistics cache {str(self.path)!r} was replaced during the run: run again")
        return moment.total.div_(moment.count)

    def write(self, moment: SecondMoment) -> None:
        """Store a moment whose total is on the CPU, in `key.dtype`.

        Raises:
            OutputError: the file cannot be written.
        """
        _write(self.path, {
            "mom2.constructor": "easyeditor.util.runningstats.SecondMoment()",
            "mom2.count": moment.count,
            "mom2.mom2": moment.total.numpy(),
            "sample_size": self.key.samples,
            _OURS: json.dumps(asdict(self.key)),
        })  # fmt: skip

    def link(self, folder: Path) -> None:
        """Let the other edition find it, at no cost in space; where links cannot be had it will not."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.path.name).unlink(missing_ok=True)
            (folder / self.path.name).hardlink_to(self.path)
        except OSError as error:
            log.info("%s is not linked into %s: %s", self.path.name, folder, error)

    def _load(self) -> SecondMoment | None:
        """The moment; None where the file is ours and describes something else."""
        try:
            with np.load(self.path) as arrays:
                described = json.loads(str(arrays[_OURS])) if _OURS in arrays else None
                samples = int(arrays["sample_size"]) if "sample_size" in arrays else self.key.samples
                if (described is not None and described != asdict(self.key)) or samples != self.key.samples:
                    log.info("%s describes another run; it is left alone", self.path)
                    return None
                count, total = int(arrays["mom2.count"]), torch.from_numpy(arrays["mom2.mom2"])
        except _UNREADABLE as error:
            raise StatisticsError(
                f"statistics cache {str(self.path)!r} is unreadable or truncated ({error}): delete it to have it "
                "computed again"
            ) from error
        if total.shape != (self.size, self.size) or count < 1:
            raise StatisticsError(
                f"statistics cache {str(self.path)!r} holds a {tuple(total.shape)} moment of {count} tokens, the "
                f"layer takes {self.size} inputs: it belongs to another model; delete it or set another stats_dir"
            )
        return SecondMoment(count, total)


class StoredMoments(Mapping[int, Tensor]):
    """C (m, m) of each layer, on the CPU, read from its file each time it is asked for.

    It is not kept: whoever lets go of one layer's C before asking for the next holds one at a time.
    """

    def __init__(self, files: Mapping[int, MomentFile]) -> None:
        self.files = files

    def __getitem__(self, layer: int) -> Tensor:
        return self.files[layer].mean()

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@dataclass
class Unfinished:
    """One process's sums by layer and how many of its texts are in them, kept on disk now and then."""

    path: Path
    moments: dict[int, SecondMoment]
    done: int = 0
    _kept: int = 0
    _whole: bool = True
    _due: float = field(default_factory=lambda: time.monotonic() + _SAVE_EVERY)

    @staticmethod
    def name(keys: Sequence[Key], index: int, count: int) -> str:
        """A file name for process `index` of `count`; a run with another number of processes starts afresh."""
        text = json.dumps([asdict(key) for key in keys], sort_keys=True)
        process = f".{index}-of-{count}" if count > 1 else ""
        return f".{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}{process}.partial.npz"

    def resume(self) -> None:
        """Go on where an earlier process was interrupted, if its file is there and can be read."""
        try:
            with np.load(self.path) as arrays:
                found = {layer: (int(arrays[f"{layer}.count"]), arrays[f"{layer}.total"]) for layer in self.moments}
                done = int(arrays["done"])
        except FileNotFoundError:
            return
        except _UNREADABLE as error:
            log.warning("%s is unreadable (%s); starting over", self.path, error)
            return
        for layer, (count, total) in found.items():
            self.moments[layer].count = count
            self.moments[layer].total.copy_(torch.from_numpy(total))
        self.done = self._kept = done
        log.info("resuming statistics after %d texts", done)

    def add(self, part: Mapping[int, SecondMoment], texts: int) -> None:
        """Take in the sums of the next texts."""
        self._whole = False
        for layer, moment in self.moments.items():
            moment += part[layer]
        self.done += texts
        self._whole = True
        if time.monotonic() > self._due:
            start = time.monotonic()
            self._keep()
            now = time.monotonic()
            self._due = now + max(_SAVE_EVERY, 20 * (now - start))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what there is if the body raises, KeyboardInterrupt included."""
        try:
            yield
        except BaseException:
            if self._whole and self.done != self._kept:
                try:
                    self._keep()
                except OutputError as error:
                    log.warning("what was done is lost: %s", error)
            raise

    def discard(self) -> None:
        """Delete what is kept of this pass, by however many processes it was taken."""
        stem = self.path.name.split(".")[1]
        for path in self.path.parent.glob(f".{stem}.*partial.npz"):
            path.unlink(missing_ok=True)

    def _keep(self) -> None:
        arrays: dict[str, Any] = {"done": self.done}
        for layer, moment in self.moments.items():
            arrays |= {f"{layer}.count": moment.count, f"{layer}.total": moment.total.cpu().numpy()}
        _write(self.path, arrays)
        self._kept = self.done


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    with whole_file(path, "wb", remedy="set another stats_dir or free space") as stream:
        np.savez(stream, **arrays)
