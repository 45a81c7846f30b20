"""Second moments in files: finished ones in EasyEdit's own layout, unfinished ones beside them.

A finished one is `{stats_dir}/{model}/{corpus}_stats/{module}_{dtype}_mom2_{samples}.npz`, with the arrays that
EasyEdit's `layer_stats` writes and reads, so MEMIT, ROME, AlphaEdit and this package share it. Ours carry
one array more, a description of everything the statistic depends on. A file of ours whose description
does not match is left alone, and the statistic goes to a name of its own beside it. A file without a description is
EasyEdit's own, or anybody's: it is taken by its name, after checks, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zerounlearn.core.moments import SecondMoment
from zerounlearn.errors import ConfigError, IllPosedError, OutputError, StatisticsError
from zerounlearn.files import whole_file
from zerounlearn.statistics.arrays import check_second_moment, opened

log = logging.getLogger(__name__)

_OURS = "zerounlearn"
# Unfinished sums are kept this often, and less often where that took more than a twentieth of the time.
_SAVE_EVERY = 60.0


@dataclass(frozen=True)
class Key:
    """Everything that a cached statistic depends on.

    Attributes:
        module: the down projection's name.
        corpus: its name, which changes with its content.
        samples: texts asked for, or tokens, as "15360-tokens".
        max_length: tokens a text is cut to.
        dtype: of products and of the stored sums.
        weights: fingerprint of the weights that run below the module, measured.
        tokenizer: digest of how ids are made of a text.
        config: digest of what the forward pass reads of the model's configuration.
        version: of the code that takes it; raised when the same inputs would give another value.
    """

    module: str
    corpus: str
    samples: int | str
    max_length: int
    dtype: str
    weights: str
    tokenizer: str
    config: str
    version: int = 2

    @property
    def number(self) -> int:
        """How many texts or tokens: what the file says to EasyEdit, which knows whole numbers alone."""
        return int(str(self.samples).partition("-")[0])

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

    foreign: bool = True
    """Whether a file without our description will do."""

    def fits(self) -> bool:
        """Whether the file is there and holds this moment, read through once and found whole, finite and possible.

        Raises:
            StatisticsError: it is unreadable, truncated, of another shape, or no second moment.
            IllPosedError: it is not finite.
        """
        moment = self._load() if self.path.exists() else None
        if moment is None:
            return False
        if not moment.is_finite():
            raise IllPosedError(
                f"{self.key.module}: its statistics in {str(self.path)!r} contain NaN or Inf; delete them and check "
                "the checkpoint"
            )
        try:
            check_second_moment(moment.total)
        except ValueError as error:
            raise StatisticsError(
                f"statistics cache {str(self.path)!r} is damaged: {error}; delete it to have it computed again"
            ) from error
        if self.description() is None:
            _warn_of_foreign(str(self.path))
        return True

    def description(self) -> dict[str, Any] | None:
        """What the file says that it depends on; None where it does not say.

        Raises:
            StatisticsError: it is unreadable.
        """
        with opened(self.path) as arrays:
            if _OURS not in arrays.names:
                return None
            found = json.loads(arrays.text(_OURS))
            if not isinstance(found, dict):
                raise ValueError(f"the description is a {type(found).__name__}")
            return found

    def described(self) -> bool:
        """Whether the file is there and says that it is this moment; one that cannot be read does not."""
        try:
            return self.path.is_file() and self.description() == asdict(self.key)
        except StatisticsError:
            return False

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
        _write(
            self.path,
            {
                "mom2.constructor": "easyeditor.util.runningstats.SecondMoment()",
                "mom2.count": np.int64(moment.count),
                "mom2.mom2": moment.total.numpy(),
                "sample_size": np.int64(self.key.number),
                _OURS: json.dumps(asdict(self.key)),
            },
        )

    def link(self, folder: Path) -> None:
        """Let the other edition find it, at no cost in space; where links cannot be had it will not."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.path.name).unlink(missing_ok=True)
            (folder / self.path.name).hardlink_to(self.path)
        except OSError as error:
            log.info("%s is not linked into %s: %s", self.path.name, folder, error)

    def _load(self) -> SecondMoment | None:
        """The moment; None where the file is ours and describes something else, or is not ours and may not be."""
        try:
            described = self.description()
            with opened(self.path) as arrays:
                samples = arrays.number("sample_size") if "sample_size" in arrays.names else self.key.number
                ours = described == asdict(self.key) or (described is None and self.foreign)
                if not ours or samples != self.key.number:
                    log.info("%s describes another run; it is left alone", self.path)
                    return None
                moment = SecondMoment(arrays.number("mom2.count"), arrays.matrix("mom2.mom2", self.size))
                if moment.count < 1:
                    raise ValueError(f"it counts {moment.count} tokens")
        except FileNotFoundError as error:
            raise StatisticsError(f"statistics cache {str(self.path)!r} is unreadable ({error}): run again") from error
        return moment


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

    def resume(self, texts: int) -> None:
        """Go on where an earlier process was interrupted, if its file is there, whole and possible.

        Args:
            texts: how many this process has to run in all.
        """
        try:
            with opened(self.path) as arrays:
                done = arrays.number("done")
                if not 0 <= done <= texts:
                    raise ValueError(f"done={done} of {texts} texts")
                found = {}
                for layer, moment in self.moments.items():
                    count, size = arrays.number(f"{layer}.count"), len(moment.total)
                    found[layer] = SecondMoment(count, arrays.matrix(f"{layer}.total", size))
                    if count < 0 or not found[layer].is_finite():
                        raise ValueError(f"the sums of layer {layer} are not finite, or of {count} tokens")
                    if count:
                        check_second_moment(found[layer].total)
        except FileNotFoundError:
            return
        except StatisticsError as error:
            log.warning("%s; starting over", error)
            return
        for layer, partial in found.items():
            self.moments[layer].count = partial.count
            self.moments[layer].total.copy_(partial.total)
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


def check_stats_dir(name: str) -> None:
    """Refuse a name under which no folder can be; nothing is made. One that may only be read will do.

    Raises:
        ConfigError: naming what is in the way.
    """
    try:
        path = Path(name)
        for place in (path, *path.parents):
            try:
                place.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not place.is_dir():
                raise ConfigError(f"stats_dir={name!r}: {str(place)!r} is not a folder: name another")
            return
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"stats_dir={name!r} cannot be a folder's name: {error}") from error


def check_folder(folder: Path) -> None:
    """Make the folder that a pass will write to, before the pass.

    Raises:
        OutputError: it cannot be made, or not written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it may not be written to")
    except OSError as error:
        raise OutputError(f"cannot write to {str(folder)!r}: {error}; set another stats_dir") from error


@cache
def _warn_of_foreign(path: str) -> None:
    log.warning(
        "%s does not say which weights, tokenizer and text it was taken on; its name fits, so it is used. If it is not "
        "this model's, delete it",
        path,
    )
