"""`zerounlearn stats`: the second moments of ordinary text, ahead of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zerounlearn.cli.command import (
    EPILOG,
    HPARAMS_ARGUMENT,
    OVERRIDES,
    TRUST,
    check_without_weights,
    command,
    method_of,
    say,
)
from zerounlearn.errors import ConfigError, StatisticsError
from zerounlearn.resources import HPARAMS, find


@click.command(epilog=EPILOG)
@HPARAMS_ARGUMENT
@OVERRIDES
@click.option(
    "--from",
    "given",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Take ROME's, MEMIT's or EasyEdit's npz file of a layer instead; may be given again.",
)
@TRUST
@command
def stats(hparams: str, overrides: tuple[str, ...], given: tuple[Path, ...], trust_remote_code: bool) -> None:
    """Take the second moments of ordinary text for all layers of a run, ahead of it.

    Under `accelerate launch -m zerounlearn stats` or `torchrun -m zerounlearn stats`, each process takes a part.
    """
    method = method_of(find(hparams, HPARAMS), overrides, None)
    if not getattr(method, "mom2_adjustment", False):
        raise ConfigError(f"{hparams}: {method.alg_name} takes no statistics of ordinary text")
    if getattr(method, "add_retain", False):
        raise ConfigError(f"{hparams}: add_retain=True: its statistics are taken with the retain set; set it to false")
    from zerounlearn.data.corpora import open_corpus
    from zerounlearn.method.zerounlearn.method import layout_of
    from zerounlearn.model.loading import load_model
    from zerounlearn.statistics.collect import second_moments
    from zerounlearn.statistics.given import take_moments
    from zerounlearn.statistics.processes import Processes

    for path in given:
        if not path.is_file():
            raise StatisticsError(f"--from {str(path)!r} is no file: name the npz file of one layer")
    check_without_weights(method, [], trust_remote_code=trust_remote_code)
    with Processes.launched(str(method.device)) as processes:
        if processes.count > 1 and processes.device.type != "cpu":
            method = method.replace(device=str(processes.device))
        model, tokenizer = load_model(method.model_name, device=method.device, trust_remote_code=trust_remote_code)
        method = method.located(model, tokenizer)
        run = layout_of(model, method), tokenizer, method, open_corpus(method.mom2_dataset)
        if given:
            for layer, file in take_moments(given, *run).items():
                say(f"layer {layer}: {file}")
            return
        moments = second_moments(*run, processes=processes)
        if processes.main:
            for layer in moments:
                say(_described(layer, moments[layer]))


def _described(layer: int, C: Any) -> str:
    return f"layer {layer}: {tuple(C.shape)}, trace {float(C.diagonal().double().sum()):.4g}"
