"""What is remembered of edits: read whole, or one error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.helpers import tiny
from zerounlearn.errors import OutputError
from zerounlearn.model.lineage import STATE_FILE, Lineage, Trace, set_state_aside, state_file, whole_checkpoint

NAME = "model.layers.1.mlp.down_proj.weight"
D, M = 32, 48


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    sizes = {"keys": (3, M), "outputs": (3, D), "directions": (D, 2)}
    return {f"{NAME}/0/{part}": torch.randn(*size, generator=draw) for part, size in sizes.items()}


def write(folder: Path, description: Any = None, stored: dict[str, torch.Tensor] | None = None) -> Path:
    described = {"edits": {NAME: 1}, "origins": {"a": "b"}} if description is None else description
    save_file(stored or tensors(), folder / STATE_FILE, metadata={"zerounlearn": json.dumps(described)})
    return folder / STATE_FILE


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trace = Trace(*tensors().values())
    Lineage({"a": "b"}, {NAME: [trace]}).save(tmp_path)
    found = Lineage.load(tmp_path)
    assert found.origins == {"a": "b"}
    assert all(torch.equal(getattr(found.traces[NAME][0], part), getattr(trace, part)) for part in vars(trace))
    assert found.file == str(tmp_path / STATE_FILE)
    Lineage({"a": "b"}).save(tmp_path)
    assert (Lineage.load(tmp_path).origins, Lineage.load(tmp_path).traces) == ({"a": "b"}, {})


@pytest.mark.parametrize(
    "description",
    [
        {"edits": {NAME: 1}},
        {"edits": {NAME: 1}, "origins": []},
        {"edits": {NAME: 1}, "origins": {"a": 3}},
        {"edits": [NAME], "origins": {}},
        {"edits": {NAME: "1"}, "origins": {}},
        {"edits": {NAME: True}, "origins": {}},
        {"edits": {NAME: 2}, "origins": {}},
        {"edits": {NAME: 10**9}, "origins": {}},
        {"edits": {NAME: 0}, "origins": {}},
        {"edits": {}, "origins": {}},
        {"edits": {"another": 1}, "origins": {}},
        [],
        3,
    ],
)
def test_a_description_of_something_else_is_refused(description: Any, tmp_path: Path) -> None:
    write(tmp_path, description)
    with pytest.raises(OutputError, match=f"{STATE_FILE}.*damaged.*delete it"):
        Lineage.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("keys", lambda X: X * torch.nan),
        ("keys", lambda X: X[0]),
        ("keys", lambda X: X.double()),
        ("keys", lambda X: X.to(torch.int32)),
        ("keys", lambda X: X[:2].contiguous()),
        ("outputs", lambda X: X[:, :5].contiguous()),
        ("directions", lambda X: X[:5].contiguous()),
        ("directions", lambda X: X.to(torch.complex64)),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(part: str, change: Any, tmp_path: Path) -> None:
    stored = tensors()
    stored[f"{NAME}/0/{part}"] = change(stored[f"{NAME}/0/{part}"])
    write(tmp_path, stored=stored)
    with pytest.raises(OutputError, match=f"{STATE_FILE}.*damaged.*delete it"):
        Lineage.load(tmp_path)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).mkdir()
    with pytest.raises(OutputError, match="not a file"):
        Lineage.load(tmp_path)


def test_the_state_of_another_model_is_named(tmp_path: Path, caplog) -> None:
    write(tmp_path)
    model = tiny("llama", 64)
    model.config._name_or_path = str(tmp_path)
    Lineage.of(model).check_fits(model)
    weight = model.get_parameter(NAME).data
    assert Lineage.of(model).earlier(NAME, weight) == []
    assert "1 of the 1 edits" in caplog.text and STATE_FILE in caplog.text
    for shape in ((D, M + 1), (D + 1, M)):
        with pytest.raises(OutputError, match=f"{STATE_FILE}.*another model's"):
            Lineage.load(tmp_path).earlier(NAME, torch.zeros(shape))
    write(tmp_path, {"edits": {"model.layers.9.weight": 1}, "origins": {}}, {
        key.replace(NAME, "model.layers.9.weight"): value for key, value in tensors().items()
    })  # fmt: skip
    with pytest.raises(OutputError, match=r"model.layers.9.weight.*another model's"):
        Lineage.load(tmp_path).check_fits(model)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_harmless_or_named(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("state")
    file = write(folder)
    content = file.read_bytes()
    start = data.draw(st.integers(0, min(len(content), 700)))  # the header; numbers have no checksum
    end = data.draw(st.integers(start, min(len(content), start + 300)))
    file.write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
    refusal = ""
    try:
        found = Lineage.load(folder)
    except OutputError as error:
        refusal = str(error)
    if not refusal:
        assert set(map(type, found.origins.values())) <= {str}
        assert all(isinstance(trace, Trace) for traces in found.traces.values() for trace in traces)
    else:
        assert STATE_FILE in refusal and "\n" not in refusal


def test_the_state_of_a_finished_checkpoint_lies_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where it is moved away, whoever edits the checkpoint is told; an interrupted run leaves it inside."""
    place = tmp_path / "model"
    with whole_checkpoint(place) as folder:
        Lineage({"a": "b"}).save(folder)
    beside = state_file(place)
    assert beside == tmp_path / f"model-{STATE_FILE}" and beside.is_file() and not (place / STATE_FILE).exists()
    assert Lineage.load(place).origins == {"a": "b"} and Lineage.load(place).file == str(beside)
    assert not caplog.text
    beside.rename(tmp_path / "elsewhere")
    assert Lineage.load(place).origins == {}
    assert f"{beside} is not there" in caplog.text
    Lineage({"c": "d"}).save(place)  # as a run that was killed before it moved the state
    assert Lineage.load(place).origins == {"c": "d"}
    set_state_aside(place)
    with whole_checkpoint(place, overwrite=True) as folder:
        (folder / "config.json").write_text("{}")
    assert not beside.exists(), "the new checkpoint was never edited"
    assert Lineage.load(place).origins == {}
    assert caplog.text.count("is not there") == 1
