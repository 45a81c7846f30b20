"""Cached statistics and unfinished sums as anybody may have written them: read, left alone, or one error."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerounlearn.core.moments import SecondMoment
from zerounlearn.errors import ConfigError, IllPosedError, OutputError, StatisticsError
from zerounlearn.statistics.arrays import check_second_moment
from zerounlearn.statistics.config import StatisticsConfig, check_statistics
from zerounlearn.statistics.files import Key, MomentFile, Unfinished, check_folder, check_stats_dir

M = 12
KEY = Key("module.1", "text", 10, 512, "float32", "w", "t", "c")
ROWS = torch.randn(40, M, generator=torch.Generator().manual_seed(0))
TOTAL = (ROWS.mT @ ROWS).numpy()


def arrays(**changes: Any) -> dict[str, Any]:
    return {"mom2.count": 40, "mom2.mom2": TOTAL, "sample_size": 10} | changes


def moment_file(folder: Path, key: Key = KEY, **more: Any) -> MomentFile:
    return MomentFile(folder / KEY.file(), key, M, **more)


def test_what_is_written_is_read_by_its_own_key_only(tmp_path: Path) -> None:
    file = moment_file(tmp_path)
    file.write(SecondMoment(40, torch.from_numpy(TOTAL)))
    assert file.fits() and file.described()
    assert torch.equal(file.mean(), torch.from_numpy(TOTAL) / 40)
    for field in dataclasses.fields(Key):
        other = 11 if isinstance(getattr(KEY, field.name), int) else "other"
        assert not moment_file(tmp_path, dataclasses.replace(KEY, **{field.name: other})).fits(), field.name


def test_a_file_that_says_nothing_is_taken_by_its_name_with_a_warning(tmp_path: Path, caplog) -> None:
    np.savez(tmp_path / KEY.file(), **arrays())
    for _ in range(2):
        assert moment_file(tmp_path).fits()
    assert caplog.text.count("does not say which weights") == 1
    assert KEY.file() in caplog.text
    assert not moment_file(tmp_path, foreign=False).fits()
    assert not moment_file(tmp_path).described()


def damaged(change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return arrays(**{"mom2.mom2": change(TOTAL)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (damaged(lambda A: A.astype(str)), "of <U"),
        (damaged(lambda A: A.astype(complex)), "of complex128"),
        (damaged(lambda A: A.astype(np.int64)), "of int64"),
        (damaged(lambda A: A > 0), "of bool"),
        (damaged(lambda A: A.astype(np.uint16)), "of uint16"),
        (damaged(lambda A: A.astype(np.float16)), "float16"),
        (damaged(lambda A: A.astype(object)), "of object"),
        (damaged(lambda A: -A), "negative diagonal"),
        (damaged(lambda A: A + 10 * np.triu(np.ones_like(A), 1)), "not symmetric"),
        (damaged(lambda A: A + 100 * (1 - np.eye(M, dtype=A.dtype))), "not positive semidefinite"),
        (damaged(lambda A: 0 * A), "all zero"),
        (damaged(lambda A: A[:5, :5]), "another model"),
        (damaged(lambda A: A[0]), "another model"),
        (arrays(**{"mom2.count": np.ones(3)}), "mom2.count"),
        (arrays(**{"mom2.count": 0}), "0 tokens"),
        (arrays(**{"mom2.count": 1.5}), "whole number"),
        (arrays(**{"mom2.count": np.nan}), "whole number"),
        (arrays(**{"mom2.count": True}), "of bool"),
        (arrays(sample_size=np.ones(3)), "sample_size"),
        (arrays(zerounlearn="{"), "unreadable"),
        (arrays(zerounlearn="[" * 16_000), "unreadable"),
        (arrays(zerounlearn=json.dumps([1])), "description"),
        (arrays(zerounlearn=3), "zerounlearn"),
    ],
)
def test_arrays_that_are_not_what_they_should_be(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / KEY.file(), **content)
    with pytest.raises(StatisticsError, match=rf"mom2_10.npz.*{message}") as caught:
        moment_file(tmp_path).fits()
    assert "delete it" in str(caught.value)


def test_what_is_not_finite_is_ill_posed(tmp_path: Path) -> None:
    np.savez(tmp_path / KEY.file(), **damaged(lambda A: np.where(np.eye(M, dtype=bool), np.inf, A)))
    with pytest.raises(IllPosedError, match=r"module\.1"):
        moment_file(tmp_path).fits()


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """An npz file whose moment has this header."""
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
    stream = io.BytesIO()
    np.savez(stream, **arrays())
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(made := io.BytesIO(), "w") as new:
        for name in old.namelist():
            new.writestr(name, npy if name == "mom2.mom2.npy" else old.read(name))
    return made.getvalue()


def compressed_and_broken() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays())
    content = bytearray(stream.getvalue())
    start = content.index(b"mom2.mom2.npy") + 60
    content[start : start + 60] = bytes(60)
    return bytes(content)


def plain_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, TOTAL)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        plain_array(),
        with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000,), }\n"),
        with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 10000000), }\n"),
        with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (12, 12), }\n", b"short"),
        with_header(b"{'descr': '<f4', 'shape': ((((((((\n"),
        with_header(b" " * 60_000),
        compressed_and_broken(),
        b"PK\x03\x04" + bytes(100),
    ],
    ids=["npy", "1e14 elements", "1e7 x 1e7", "short", "open header", "long header", "zlib", "zip"],
)
def test_files_that_are_damaged(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / KEY.file()
    file.write_bytes(content)
    with pytest.raises(StatisticsError, match=r"mom2_10.npz.*(delete it)"):
        moment_file(tmp_path).fits()


def test_a_pipe_or_folder_in_a_caches_place_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / KEY.file())
    with pytest.raises(StatisticsError, match="is not a file"):
        moment_file(tmp_path).fits()
    with pytest.raises(StatisticsError, match="is not a file"):
        MomentFile(tmp_path, KEY, M).fits()


def whole(folder: Path) -> bytes:
    moment_file(folder).write(SecondMoment(40, torch.from_numpy(TOTAL)))
    return (folder / KEY.file()).read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_harmless_or_named(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("stats")
    content = whole(folder)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 400)))
    (folder / KEY.file()).write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
    refusal, accepted = "", False
    try:
        accepted = moment_file(folder, foreign=False).fits()
    except (StatisticsError, IllPosedError) as error:
        refusal = str(error)
    if accepted:
        assert torch.equal(moment_file(folder).mean(), torch.from_numpy(TOTAL) / 40)
    else:
        assert not refusal or KEY.file() in refusal


def unfinished(folder: Path) -> Unfinished:
    return Unfinished(folder / ".x.partial.npz", {1: SecondMoment.zeros(M), 2: SecondMoment.zeros(M)})


@pytest.mark.parametrize(
    "changes",
    [
        {"done": -5},
        {"done": 31},
        {"done": np.ones(2)},
        {"1.count": -1},
        {"1.count": "x"},
        {"2.total": np.eye(5)},
        {"2.total": np.full((M, M), np.nan)},
        {"2.total": -np.eye(M)},
        {"2.total": np.eye(M).astype(complex)},
        {"2.total": np.eye(M).astype(str)},
    ],
)
def test_damaged_sums_are_begun_anew(changes: dict[str, Any], tmp_path: Path, caplog) -> None:
    state = unfinished(tmp_path)
    state.add({1: SecondMoment(40, torch.from_numpy(TOTAL)), 2: SecondMoment(40, torch.from_numpy(TOTAL))}, 20)
    with pytest.raises(KeyboardInterrupt), state.kept():
        state.add({1: SecondMoment.zeros(M), 2: SecondMoment.zeros(M)}, 1)
        raise KeyboardInterrupt
    sound = unfinished(tmp_path)
    sound.resume(30)
    assert (sound.done, sound.moments[1].count) == (21, 40)
    assert torch.equal(sound.moments[2].total, torch.from_numpy(TOTAL).double())
    np.savez(state.path, **(dict(np.load(state.path)) | changes))
    again = unfinished(tmp_path)
    again.resume(30)
    assert (again.done, again.moments[1].count, float(again.moments[2].total.abs().max())) == (0, 0, 0.0)
    assert "starting over" in caplog.text and ".partial.npz" in caplog.text


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 30), seed=st.integers(0, 2**31), power=st.integers(-20, 20))
def test_no_second_moment_is_refused(rows: int, seed: int, power: int) -> None:
    X = torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (power / 2)
    check_second_moment(X.mT @ X)
    check_second_moment((X.mT @ X).double())


def test_statistics_settings_are_checked_without_a_model(tmp_path: Path) -> None:
    good = StatisticsConfig(layers=[1], stats_dir=str(tmp_path / "new" / "er"))
    check_statistics(good)
    assert not (tmp_path / "new").exists(), "nothing is made"
    wrong = {"mom2_n_samples": 10**30, "mom2_dtype": "float16", "stats_max_length": 0, "layers": []}
    for field, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"{field}="):
            check_statistics(dataclasses.replace(good, **{field: value}))


def test_a_stats_dir_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below/it", "link", "a\0b", "n" * 300):
        with pytest.raises(ConfigError, match="stats_dir="):
            check_stats_dir(str(tmp_path / name))
    with pytest.raises(OutputError, match="set another stats_dir"):
        check_folder(tmp_path / "file" / "x")
