"""What the commands share: options, logging, how errors are said, the run that a hyperparameter file describes."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerounlearn.errors import ConfigError, ZeroUnlearnError, reason_of

if TYPE_CHECKING:
    from zerounlearn.data.fact import Fact


EPILOG = """\b
Exit codes: 0 done; 1 the work failed or its input is wrong, and nothing was changed; 2 the command line is wrong;
3 done and written, but a --require is not met.
Completion, for bash: eval "$(_ZEROUNLEARN_COMPLETE=bash_source zerounlearn)"; zsh and fish likewise.
"""
NOT_MET = 3
HPARAMS_ARGUMENT = click.argument("hparams", metavar="HPARAMS")
OVERRIDES = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
FORGET = click.option("--forget", required=True, type=click.Path(path_type=Path), help="Facts: jsonl, json, yaml, csv.")


SEED = click.option("--seed", type=int, help="Overrides the run's seed.")
DTYPE = click.option("--dtype", default="auto", show_default=True, help="Of the weights: auto is the checkpoint's own.")
DEVICE = click.option("--device", default="auto", show_default=True, help="A CUDA index, 'cpu', 'mps', or 'auto'.")
CHAT = click.option("--chat", is_flag=True, help="Ask through the tokenizer's chat template.")
TRUST = click.option("--trust-remote-code", is_flag=True, help="Let the checkpoint's own code run.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the output of an earlier run.")


def command(function: Callable[..., None]) -> Callable[..., None]:
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
            with terminated_as_interrupted():
                function(*args, **kwargs)
        except Exception as error:
            if debug or not isinstance(error, (ZeroUnlearnError, *_ordinary())):
                raise
            text = str(error).strip() or type(error).__name__
            if not isinstance(error, ZeroUnlearnError):
                text = f"{type(error).__name__}: {reason_of(error)} (--debug shows where)"
            raise click.ClickException(text) from error

    return run


def redactable(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command --redact and --key-file; it gets them as `redaction` and `key`.

    With --redact nothing says the texts of --forget and --retain; the digests of facts in an edit's file are made with
    the key whenever there is one.
    """

    @click.option("--redact", is_flag=True, help="Say, log and write keyed digests in the place of the facts.")
    @click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The key of --redact and of the facts' digests in an edit; by default the environment's ZEROUNLEARN_KEY.",
    )
    @wraps(function)
    def run(*args: Any, redact: bool, key_file: Path | None, **kwargs: Any) -> None:
        from zerounlearn.redaction import Redaction, read_key

        if key_file is not None and not redact and not kwargs.get("edit_only"):
            raise ConfigError(f"--key-file {str(key_file)!r} is for --redact or --edit-only: name one of them")
        key = read_key(key_file, needed=redact)
        if not redact or key is None:
            function(*args, redaction=None, key=key, **kwargs)
            return
        redaction = Redaction.of_files(key, kwargs["forget"], kwargs.get("retain"))
        with redaction.silenced():
            function(*args, redaction=redaction, key=key, **kwargs)

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


def say(text: str) -> None:
    if not click.get_current_context().meta.get("quiet"):
        click.echo(text)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
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


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    logging.getLogger("zerounlearn.progress").info("%s: %.1f s", name, time.perf_counter() - start)


def method_of(file: Path, overrides: tuple[str, ...], seed: int | None) -> Any:
    from zerounlearn.method.base import load_method

    check_overrides(overrides)
    extra = [] if seed is None else [f"seed={seed}"]
    return load_method(file, [*overrides, *extra])


def check_overrides(overrides: tuple[str, ...]) -> None:
    wrong = [text for text in overrides if "=" not in text]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: expected KEY=VALUE")


def check_without_weights(method: Any, facts: list[Fact], *, trust_remote_code: bool) -> None:
    """Check name, device, templates, layers, corpus and prompts against the model's configuration alone."""
    from zerounlearn.api import check_prompts
    from zerounlearn.model.loading import check_device, skeleton_of

    if not isinstance(method.model_name, str):
        raise ConfigError("model_name: the command line takes a name or a folder, not a model")
    check_device(method.device)
    skeleton = skeleton_of(method.model_name, trust_remote_code=trust_remote_code)
    method.check(skeleton)
    check_prompts(method.model_name, skeleton.config, facts, trust_remote_code=trust_remote_code)


def loaded(method: Any, *, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The model of a run and its tokenizer."""
    from zerounlearn.model.loading import load_model

    with stage("loading"):
        return load_model(
            method.model_name,
            dtype=dtype,
            device=method.device,
            trust_remote_code=trust_remote_code,
            device_map="auto" if getattr(method, "model_parallel", False) else None,
        )


def held_out_text(method: Any) -> str | None:
    """What perplexity is taken on: the embedded text where statistics are, too; else none is at hand."""
    return "embedded" if getattr(method, "mom2_dataset", "embedded") == "embedded" else None
