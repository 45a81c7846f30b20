"""What all hyperparameter classes share: reading, refusing what is unknown, and coming back as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from zerounlearn.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from typing import Self


def option(default: Any, help: str) -> Any:
    """A field of a hyperparameter class with its explanation."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def resolved(device: str) -> str:
    """'auto' as a device of this machine, by the name that EasyEdit reads; any other word as it is."""
    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass
class Settings:
    """Base of the hyperparameter classes; each has the fields `model_name` and `device`, and checks itself."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, final: Collection[str] = (), where: str = "hparams") -> Self:
        """Build from a mapping; `final` names fields whose value no preset may change, where a class has presets.

        Raises:
            ConfigError: a name is unknown (the nearest known one is suggested), or a value is out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                hint = did_you_mean(str(name), sorted(known))
                raise ConfigError(f"{where}: unknown hyperparameter {name!r} of {cls.__name__}: {hint}")
        try:
            return cls(**dict(values))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_hparams(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a file, see `read_settings`; what an override sets is final.

        Raises:
            ConfigError: see `read_settings` and `from_mapping`.
        """
        file, values = read_settings(path, overrides)
        final = {text.split("=")[0].strip() for text in overrides}
        return cls.from_mapping(values, final=final, where=str(file))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON and YAML."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        name, device = values["model_name"], values["device"]
        if not isinstance(name, str):
            values["model_name"] = getattr(name[0].config, "_name_or_path", "")
        values["device"] = str(device) if isinstance(device, torch.device) else device
        return values

    def validate(self) -> None:
        """Check types, ranges and relations; subclasses say which.

        Raises:
            ConfigError: with the field, its value and what is expected.
        """
        for f in dataclasses.fields(self):
            setattr(self, f.name, coerced(f.name, str(f.type), getattr(self, f.name)))


def read_settings(path: str | Path, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """A YAML (or JSON) mapping, EasyEdit's way: the suffix may be left out. Then `key=value` overrides are merged in.

    Returns:
        The file that was read, and plain values.

    Raises:
        ConfigError: the file is missing or no YAML mapping.
    """
    file = Path(path)
    if file.suffix not in (".yaml", ".yml", ".json"):
        file = file.with_name(file.name + ".yaml")
    try:
        loaded = OmegaConf.load(file)
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"hparams file {str(file)!r} does not exist") from None
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"hparams file {str(file)!r} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"hparams file {str(file)!r} holds {type(values).__name__}, not a mapping")
    return file, {str(k): v for k, v in values.items()}


def coerced(name: str, kind: str, value: Any) -> Any:
    """EasyEdit's YAML loaders turn '1e-1' into text and whole numbers into floats: accept both."""
    if kind == "Any" or (value is None and "None" in kind):
        return value
    if kind == "list[int]":
        if isinstance(value, (list, tuple)) and all(_is_whole(v) for v in value):
            return [int(v) for v in value]
        raise ConfigError(f"{name}={value!r}: expected a list of whole numbers")
    if kind.startswith("bool"):
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name}={value!r}: expected true or false")
    if kind.startswith("int"):
        if _is_whole(value):
            return int(value)
        raise ConfigError(f"{name}={value!r}: expected a whole number")
    if kind.startswith("float"):
        try:
            number = float(value) if not isinstance(value, bool) else float("nan")
        except (TypeError, ValueError):
            number = float("nan")
        if number != number or number in (float("inf"), float("-inf")):
            raise ConfigError(f"{name}={value!r}: expected a finite number")
        return number
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r}: expected a text")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
