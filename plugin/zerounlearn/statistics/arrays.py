"""Numbers out of files that anybody may have written: checked, bounded, and one error if they are not what they claim.

An array's type and shape are read from its header and compared before its data, so that a header cannot make this
process ask for more memory than the caller expects.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from zerounlearn.errors import StatisticsError

_BLOCK = 256
_LONGEST_TEXT = 1 << 16  # bytes
# Rounding of float32 sums over a corpus, relative to the largest diagonal entry.
_ROUNDING = 1e-3


class Arrays:
    """An opened npz file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.names = {name.removesuffix(".npy") for name in archive.namelist()}

    def number(self, name: str) -> int:
        """A whole number, stored as a scalar of any kind of number.

        Raises:
            ValueError: it is something else.
        """
        value = self._read(name, (), "iuf", 8).item()
        if value != value or int(value) != value:
            raise ValueError(f"{name}={value}: expected a whole number")
        return int(value)

    def text(self, name: str) -> str:
        """A text of bounded length.

        Raises:
            ValueError: it is something else.
        """
        return str(self._read(name, (), "U", _LONGEST_TEXT).item())

    def matrix(self, name: str, size: int) -> Tensor:
        """A (size, size) matrix of float32 or float64.

        Raises:
            ValueError: it is something else.
        """
        found = self._read(name, (size, size), "f", 8)
        if found.dtype.itemsize < 4:
            raise ValueError(f"{name} is of {found.dtype}: expected float32 or float64")
        return torch.from_numpy(found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("=")))

    def _read(self, name: str, shape: tuple[int, ...], kinds: str, widest: int) -> np.ndarray:
        with self.archive.open(f"{name}.npy") as stream:
            version = npy.read_magic(stream)
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            claimed, _, dtype = read_header(stream)
        if claimed != shape:
            raise WrongShapeError(f"{name} has shape {claimed}: expected {shape}")
        if dtype.kind not in kinds or dtype.itemsize > widest:
            raise ValueError(f"{name} is of {dtype}: expected another type")
        with self.archive.open(f"{name}.npy") as stream:
            return np.asarray(npy.read_array(stream, allow_pickle=False))


class WrongShapeError(ValueError):
    """An array is a sound one, of another shape than expected."""


@contextmanager
def opened(
    path: Path,
    *,
    what: str = "statistics cache",
    otherwise: str = "delete it or set another stats_dir",
    damaged: str = "delete it to have it computed again",
) -> Iterator[Arrays]:
    """The arrays in a file; what the body raises on account of them is raised as one kind of error.

    Args:
        path: the file.
        what: what messages call it.
        otherwise: what to do where it belongs to another model.
        damaged: what to do where it cannot be read.

    Raises:
        FileNotFoundError: there is no such file.
        StatisticsError: it is not a regular file, not an npz file, or the body could not read what it wanted.
    """
    if path.exists() and not path.is_file():
        raise StatisticsError(f"{what} {str(path)!r} is not a file: move it away, or set another stats_dir")
    try:
        with zipfile.ZipFile(path) as archive:
            yield Arrays(archive)
    except (FileNotFoundError, StatisticsError):
        raise
    except WrongShapeError as error:
        raise StatisticsError(f"{what} {str(path)!r}: {error}: it belongs to another model; {otherwise}") from error
    except Exception as error:  # zipfile, zlib and numpy's parser raise too many kinds to list
        reason = " ".join(str(error).split())[:200]
        raise StatisticsError(f"{what} {str(path)!r} is unreadable or truncated ({reason}): {damaged}") from error


def check_second_moment(total: Tensor) -> None:
    """Refuse a finite matrix (m, m) that no sum of k kᵀ can be; nothing of its size is made.

    A positive semidefinite matrix is symmetric, with no negative diagonal entry and no |aᵢⱼ| above √(aᵢᵢ aⱼⱼ).

    Raises:
        ValueError: saying which of these it is not, or that it is zero.
    """
    diagonal = total.diagonal().double()
    scale = float(diagonal.max())
    if float(diagonal.min()) < 0:
        raise ValueError("it has a negative diagonal entry, which a second moment cannot have")
    if scale == 0:
        raise ValueError("it is all zero")
    root, slack = diagonal.sqrt().to(total.dtype), _ROUNDING * scale
    for start in range(0, len(total), _BLOCK):  # what lies right of the diagonal, and below it
        rows, columns = total[start : start + _BLOCK, start:], total[start:, start : start + _BLOCK]
        bound = torch.outer(root[start : start + _BLOCK], root[start:]).add_(slack)
        if bool((rows.abs() > bound).any()):
            raise ValueError("it is not positive semidefinite, as a second moment is")
        if float((rows - columns.mT).abs_().max()) > slack:
            raise ValueError("it is not symmetric, as a second moment is")
