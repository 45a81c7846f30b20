"""Configuration: declared once with types, ranges and help; read from Python, YAML, JSON or `key=value`.

A configuration class is a frozen dataclass under `settings`, its fields made by `option`. Values are resolved before
the object exists, the later beating the earlier: the class's defaults, the class's preset, the file's own preset, the
file, overrides. So an explicit value always wins over a preset.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from typing_extensions import dataclass_transform, is_typeddict
from yaml import YAMLError

from zerounlearn.errors import ConfigError, did_you_mean, reason_of

if TYPE_CHECKING:
    from typing import Self

C = TypeVar("C", bound=type)

MAX_SEED = 2**63 - 1
"""The largest seed that a `torch.Generator` takes."""
_MOST_BYTES = 1 << 20
"""A configuration file is not larger; one that is would be read for minutes before it is refused."""

_MOST_VALUES = 100_000
"""Nor does it hold more values, aliases written out."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


def _not_bool(value: Any) -> Any:
    """`true` is no number, and a number of hundreds of digits none that a computer works with."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > 1 << 1000):
        raise ValueError("not a number")
    return value


Flag = Annotated[bool, Strict()]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Unsaid = BeforeValidator(lambda value: None if value == "auto" else value)
"""Of a field that may be None: 'auto' says so in words."""
Whole = Annotated[int, BeforeValidator(_not_bool), Field(ge=-(2**63), le=2**63 - 1)]


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field with its default, what it means, and its limits: `gt`, `ge`, `lt`, `le`, `min_length`."""
    if isinstance(default, (list, dict)):
        return Field(default_factory=lambda: type(default)(default), description=help, **limits)
    return Field(default=default, description=help, **limits)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: C) -> C:
    """Make a configuration class of `Settings`: frozen, keyword-only, checked, unknown names refused."""
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)
    built: Any = pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)
    construct = built.__init__

    @functools.wraps(construct)
    def __init__(self: Any, **values: Any) -> None:  # noqa: N807 (it becomes the class's)
        kind = type(self)
        given = kind._renamed(values)
        try:
            construct(self, **kind._with_preset(given))
        except ValidationError as error:
            raise ConfigError(_sentence(kind, error.errors()[0], given)) from None
        object.__setattr__(self, "_explicit", frozenset(given))
        self.validate()

    built.__init__ = __init__
    return built


@settings
class Settings:
    """Base of all configuration classes."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Values by preset, for classes that have a field `preset`."""
    ALIASES: ClassVar[Mapping[str, str]] = {}
    """Other names of fields; a second name of the same field must have the same value."""
    WITHOUT_EFFECT: ClassVar[Mapping[str, Any]] = {}
    """Published names that nothing depends on: accepted at these values, and dropped."""

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Every field with its type, default, limits and help."""
        found: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
        return found

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default values by field, without those of any preset."""
        return {name: info.get_default(call_default_factory=True) for name, info in cls.fields().items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "hparams") -> Self:
        """Build from a mapping; it may hold more under `presets`, values by the name of a preset.

        Raises:
            ConfigError: a name is unknown (the nearest known one is suggested), or a value is out of range.
        """
        return cls._built(dict(values), {}, where)

    @classmethod
    def from_hparams(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a file, see `read_settings`; an override beats the file and every preset.

        Raises:
            ConfigError: see `read_settings` and `from_mapping`.
        """
        file, values = read_settings(path)
        return cls._built(values, parsed_overrides(overrides), str(file))

    @classmethod
    def _built(cls, values: dict[str, Any], overrides: Mapping[str, Any], where: str) -> Self:
        try:
            sections = _mapping(values.pop("presets", None) or {}, "presets")
            for name, section in sections.items():
                if name not in cls.PRESETS:
                    raise ConfigError(f"presets.{name}: {cls.__name__} has no such preset: it has {_all(cls.PRESETS)}")
                _mapping(section, f"presets.{name}")
            chosen = {**values, **overrides}.get("preset", cls.defaults().get("preset"))
            section = sections.get(chosen, {}) if isinstance(chosen, str) else {}
            both = sorted(set(section) & set(values))
            if both:
                raise ConfigError(
                    f"{both[0]} is set twice, by itself and in presets.{chosen}: move the first into the preset that "
                    "it is for"
                )
            return cls(**{str(k): v for k, v in {**section, **values, **overrides}.items()})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @property
    def explicit(self) -> frozenset[str]:
        """The fields that were set, be it to their defaults, and not by a preset."""
        found: frozenset[str] = self._explicit  # type: ignore[attr-defined]
        return found

    def replace(self, **changes: Any) -> Self:
        """A copy with changes, in which a new `preset` counts for all that was not set explicitly."""
        return type(self)(**{name: getattr(self, name) for name in self.explicit} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON and YAML."""
        values = {name: getattr(self, name) for name in self.fields()}
        name = values.get("model_name")
        if not isinstance(name, (str, type(None))):  # EasyEdit's (model, tokenizer) pair
            values["model_name"] = getattr(name[0].config, "_name_or_path", "")
        device = values.get("device")
        if not isinstance(device, (str, int, type(None))):
            values["device"] = str(device)
        return values

    def validate(self) -> None:
        """Check what relates fields to each other; run at construction.

        Raises:
            ConfigError: with the fields, their values and what is expected.
        """

    @classmethod
    def _renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values under the fields' own names."""
        given: dict[str, Any] = {}
        named: dict[str, str] = {}
        for name, value in values.items():
            if name in cls.WITHOUT_EFFECT and name not in cls.fields():
                _check_published(name, value, cls.WITHOUT_EFFECT[name])
                continue
            field = cls.ALIASES.get(name, name)
            if field not in cls.fields():
                known = sorted({*cls.fields(), *cls.ALIASES})
                hint = did_you_mean(str(name), known)
                raise ConfigError(f"unknown hyperparameter {name!r} of {cls.__name__}: {hint}")
            if field in given and not _alike(given[field], value):
                raise ConfigError(
                    f"{named[field]}={given[field]!r} and {name}={value!r} differ: they are two names of one value, "
                    "set both alike"
                )
            given[field], named[field] = value, name
        return given

    @classmethod
    def _with_preset(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values with those of the preset below them."""
        if not cls.PRESETS or "preset" not in cls.fields():
            return dict(given)
        name = given.get("preset", cls.defaults()["preset"])
        if not isinstance(name, str) or name not in cls.PRESETS:
            raise ConfigError(f"preset={_short.repr(name)}: expected one of {_all(cls.PRESETS)}")
        preset = cls.PRESETS[name]
        plain = cls.defaults()
        if preset and all(field in given and _alike(given[field], plain[field]) for field in preset):
            raise ConfigError(
                f"preset={name!r} would change nothing: every value of it is given at its plain default; to change the "
                f"preset of an existing configuration call .replace(preset={name!r})"
            )
        return {**preset, **given}


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """A YAML or JSON mapping as plain values; as EasyEdit does it, the suffix may be left out.

    Overrides, `key=value` or `part.key=value`, are merged in.

    Interpolations (`${…}`) are refused: what they stand for, an environment variable for one, would end up in reports.

    Returns:
        The file that was read, and its values.

    Raises:
        ConfigError: the file is missing or no such mapping.
    """
    file = Path(path)
    if file.suffix not in (".yaml", ".yml", ".json"):
        file = file.with_name(file.name + ".yaml")
    what = f"hparams file {str(file)!r}"
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{what} is larger than {_MOST_BYTES} bytes: that is no configuration")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} cannot be read: {error}") from error
    values = _plain(text, what)
    if overrides:
        try:
            merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(list(overrides)))
            values = _plain(OmegaConf.to_yaml(merged), f"{what} with overrides {list(overrides)}")
        except (YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"overrides {list(overrides)}: {reason_of(error)}") from error
    return file, values


def parsed_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; the value is read as YAML.

    Raises:
        ConfigError: a text has no `=`, its key is no plain name, or its value no YAML.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"override {text!r}: expected KEY=VALUE")
        if not name.replace("_", "").isalnum():
            raise ConfigError(
                f"override {text!r}: {name!r} is no hyperparameter's name; give the whole value, as in layers=[17,18]"
            )
        values[name] = _plain(f"value: {value}", f"override {text!r}").get("value")
    return values


def _plain(text: str, what: str) -> dict[str, Any]:
    """YAML by OmegaConf, whose reading of numbers (1e-1) and refusal of repeated keys EasyEdit's users know."""
    try:
        _check_expansion(text)
        loaded = OmegaConf.create(text)
        values = OmegaConf.to_container(loaded, resolve=False)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be read: {reason_of(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{what} holds {type(loaded).__name__}, not a mapping of names to values")
    for name, value in values.items():
        if not isinstance(name, str):
            raise ConfigError(f"{what}: the key {name!r} is no text")
        _refuse_interpolation(value, f"{what}: {name}")
    return {str(k): v for k, v in values.items()}


def _check_expansion(text: str) -> None:
    """Refuse aliases inside aliases that stand for more values than any configuration has.

    Raises:
        ValueError: they do, or a value contains itself.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_VALUES  # what contains itself counts as too much
            parts = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else ()
            inner = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
            sizes[id(node)] = 1 + sum(size(part) for part in inner)
        return sizes[id(node)]

    root = yaml.compose(text)
    if root is not None and size(root) > _MOST_VALUES:
        raise ValueError(f"its aliases (*name) stand for more than {_MOST_VALUES} values: write them out")


def _refuse_interpolation(value: Any, where: str) -> None:
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{where}={_short.repr(value)}: interpolation (${{…}}) is not resolved here: write the value")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _refuse_interpolation(part, where)


def _sentence(cls: type[Settings], error: ErrorDetails, given: Mapping[str, Any]) -> str:
    """What one failed check of pydantic means for the user: field, value, what is expected."""
    where = [str(part) for part in error["loc"]] or [cls.__name__]
    name, context = where[0], error.get("ctx", {})
    value = given.get(name, error["input"])
    info = cls.fields().get(name)
    cause = context.get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    path = name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"][1:])
    if error["type"] == "missing":
        return f"{path} is missing"
    if any(isinstance(part, str) for part in error["loc"][1:]):  # inside a mapping of the field's
        expected = error["msg"].replace("Extra inputs are not permitted", "there is no such name here: drop it")
        return f"{path}={_short.repr(error['input'])}: {expected[0].lower()}{expected[1:]}"
    wanted = _wanted(info.annotation if info else None, info)
    if info is not None and error["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        sign = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}[
            error["type"]
        ]
        limit = next(iter(context.values()))
        value = float(value) if _is(info.annotation, float) and isinstance(value, int) else value
        wanted = f"{'a number' if _is(info.annotation, float) else 'a whole number'} {sign} {limit:g}"
    return f"{name}={_short.repr(value)}: expected {wanted}"


def _wanted(annotation: Any, info: FieldInfo | None) -> str:
    """In words, what a field takes."""
    choices = [value for part in _parts(annotation) if get_origin(part) is Literal for value in get_args(part)]
    if choices:
        return f"one of {', '.join(map(str, choices))}"
    for kind, words in (
        (bool, "true or false"),
        (list, "a list of mappings" if _holds_mappings(annotation) else "a list of whole numbers"),
        (float, "a finite number"),
        (int, "a whole number"),
        (str, "a text"),
    ):
        if _is(annotation, kind):
            return words
    return f"a {annotation}"


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in _parts(part)]
    return [annotation]


def _holds_mappings(annotation: Any) -> bool:
    return any(is_typeddict(inner) for part in _parts(annotation) for inner in get_args(part))


def _is(annotation: Any, kind: type) -> bool:
    return any((get_origin(part) or part) is kind for part in _parts(annotation))


def _check_published(name: str, value: Any, published: Any) -> None:
    allowed = published if isinstance(published, tuple) else (published,)
    if not any(_alike(value, one) for one in allowed):
        raise ConfigError(
            f"{name}={value!r}: the method does not depend on it, and tuning it would change nothing; leave it at "
            f"{allowed[0]}"
        )


def _alike(one: Any, other: Any) -> bool:
    """Whether two values mean the same, as text or as number."""
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except (TypeError, ValueError, OverflowError):
        return False


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={_short.repr(value)}: expected values by preset, a mapping")
    return value


def _all(names: Collection[str]) -> str:
    return ", ".join(names)


def described(cls: type[Settings]) -> list[dict[str, str]]:
    """Every field of a class for tables and `zerounlearn show`: name, default, range and meaning."""
    rows = []
    for name, info in cls.fields().items():
        default = info.get_default(call_default_factory=True)
        limits = [
            f"{sign} {getattr(limit, key):g}"
            for limit in info.metadata
            for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
            if getattr(limit, key, None) is not None and abs(getattr(limit, key)) < 2**62
        ]
        choices = [str(v) for part in _parts(info.annotation) if get_origin(part) is Literal for v in get_args(part)]
        rows.append(
            {
                "name": name,
                "default": "" if default in (None, PydanticUndefined) else str(default),
                "range": " | ".join(choices) if choices else ", ".join(limits),
                "meaning": info.description or "",
            }
        )
    return rows


def field_names(cls: type) -> set[str]:
    """Names of a dataclass's fields."""
    return {f.name for f in dataclasses.fields(cls)}
