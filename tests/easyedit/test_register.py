"""Entering methods into EasyEdit's tables, with stand-ins for its modules and with the real editions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zerounlearn.errors import FrameworkError, RegistrationError

pytest.importorskip(
    "zerounlearn.easyedit",
    exc_type=FrameworkError,
    reason="EasyEdit is neither installed nor in EASYEDIT_HOME",
)
from zerounlearn.easyedit.editions.compat import HOME, Framework
from zerounlearn.easyedit.register import Method, register, unregister


class OurHyperParams:
    pass


class OtherHyperParams:
    pass


def apply_ours(*args: object, **kwargs: object) -> None:
    return None


def apply_other(*args: object, **kwargs: object) -> None:
    return None


def apply_rome(*args: object, **kwargs: object) -> None:
    return None


OURS = {"Ours": Method(apply_ours, OurHyperParams)}
OTHER = {"Other": Method(apply_other, OtherHyperParams, batchable=False)}


def new_batch_editor() -> type[Enum]:
    class BatchEditor(Enum):
        MEMIT = "MEMIT"

        @staticmethod
        def is_batchable_method(alg_name: str) -> bool:
            return alg_name == BatchEditor.MEMIT.value

    return BatchEditor


class Fake:
    """Stand-ins for the modules that `register` reaches, with a copy of what they held at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.package = ModuleType("fakeeditor")
        self.table: dict[str, Callable[..., Any]] = {"ROME": apply_rome}
        self.batch_editor = new_batch_editor()
        self.editor = ModuleType("fakeeditor.editors.editor")
        self.editor.__dict__.update(ALG_DICT=self.table)
        alg_dict = ModuleType("fakeeditor.util.alg_dict")
        alg_dict.__dict__.update(ALG_DICT=self.table)
        batch = ModuleType("fakeeditor.editors.batch_editor")
        batch.__dict__.update(BatchEditor=self.batch_editor)
        for module in (self.package, self.editor, alg_dict, batch):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        self.framework = Framework(self.package, "checkout", Path("fakeeditor"))
        self.first = self.state()

    def state(self) -> tuple[object, ...]:
        check = vars(self.batch_editor)["is_batchable_method"]
        return dict(self.table), check, dict(vars(self.package))

    def batchable(self, name: str) -> bool:
        return self.batch_editor.is_batchable_method(name)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = Fake(monkeypatch)
    yield fake
    unregister(fake.framework)


def test_registered_method_is_selectable_batchable_and_importable(fake: Fake) -> None:
    assert not fake.batchable("Ours")
    register(fake.framework, OURS | OTHER)
    assert fake.table["Ours"] is fake.editor.ALG_DICT["Ours"] is apply_ours
    assert fake.package.OurHyperParams is OurHyperParams
    assert fake.batchable("Ours")
    assert not fake.batchable("Other")


def test_what_was_there_stays_as_it_was(fake: Fake) -> None:
    register(fake.framework, OURS)
    assert fake.table["ROME"] is apply_rome
    assert fake.batchable("MEMIT")
    assert not fake.batchable("ROME")
    assert [member.name for member in fake.batch_editor] == ["MEMIT"]


def test_registering_again_changes_nothing(fake: Fake) -> None:
    register(fake.framework, OURS)
    once = fake.state()
    register(fake.framework, {"Ours": Method(apply_ours, OurHyperParams)})
    assert fake.state() == once


def test_methods_can_be_added_one_after_another(fake: Fake) -> None:
    register(fake.framework, OTHER)
    register(fake.framework, OURS)
    assert {"Ours", "Other"} < set(fake.table)
    assert fake.batchable("Ours")
    unregister(fake.framework)
    assert fake.state() == fake.first


def test_unregister_restores_the_original_objects(fake: Fake) -> None:
    register(fake.framework, OURS | OTHER)
    assert fake.state() != fake.first
    unregister(fake.framework)
    assert fake.state() == fake.first
    assert vars(fake.batch_editor)["is_batchable_method"] is fake.first[1]


def test_unregister_without_register_does_nothing(fake: Fake) -> None:
    unregister(fake.framework)
    assert fake.state() == fake.first


def test_register_works_again_after_unregister(fake: Fake) -> None:
    register(fake.framework, OURS)
    unregister(fake.framework)
    register(fake.framework, OURS)
    assert fake.batchable("Ours")


def test_name_in_use_is_refused_and_nothing_is_registered(fake: Fake) -> None:
    with pytest.raises(RegistrationError, match=r"'ROME' is already .*apply_rome"):
        register(fake.framework, {**OURS, "ROME": Method(apply_other, OtherHyperParams)})
    assert fake.state() == fake.first


def test_hparams_name_in_use_is_refused_and_nothing_is_registered(fake: Fake) -> None:
    theirs = type("OurHyperParams", (), {})
    fake.package.__dict__.update(OurHyperParams=theirs)
    first = fake.state()
    with pytest.raises(RegistrationError, match=r"fakeeditor\.OurHyperParams is already"):
        register(fake.framework, OURS)
    assert fake.state() == first


def test_another_apply_under_our_name_is_refused(fake: Fake) -> None:
    register(fake.framework, OURS)
    with pytest.raises(RegistrationError, match="'Ours' is already"):
        register(fake.framework, {"Ours": Method(apply_other, OurHyperParams)})
    assert fake.table["Ours"] is apply_ours


def test_entry_made_by_somebody_else_is_not_taken_out(fake: Fake) -> None:
    fake.table["Ours"] = apply_ours
    register(fake.framework, OURS)
    unregister(fake.framework)
    assert fake.table["Ours"] is apply_ours


def test_what_replaced_our_entries_stays_after_unregister(fake: Fake) -> None:
    register(fake.framework, OURS)
    ours = fake.batch_editor.is_batchable_method  # type: ignore[attr-defined]
    theirs = staticmethod(lambda name: name == "Theirs" or ours(name))
    fake.batch_editor.is_batchable_method = theirs  # type: ignore[attr-defined]
    fake.table["Ours"] = apply_other
    fake.package.__dict__.update(OurHyperParams=OtherHyperParams)
    unregister(fake.framework)
    assert fake.table["Ours"] is apply_other
    assert fake.package.OurHyperParams is OtherHyperParams
    assert fake.batchable("Theirs")
    assert fake.batchable("MEMIT")
    assert not fake.batchable("Ours")


def test_split_tables_are_reported(fake: Fake) -> None:
    fake.editor.__dict__.update(ALG_DICT=dict(fake.table))
    with pytest.raises(RegistrationError, match=r"editors\.editor\.ALG_DICT"):
        register(fake.framework, OURS)


REAL = """
import importlib, sys
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.easyedit.register import Method, register, unregister

class OurHyperParams:
    pass

def apply(model, tok, requests, hparams, **kwargs):
    return model, {}

found = framework()
unregister(found)  # what importing zerounlearn.easyedit has registered
editor = importlib.import_module("easyeditor.editors.editor")
check = vars(editor.BatchEditor)["is_batchable_method"]
names, attributes = list(editor.ALG_DICT), set(vars(found.module))
tables = [m.ALG_DICT for n, m in sys.modules.items() if n.startswith("easyeditor") and "ALG_DICT" in vars(m)]
assert len(tables) > 2 and all(table is editor.ALG_DICT for table in tables)

methods = {"Ours": Method(apply, OurHyperParams)}
register(found, methods)
register(found, methods)
from easyeditor import OurHyperParams as exposed
assert exposed is OurHyperParams
assert editor.ALG_DICT["Ours"] is apply
assert editor.BatchEditor.is_batchable_method("Ours")
assert editor.BatchEditor.is_batchable_method("MEMIT")
assert not editor.BatchEditor.is_batchable_method("ROME")

hparams = OurHyperParams()
hparams.__dict__.update(model_name=(None, None), alg_name="Ours", model_parallel=True, device="cpu")
if found.edition == "checkout":
    assert editor.BaseEditor(hparams).apply_algo is apply

unregister(found)
assert list(editor.ALG_DICT) == names
assert set(vars(found.module)) == attributes
assert vars(editor.BatchEditor)["is_batchable_method"] is check
print("EDITION", found.edition)
"""


def run_real(home: str | None, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != HOME}
    if home:
        environment[HOME] = home
    completed = subprocess.run(
        [sys.executable, "-c", REAL], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    return completed.stdout


def test_real_wheel(tmp_path: Path) -> None:
    installed = [Path(folder) / "easyeditor" for folder in sys.path]
    if not any((folder / "__init__.py").is_file() for folder in installed):
        pytest.skip("EasyEdit is not installed: pip install --no-deps easyeditor")
    assert "EDITION wheel" in run_real(None, tmp_path)


@pytest.mark.easyedit_checkout
def test_real_checkout(tmp_path: Path) -> None:
    home = os.environ.get(HOME)
    if not home:
        pytest.skip(f"{HOME} does not name a checkout of EasyEdit")
    assert "EDITION checkout" in run_real(home, tmp_path)
