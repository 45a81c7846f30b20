"""Files and folders: whole or not at all, and never in the place of somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zerounlearn.errors import OutputError
from zerounlearn.files import MARKER, check_folder, whole_folder


def result(place: Path, text: str = "new", **options: bool) -> None:
    with whole_folder(place, **options) as folder:
        (folder / "result").write_text(text)


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    result(tmp_path / "a" / "out")
    assert (tmp_path / "a/out/result").read_text() == "new"
    assert (tmp_path / "a/out" / MARKER).is_file()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    with pytest.raises(OutputError, match="--overwrite"):
        result(tmp_path / "a/out")
    result(tmp_path / "a/out", "second", overwrite=True)
    assert (tmp_path / "a/out/result").read_text() == "second"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_this_package_did_not_write_is_never_replaced(tmp_path: Path, overwrite: bool, monkeypatch) -> None:
    """The current folder, a parent, an input, somebody's folder, a link, a file."""
    theirs = tmp_path / "theirs"
    (theirs / "inner").mkdir(parents=True)
    (theirs / "inner/model.safetensors").write_text("weights")
    (tmp_path / "link").symlink_to(theirs)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(theirs / "inner")
    for place, message in [
        (Path("."), "is the current folder or holds it"),
        (Path(""), "is the current folder or holds it"),
        (theirs / "inner", "is the current folder or holds it"),
        (theirs, "is the current folder or holds it"),
        (Path("/"), "is the current folder or holds it"),
        (tmp_path / "link", "is a link"),
        (tmp_path / "dangling", "is a link"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file/out", "is a file"),
        (tmp_path / ("x" * 300), "too long a name"),
    ]:
        with pytest.raises(OutputError, match=message):
            result(place, overwrite=overwrite)
    monkeypatch.chdir(tmp_path / "theirs")
    with pytest.raises(OutputError, match="was not written by zerounlearn"):
        result(theirs / "inner", overwrite=overwrite)
    assert (theirs / "inner/model.safetensors").read_text() == "weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "link", "theirs"]


def test_a_folder_that_holds_an_input_is_not_replaced(tmp_path: Path, monkeypatch) -> None:
    """Not even one of this package's own: a second edit of a checkpoint over itself."""
    result(tmp_path / "out")
    for label, source in [("the model", tmp_path / "out"), ("--forget", tmp_path / "out/result")]:
        with pytest.raises(OutputError, match=f"holds {label}"):
            check_folder(tmp_path / "out", overwrite=True, inputs={label: source})
    with pytest.raises(OutputError, match="lies in the model's own folder"):
        check_folder(tmp_path / "out/deeper", inputs={"the model": tmp_path / "out"})
    assert (tmp_path / "out/result").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError(28, "No space left on device")])
def test_a_failure_leaves_the_old_and_nothing_else(tmp_path: Path, error) -> None:
    result(tmp_path / "out", "old")
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected), whole_folder(tmp_path / "out", overwrite=True) as folder:  # type: ignore[arg-type]
        (folder / "half").write_text("x")
        raise error
    assert (tmp_path / "out/result").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_filled_meanwhile_is_left_and_the_result_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"has been filled meanwhile; the result is in '.*out-1'"),
        whole_folder(tmp_path / "out") as folder,
    ):
        (folder / "result").write_text("mine")
        result(tmp_path / "out", "the other's")
    assert (tmp_path / "out/result").read_text() == "the other's"
    assert (tmp_path / "out-1/result").read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from zerounlearn import files
real, count = os.rename, [0]
def rename(*args):
    count[0] += 1
    if count[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args)
os.rename = rename
with files.whole_folder(Path("out"), overwrite=True) as folder:
    (folder / "result").write_text("new")
    if {at} == 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("at", "found"), [(0, "old"), (1, "old"), (2, "new")])
def test_killed_at_any_moment_a_whole_result_is_there_or_comes_back(tmp_path: Path, at: int, found: str) -> None:
    result(tmp_path / "out", "old")
    done = subprocess.run([sys.executable, "-c", KILLED.format(at=at)], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert left
    from zerounlearn.files import recover

    recover(tmp_path / "out")
    assert (tmp_path / "out/result").read_text() == found
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_staging_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as folder:
        assert str(os.getpid()) in folder.name
        from zerounlearn.files import recover

        recover(tmp_path / "out")
        assert folder.is_dir()
