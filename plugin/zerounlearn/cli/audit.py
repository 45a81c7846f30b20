"""`zerounlearn audit`: attack an unlearned model, and check a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerounlearn.cli.command import (
    CHAT,
    DEVICE,
    DTYPE,
    EPILOG,
    FORGET,
    OVERWRITE,
    TRUST,
    command,
    redactable,
    say,
    stage,
)
from zerounlearn.errors import AuditError, ConfigError

if TYPE_CHECKING:
    from zerounlearn.audit.pair import Pair
    from zerounlearn.redaction import Redaction

_RUN = "run"


class _RunOrVerify(click.Group):
    """Runs an audit where no command is named: `zerounlearn audit EDITED --base BASE …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunOrVerify, epilog=EPILOG)
def audit() -> None:
    """Does the model still know? Attack it, with controls that never knew.

    `zerounlearn audit EDITED --base BASE --forget facts.jsonl --output FOLDER` is short for `zerounlearn audit run …`.
    """


@audit.command(_RUN, epilog=EPILOG)
@click.argument("edited", metavar="EDITED")
@click.option("--base", required=True, metavar="BASE", help="The model that it was edited from.")
@FORGET
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for audit and certificate.")
@click.option(
    "--budget", default="quick", show_default=True, help="quick, standard or thorough: what each attack may spend."
)
@click.option("--attacks", "only", metavar="NAME,…", help="These alone; `zerounlearn list attacks` names them.")
@click.option("--without", metavar="NAME,…", help="All but these.")
@click.option("--controls", type=click.IntRange(1), help="Made-up subjects for each fact; by default the budget's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of controls and of all that attacks draw.")
@click.option(
    "--sign", type=click.Path(path_type=Path), metavar="KEY", help="Sign the certificate: a private key, PEM."
)
@CHAT
@DTYPE
@DEVICE
@TRUST
@OVERWRITE
@command
@redactable
def run(
    edited: str,
    base: str,
    forget: Path,
    output: Path,
    budget: str,
    only: str | None,
    without: str | None,
    controls: int | None,
    seed: int,
    sign: Path | None,
    chat: bool,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    overwrite: bool,
    redaction: Redaction | None,
    key: bytes | None,
) -> None:
    """Attack EDITED, a checkpoint or the file of an edit of BASE, and say what came back of the facts of --forget.

    FOLDER gets audit.json, audit.html and certificate.json; the page holds the facts in clear, but with --redact.
    """
    from zerounlearn.api import check_prompts
    from zerounlearn.audit.certificate import Certificate
    from zerounlearn.audit.page import FILE, write_page
    from zerounlearn.audit.registry import check_budget, chosen
    from zerounlearn.audit.run import audit_pair
    from zerounlearn.audit.signature import check_key
    from zerounlearn.audit.signature import sign as sign_certificate
    from zerounlearn.data.fact import load_facts
    from zerounlearn.files import check_folder, whole_folder
    from zerounlearn.model.loading import check_device, skeleton_of

    check_budget(budget, "--budget")
    wanted = chosen(_names(only), without=_names(without))
    facts = load_facts(forget)
    inputs = {"the model": Path(base).expanduser(), "EDITED": Path(edited).expanduser(), "--forget": forget}
    check_folder(output, overwrite=overwrite, inputs=inputs)
    check_device(device, "--device")
    if sign is not None:
        check_key(sign)
    skeleton = skeleton_of(base, "--base", trust_remote_code=trust_remote_code)
    check_prompts(base, skeleton.config, facts, trust_remote_code=trust_remote_code)
    with stage("loading"):
        pair, tokenizer = _pair(edited, base, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    found = audit_pair(
        pair, tokenizer, facts, budget=budget, wanted=wanted, controls=controls, seed=seed, chat=chat, key=key
    )
    if redaction is not None:
        found = found.redacted(redaction)
    certificate = Certificate.of(found)
    with whole_folder(output, overwrite=overwrite, inputs=inputs) as folder:
        found.save(folder)
        certificate.save(folder)
        write_page(folder, found, certificate)
        if sign is not None:
            sign_certificate(folder, sign)
    _say_found(found)
    say("\n".join(["", *certificate.statements, f"\ngrade {certificate.grade}: {output / FILE}"]))


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def _pair(edited: str, base: str, *, dtype: str, device: str, trust_remote_code: bool) -> tuple[Pair, Any]:
    """Both models in one set of modules, and the tokenizer.

    Raises:
        AuditError: they do not belong together.
    """
    from zerounlearn.audit.pair import Pair
    from zerounlearn.method.edit import Edit
    from zerounlearn.model.loading import load_model

    given: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    file = Path(edited).expanduser()
    if file.is_file():
        edit = Edit.load(file)
        model, tokenizer = load_model(base, field="--base", **given)
        edit.apply(model)
        return Pair.of(model, edit), tokenizer
    model, tokenizer = load_model(edited, field="EDITED", **given)
    return Pair.of(model, load_model(base, field="--base", **given)[0]), tokenizer


def _say_found(found: Any) -> None:
    """A line an attack."""
    width = max(len(variant.label) for variant in found.variants)
    say(f"{'attack':{width}}  facts  controls  base")
    for variant in found.variants:
        shares = (variant.edited.share, variant.edited.alarms, variant.ceiling.share)
        say(f"{variant.label:{width}}  {shares[0]:5.0%}  {shares[1]:8.0%}  {shares[2]:4.0%}")


@audit.command(epilog=EPILOG)
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--edited", metavar="MODEL", help="The model that it should be of.")
@click.option("--base", metavar="MODEL", help="The base model that it should be of.")
@click.option("--forget", type=click.Path(path_type=Path), help="The facts that it should be of.")
@click.option("--signed-by", type=click.Path(path_type=Path), metavar="KEY", help="The signer's public key (PEM).")
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE", help="The key of an audit with --redact.")
@DEVICE
@TRUST
@command
def verify(
    folder: Path,
    edited: str | None,
    base: str | None,
    forget: Path | None,
    signed_by: Path | None,
    key_file: Path | None,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Whether the certificate in FOLDER is of the audit beside it, and of what is named; the exit code is 1 if not.

    An edit's file is none of the models: apply it first.
    """
    from zerounlearn.audit.certificate import verify as check
    from zerounlearn.audit.results import Audit
    from zerounlearn.audit.signature import wrong_signature
    from zerounlearn.data.fact import load_facts
    from zerounlearn.model.loading import load_model
    from zerounlearn.redaction import read_key

    facts = load_facts(forget) if forget is not None else None
    dtype = Audit.load(folder).environment.get("dtype", "auto")
    wrong, unchecked = [], [] if signed_by is not None else ["signature: no key given"]
    if signed_by is not None and (problem := wrong_signature(folder, signed_by)):
        wrong.append(problem)
    models: dict[str, Any] = {}
    for name, given in (("edited", edited), ("base", base)):
        if given is not None:
            if Path(given).is_file():
                raise ConfigError(
                    f"--{name} {given!r} is a file: name a checkpoint's folder; `zerounlearn apply` makes one"
                )
            with stage(f"loading {name}"):
                models[name], _ = load_model(
                    given, dtype=dtype, device=device, trust_remote_code=trust_remote_code, field=f"--{name}"
                )
    more, rest = check(folder, **models, facts=facts, key=read_key(key_file))
    if problems := [*wrong, *more]:
        raise AuditError("; ".join(problems))
    of = [*(f"the {name} model" for name in models), *(["these facts"] if facts is not None else [])]
    of += ["this key's owner"] if signed_by is not None else []
    say(f"the certificate is of {', '.join(['this audit', *of])}")
    for line in [*unchecked, *rest]:
        say(f"not checked: {line}")
