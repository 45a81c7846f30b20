"""Packaged files: hyperparameters and studies by name (a path, else the packaged one, else the clone's), templates."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from zerounlearn.errors import ConfigError, did_you_mean

HPARAMS, STUDIES = "hparams", "studies"


def folder(kind: str) -> Path:
    """Where the packaged files of a kind lie: in the installed package, or in the clone beside it."""
    packaged = Path(str(resources.files("zerounlearn"))) / kind
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / kind


def template(room: str, name: str) -> str:
    """Text of a template of one of our packages: of "report", "card.md.jinja"."""
    return resources.files(f"zerounlearn.{room}").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def names(kind: str) -> list[str]:
    """Names of the packaged files: "ZeroUnlearn/smollm2-135m", "quick"."""
    root = folder(kind)
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name: str | Path, kind: str) -> Path:
    """The file that a name means: an existing path (its suffix may be left out), else a packaged one.

    Raises:
        ConfigError: there is neither; names the nearest.
    """
    path = Path(name)
    for candidate in (path, path.with_name(f"{path.name}.yaml") if path.name else path):
        if candidate.is_file():
            return candidate
    packaged = folder(kind) / f"{str(name).removesuffix('.yaml')}.yaml"
    if packaged.is_file() and packaged.resolve().is_relative_to(folder(kind).resolve()):
        return packaged
    hint = did_you_mean(
        str(name), names(kind), f"`zerounlearn {'hparams list' if kind == HPARAMS else 'list studies'}`"
    )
    raise ConfigError(f"{kind} file {str(name)!r} does not exist, and no packaged one has that name: {hint}")
