"""`zerounlearn export`: an edit as an adapter of another library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zerounlearn.cli.command import EPILOG, TRUST, command, say, stage
from zerounlearn.errors import ConfigError

if TYPE_CHECKING:
    from zerounlearn.method.edit import Edit


@click.command(epilog=EPILOG)
@click.argument("edit_file", metavar="EDIT", type=click.Path(path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["peft"]), default="peft", show_default=True, help="A LoRA adapter."
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for the adapter.")
@click.option("--rank", type=int, help="The adapter's highest rank; by default it is exact.")
@click.option("--model", help="The model that the edit was made on; by default the one that the edit names.")
@click.option("--base", help="The base model's name in the adapter; by default --model's, where that is no folder.")
@click.option("--check", is_flag=True, help="Load the model, and say how far its logits with the adapter are off.")
@TRUST
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@command
def export(
    edit_file: Path,
    kind: str,
    output: Path,
    rank: int | None,
    model: str | None,
    base: str | None,
    check: bool,
    trust_remote_code: bool,
    overwrite: bool,
) -> None:
    """Write the edit in the file EDIT as a LoRA adapter that peft loads, merges and unloads.

    The edit's own thin factors become the adapter, whose change is exactly the edit's; a whole change (of a gradient
    method) is decomposed. --rank cuts off what matters least, and what was lost is said.
    """
    from zerounlearn.files import check_folder, whole_folder
    from zerounlearn.method.edit import Edit
    from zerounlearn.method.export import check_exportable, write_adapter
    from zerounlearn.model.loading import skeleton_of

    edit = Edit.load(edit_file)
    name = model or str(edit.hparams.get("model_name") or "")
    if not name:
        raise ConfigError(f"{str(edit_file)!r} does not name the model that it was made on: pass --model")
    folder = Path(name).expanduser()
    inputs = {"EDIT": edit_file, "the model": folder}
    check_folder(output, overwrite=overwrite, inputs=inputs)
    skeleton = skeleton_of(name, "--model", trust_remote_code=trust_remote_code)
    check_exportable(edit, skeleton, rank)
    named = base or (None if folder.is_dir() else name)
    with whole_folder(output, overwrite=overwrite, inputs=inputs) as staged:
        exported = write_adapter(edit, staged, skeleton, rank=rank, base=named)
        gap = _gap(edit, name, staged, trust_remote_code) if check else None
    for weight in exported.weights:
        lost = f", {weight.error:.2%} of the change cut off" if weight.error else ""
        say(f"{weight.name}: rank {weight.rank} of {weight.of}{lost}")
    size = (output / "adapter_model.safetensors").stat().st_size / 1e6
    whole = f"{exported.error:.2%} of the change cut off (Frobenius)" if exported.error else "exact to float32"
    say(f"adapter: {output}, {size:.1f} MB, {whole}")
    if gap is not None:
        say(f"largest difference of a logit to the edited model: {gap:.2g}")


def _gap(edit: Edit, name: str, folder: Path, trust_remote_code: bool) -> float:
    from zerounlearn.method.export import adapter_gap
    from zerounlearn.model.loading import load_model

    with stage("loading"):
        model, tokenizer = load_model(name, trust_remote_code=trust_remote_code, field="--model")
    return adapter_gap(edit, model, tokenizer, folder)
