"""`zerounlearn trace`: where a model looks facts up, and where they can be told from their neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zerounlearn.cli.command import DEVICE, EPILOG, FORGET, OVERWRITE, TRUST, command, redactable, say, stage


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@FORGET
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for maps, page and JSON.")
@click.option("--facts", "most", type=click.IntRange(1), default=10, show_default=True, help="Traced at most.")
@click.option("--samples", type=click.IntRange(1), default=4, show_default=True, help="Draws of noise for each fact.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@DEVICE
@TRUST
@OVERWRITE
@command
@redactable
def trace(
    model: str,
    forget: Path,
    output: Path,
    most: int,
    samples: int,
    seed: int,
    device: str,
    trust_remote_code: bool,
    overwrite: bool,
    **_: Any,
) -> None:
    """Causal tracing, logit lens and separability map of the facts of --forget in MODEL, before anything is edited.

    MODEL is a folder or a hub name. The maps say in which layers and at which token the facts are looked up, and where
    their paraphrases can be told from other facts; `trace.md` shows them, `trace.json` has the numbers.
    """
    from zerounlearn.api import check_prompts
    from zerounlearn.data.corpora import held_out_corpus
    from zerounlearn.data.fact import load_facts
    from zerounlearn.files import check_folder, whole_folder
    from zerounlearn.method.zerounlearn.config import ZeroUnlearn
    from zerounlearn.method.zerounlearn.separability import separability
    from zerounlearn.method.zerounlearn.tracing import causal_trace
    from zerounlearn.model.loading import check_device, load_model, skeleton_of
    from zerounlearn.report.tracing import write_trace

    facts = load_facts(forget)
    inputs = {"the model": Path(model).expanduser(), "--forget": forget}
    check_folder(output, overwrite=overwrite, inputs=inputs)
    check_device(device, "--device")
    skeleton = skeleton_of(model, "MODEL", trust_remote_code=trust_remote_code)
    check_prompts(model, skeleton.config, facts, trust_remote_code=trust_remote_code)
    with stage("loading"):
        decoder, tokenizer = load_model(model, device=device, trust_remote_code=trust_remote_code, field="MODEL")
    method = ZeroUnlearn(model_name=model, layers=[0], preset="specific")
    with stage("separability"):
        separation = separability(decoder, tokenizer, facts, method, texts=held_out_corpus("embedded").texts())
    suggested = separation.suggestion()
    with stage("tracing"):
        traced = causal_trace(
            decoder, tokenizer, [fact.request for fact in facts[:most]], method, samples=samples, seed=seed
        )
    with whole_folder(output, overwrite=overwrite, inputs=inputs) as folder:
        write_trace(folder, traced, separation, suggested)
    say(f"{traced.facts} facts traced: {output / 'trace.md'}")
    if suggested is not None:
        say(f"suggested: {suggested}")
        say(json.dumps({"layers": suggested.layers, "fact_token": suggested.fact_token}))
