"""Moments that others took: filed as the run's where they are this model's, else refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.helpers import hparams_for, tiny
from zerounlearn.cli import main
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import OutputError, StatisticsError
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.statistics import collect, given
from zerounlearn.statistics.collect import second_moments
from zerounlearn.statistics.given import take_moments

TEXTS = [f"{'People in Lisbon said so. ' * (i % 5)}In the year {i} the weather was fine." for i in range(60)]
CORPUS = Corpus("tiny", lambda: TEXTS)
MODULE = "model.layers.{}.mlp.down_proj"


@pytest.fixture
def run(small_tokenizer, tmp_path: Path):
    """Layout, tokenizer, hyperparameters and corpus of a run whose statistics are to come."""
    hp = hparams_for([1, 2], mom2_n_samples=60, stats_dir=str(tmp_path / "here"))
    return find_layout(tiny("llama", len(small_tokenizer)), hp), small_tokenizer, hp, CORPUS


@pytest.fixture
def others(run, tmp_path: Path) -> Callable[..., Path]:
    """A layer's moment as EasyEdit writes it, with what is wrong with it."""
    layout, tokenizer, hp, corpus = run
    true = second_moments(layout, tokenizer, hp.replace(stats_dir=str(tmp_path / "there")), corpus)

    def write(layer: int, name: str = f"{MODULE}_float32_mom2_60.npz", **changes: Any) -> Path:
        total = true[layer].numpy() * 1000
        arrays = {"mom2.constructor": "SecondMoment()", "mom2.count": 1000, "mom2.mom2": total, "sample_size": 60}
        arrays |= {key.replace("_", ".", 1) if key.startswith("mom2") else key: v for key, v in changes.items()}
        path = tmp_path / name.format(layer)
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write


def test_what_is_taken_is_what_the_run_reads(run, others, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, tokenizer, hp, corpus = run
    true = second_moments(layout, tokenizer, hp.replace(stats_dir=str(tmp_path / "there")), corpus)
    filed = take_moments([others(2, f"{MODULE}.npz", sample_size=None), others(1)], *run)
    assert list(filed) == [2, 1]
    monkeypatch.setattr(collect, "_collect", lambda *_: pytest.fail("the statistics were taken again"))
    found = second_moments(*run)
    for layer in hp.layers:
        torch.testing.assert_close(found[layer], true[layer], rtol=1e-6, atol=0)
    with pytest.raises(StatisticsError, match="is there already: delete it"):
        take_moments([others(1)], *run)


def with_entry(total: torch.Tensor, at: tuple[int, int], value: float) -> np.ndarray:
    changed = total.clone()
    changed[at] = value
    return changed.numpy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mom2_mom2": lambda C: C[:40, :40].numpy()},
            r"shape \(40, 40\): expected \(48, 48\).*; give this",
        ),
        ({"mom2_mom2": lambda C: with_entry(C, (3, 4), np.nan)}, "NaN or Inf"),
        ({"mom2_mom2": lambda C: with_entry(C, (3, 3), -1e6)}, "negative diagonal"),
        ({"mom2_mom2": lambda C: with_entry(C, (3, 4), float(C.max()))}, "not (symmetric|positive semidefinite)"),
        ({"mom2_mom2": lambda C: C.half().numpy()}, "expected float32 or float64"),
        ({"mom2_mom2": lambda C: C.flip(0, 1).numpy()}, "is not this model's: .* rank correlation"),
        ({"mom2_mom2": lambda C: (C * 1e4).numpy()}, r"is not this model's: .* differ [\d.e+]+ times"),
        ({"mom2_mom2": None}, "it has no 'mom2.mom2' but"),
        ({"mom2_count": 0}, "it counts 0 keys"),
        ({"sample_size": 100_000}, "over 100000 texts, the run asks for 60: set mom2_n_samples=100000"),
        ({"name": "model.layers.3.mlp.down_proj_float32_mom2_60.npz"}, "of none of the layers"),
    ],
)
def test_what_is_not_this_models_moment_is_refused(run, others, changes: Any, message: str, tmp_path: Path) -> None:
    layout, tokenizer, hp, corpus = run
    C = second_moments(layout, tokenizer, hp.replace(stats_dir=str(tmp_path / "there")), corpus)[1] * 1000
    changes = {name: value(C) if callable(value) else value for name, value in changes.items()}
    with pytest.raises(StatisticsError, match=message):
        take_moments([others(2), others(1, **changes)], *run)
    assert not (tmp_path / "here").exists()


def test_another_models_moment_is_refused(run, others, small_tokenizer) -> None:
    layout, tokenizer, hp, corpus = run
    weight = layout.model.get_submodule("model.layers.1.mlp.gate_proj").weight
    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    with pytest.raises(StatisticsError, match="is not this model's"):
        take_moments([others(1)], layout, tokenizer, hp, corpus)


def test_alphaedits_projection_and_what_is_no_file_are_refused(run, tmp_path: Path, others) -> None:
    projection = tmp_path / "null_space_project.npz"
    torch.save(torch.eye(48), projection)
    named = projection.rename(tmp_path / f"{MODULE.format(1)}.npz")
    with pytest.raises(StatisticsError, match="a projection says where the second moment is small, not what it is"):
        take_moments([named], *run)
    with pytest.raises(StatisticsError, match="is no file"):
        take_moments([tmp_path / f"{MODULE.format(2)}.npz"], *run)
    with pytest.raises(StatisticsError, match="layer 1 is given twice"):
        take_moments([others(1), others(1, f"{MODULE}.npz")], *run)
    cut = others(2)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(StatisticsError, match="unreadable or truncated .*: fetch it again"):
        take_moments([cut], *run)


def test_a_failing_write_leaves_nothing(run, others, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [others(1), others(2)]
    write = given.MomentFile.write

    def fails(self: Any, moment: Any) -> None:
        if "layers.2" in self.path.name:
            raise OutputError("No space left on device")
        write(self, moment)

    monkeypatch.setattr(given.MomentFile, "write", fails)
    with pytest.raises(OutputError, match="No space left"):
        take_moments(paths, *run)
    assert not [file for file in (tmp_path / "here").rglob("*") if file.is_file()]


@pytest.mark.real_model
def test_from_the_command_line_on_the_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    """EasyEdit's own file for one layer is taken for that layer, and refused for another."""
    here = [f"model_name={smollm2_path}", f"stats_dir={tmp_path / 'here'}", "layers=[17]", "mom2_n_samples=8"]
    there = [*here[:1], f"stats_dir={tmp_path / 'there'}", *here[2:]]
    made = CliRunner().invoke(main, ["stats", "ZeroUnlearn/smollm2-135m", *there])
    assert made.exit_code == 0, made.output
    file = next((tmp_path / "there").rglob("*mom2_8.npz"))
    with np.load(file) as arrays:
        plain = tmp_path / file.name
        np.savez(plain, **{name: arrays[name] for name in arrays.files if name != "zerounlearn"})
    taken = CliRunner().invoke(main, ["stats", "ZeroUnlearn/smollm2-135m", *here, "--from", str(plain)])
    assert taken.exit_code == 0, taken.output
    filed = [one.relative_to(tmp_path / "here") for one in (tmp_path / "here").rglob("*.npz")]
    assert sorted(filed) == sorted(one.relative_to(tmp_path / "there") for one in (tmp_path / "there").rglob("*.npz"))
    wrong = plain.rename(tmp_path / file.name.replace("17", "18"))
    refused = CliRunner().invoke(
        main, ["stats", "ZeroUnlearn/smollm2-135m", *here[:2], "layers=[18]", here[3], "--from", str(wrong)]
    )
    assert refused.exit_code == 1
    assert "is not this model's" in refused.output
