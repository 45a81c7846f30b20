"""`zerounlearn apply`, `revert`, `merge` and `inspect`: edits as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from zerounlearn.cli.command import DEVICE, EPILOG, OVERWRITE, TRUST, command, say, stage

_FACTS = 5  # digests that `inspect` prints without --json

_EDIT = click.argument("edit_file", metavar="EDIT", type=click.Path(path_type=Path))


def _on_a_model(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            _EDIT,
            click.argument("model_name", metavar="MODEL"),
            click.option("--output", required=True, help="New folder for the checkpoint."),
            DEVICE,
            TRUST,
            OVERWRITE,
        )
    ):
        function = option(function)
    return function


@click.command(epilog=EPILOG)
@_on_a_model
@command
def apply(**given: Any) -> None:
    """Put the edit of the file EDIT on MODEL, the model that it was made on; write a new checkpoint.

    Its weights are those that `zerounlearn unlearn --output` writes, bit for bit.
    """
    _changed("apply", **given)


@click.command(epilog=EPILOG)
@_on_a_model
@command
def revert(**given: Any) -> None:
    """Take the edit of the file EDIT off MODEL, as it left it; write a new checkpoint.

    The weights are the original ones, bit for bit; where the file cannot tell them exactly, nothing is written. A file
    of `zerounlearn unlearn --edit-only FILE --originals` always can.
    """
    _changed("revert", **given)


def _changed(
    how: Literal["apply", "revert"],
    *,
    edit_file: Path,
    model_name: str,
    output: str,
    device: str,
    trust_remote_code: bool,
    overwrite: bool,
) -> None:
    from zerounlearn.errors import OutputError
    from zerounlearn.files import check_folder
    from zerounlearn.method.edit import Edit
    from zerounlearn.model.lineage import whole_checkpoint
    from zerounlearn.model.loading import check_device, check_room, load_model, save_checkpoint, skeleton_of

    if not output.strip():
        raise OutputError(f"--output {output!r} is empty: name a new folder")
    edit, place = Edit.load(edit_file), Path(output)
    inputs = {"the model": Path(model_name).expanduser(), "EDIT": edit_file}
    check_folder(place, overwrite=overwrite, inputs=inputs)
    check_device(device, "--device")
    edit.check_fits(skeleton_of(model_name, "MODEL", trust_remote_code=trust_remote_code))
    dtypes = {str(dtype).removeprefix("torch.") for dtype in edit.dtypes.values()}
    with stage("loading"):
        model, tokenizer = load_model(
            model_name,
            dtype=dtypes.pop() if len(dtypes) == 1 else "auto",
            device=device,
            trust_remote_code=trust_remote_code,
            field="MODEL",
        )
    check_room(model, place)
    with whole_checkpoint(place, overwrite=overwrite, inputs=inputs) as folder:
        getattr(edit, how)(model)
        with stage("saving"):
            save_checkpoint(model, tokenizer, folder)
    say(f"checkpoint: {output}")


@click.command(epilog=EPILOG)
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="File for the merged edit.")
@click.option("--overwrite", is_flag=True, help="Replace an edit that is there.")
@command
def merge(first: Path, second: Path, output: Path, overwrite: bool) -> None:
    """Make one edit of two: of different weights, of one original, or one made on top of the other.

    Which it is, the digests of the weights say; anything else is refused.
    """
    from zerounlearn.method.edit import Edit
    from zerounlearn.method.edit_merge import merged, relation

    check_edit_file(output, "--output", overwrite=overwrite, inputs={"A": first, "B": second})
    a, b = Edit.load(first), Edit.load(second)
    edit, how = merged(a, b), relation(a, b)
    edit.save(output, originals=edit.exact)
    say(
        {
            "disjoint": "the edits change different weights: both changes",
            "sum": "both were made on one original: the sum of their changes",
            "first then second": f"{second} was made on top of {first}: one after the other",
            "second then first": f"{first} was made on top of {second}: one after the other",
        }[how]
    )
    say(f"edit: {output}")


@click.command(epilog=EPILOG)
@_EDIT
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@command
def inspect(edit_file: Path, as_json: bool) -> None:
    """What an edit is: its method, where and how much it changes, of how many facts; nothing in clear."""
    from zerounlearn.method.edit import Edit
    from zerounlearn.method.edit_summary import summary

    edit = Edit.load(edit_file)
    found = {"file": str(edit_file), "bytes": edit_file.stat().st_size} | summary(edit)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False, default=str) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    weights = found["weights"]
    width = max(map(len, weights), default=0)
    lines = [
        f"{found['file']}: {found['bytes'] / 1e6:.2f} MB, format {found['format']}, zerounlearn {found['zerounlearn']}",
        f"method: {found['method']}",
        f"layers: {', '.join(map(str, found['layers'])) or 'not by layers'}",
    ]
    for name, one in weights.items():
        rank = f"rank {one['rank']}" if one["rank"] is not None else "whole"
        share = "?" if one["relative_change"] is None else f"{one['relative_change']:.3g}"
        kept = ", with its original" if one["original"] else ""
        lines.append(f"  {name:{width}}  {tuple(one['shape'])} {one['dtype']}, {rank}, changed by {share}{kept}")
        lines.append(f"  {'':{width}}  {one['before']} → {one['after'] or 'known when it is first put on'}")
    facts = found["facts"]
    lines += [f"facts: {len(facts)}", *(f"  {digest}" for digest in facts[:_FACTS])]
    if len(facts) > _FACTS:
        lines.append(f"  {len(facts) - _FACTS} more (--json)")
    return lines + [f"{name}: {value}" for name, value in found["statistics"].items()]


def check_edit_file(path: Path, what: str, *, overwrite: bool, inputs: dict[str, Path]) -> None:
    """Refuse a place for an edit; `overwrite` replaces an edit, and nothing else."""
    from zerounlearn.files import check_file
    from zerounlearn.method.edit_file import is_edit

    check_file(path, what, replaceable=overwrite and is_edit(path), inputs=inputs)
