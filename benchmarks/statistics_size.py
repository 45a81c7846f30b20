"""How much ordinary text C needs: what is forgotten and kept, and the size of the change, by the tokens behind C.

    python benchmarks/statistics_size.py            # measures what has no result yet, then writes the table
    python benchmarks/statistics_size.py --write    # writes what there is

The methods, facts and seeds of studies/statistics_size.yaml, with C over so many tokens for each of a layer's m inputs;
a seed draws the facts, the contexts and the texts. A smaller C is of the first texts of a larger one, and the model
reads them once. z* and V_u do not depend on C: they are found once for all sizes of a seed, MEMIT's too. Writes
benchmarks/results/statistics_size.{json,svg} and the table in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import numpy as np
import torch
from pages import between
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.core.moments import SecondMoment
from zerounlearn.data.corpora import Corpus, open_corpus
from zerounlearn.easyedit.editions.compat import PACKAGE
from zerounlearn.files import write_text
from zerounlearn.method.zerounlearn import method as algorithm
from zerounlearn.method.zerounlearn.config import LocatedEdit
from zerounlearn.model.loading import load_model
from zerounlearn.statistics import collect
from zerounlearn.statistics.collect import folders_of, keys_of, second_moments
from zerounlearn.statistics.files import MomentFile
from zerounlearn.study.material import Data, Material
from zerounlearn.study.measures import Measures, resolved
from zerounlearn.study.methods import Row
from zerounlearn.study.spec import MethodSpec, Study, load_study

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "studies/statistics_size.yaml"
RESULT = ROOT / "benchmarks/results/statistics_size.json"
PLOT = RESULT.with_suffix(".svg")
PAGE = ROOT / "docs/scaling.md"
MARKS = "<!-- tokens behind C -->", "<!-- end of tokens behind C -->"
TEXTS = 300
SIZES = ("0.25m", "0.5m", "1m", "2m", "5m", "10m", "20m")
SHOWN = {
    "eff": ("Eff ↓", 100.0, 1),
    "gen": ("Gen ↓", 100.0, 1),
    "spe_relation": ("Spe relation ↑", 100.0, 1),
    "spe_subject": ("Spe subject ↑", 100.0, 1),
    "spe_unrelated": ("Spe unrelated ↑", 100.0, 1),
    "ppl": ("PPL ↓", 1.0, 2),
    "change": ("‖ΔW‖ / ‖W‖, %", 100.0, 2),
}
Record = dict[str, Any]


def texts_of(seed: int, folder: Path) -> Path:
    """A file of texts of the embedded corpus, drawn by the seed."""
    file = folder / f"texts-{seed}.jsonl"
    texts = list(open_corpus("embedded").texts())
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:TEXTS].tolist()
    write_text(file, "".join(json.dumps({"text": texts[i]}) + "\n" for i in order))
    return file


def take_moments(method: LocatedEdit, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """C of every size in its cache, from one pass over the texts of the largest."""
    layout, corpus = algorithm.find_layout(model, method), open_corpus(method.mom2_dataset)
    texts, sums, done = corpus.texts(), {layer: SecondMoment.zeros(layout.inputs(layer)) for layer in method.layers}, 0
    for size in SIZES:
        run = method.replace(mom2_n_samples=size)
        own, _ = keys_of(layout, tokenizer, run, corpus)
        files = {layer: folders_of(layout, run, corpus)[0] / key.file() for layer, key in own.items()}
        chosen = collect._chosen(layout, tokenizer, run, corpus.name, texts)
        more, done = [texts[i] for i in chosen[done:]], len(chosen)
        if more:
            part = Corpus(f"{corpus.name}-to-{size}", lambda more=more: more)
            found = second_moments(layout, tokenizer, run.replace(mom2_n_samples=len(more)), part)
            for layer, file in found.files.items():
                moment = np.load(file.path)
                sums[layer] += SecondMoment(int(moment["mom2.count"]), torch.from_numpy(moment["mom2.mom2"]))
        for layer, key in own.items():
            whole = MomentFile(files[layer], key, layout.inputs(layer))
            whole.path.parent.mkdir(parents=True, exist_ok=True)
            whole.write(SecondMoment(sums[layer].count, sums[layer].total.float()))


@contextmanager
def found_once() -> Iterator[None]:
    """Vectors that were found once on the unedited model are given again when they are asked for again."""
    kept: dict[Any, Any] = {}

    def once(name: str, original: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
        def find(*args: Any, **more: Any) -> Any:
            asked = (name, key(*args))
            if asked not in kept:
                kept[asked] = original(*args, **more)
            return kept[asked]

        return find

    memit = importlib.import_module(f"{PACKAGE}.models.memit.memit_main")
    ours = once("ours", algorithm.optimise, lambda layout, tok, problems, *_: tuple(problems))
    theirs = once("MEMIT", memit.compute_z, lambda model, tok, request, *_: (request["prompt"], request["subject"]))
    with mock.patch.object(algorithm, "optimise", ours), mock.patch.object(memit, "compute_z", theirs):
        yield


def measure(study: Study, folder: Path) -> None:
    """Every method, seed and size that has no result yet."""
    model, tokenizer = load_model(study.model.name, dtype=study.model.dtype, device=study.model.device)
    data = Data.load(study.datasets[0]).asked_of(model, tokenizer)
    for seed in study.seeds:
        drawn = data.draw(10, seed, retain_size=study.retain_size, unrelated_size=study.unrelated_size)
        material = resolved(model, tokenizer, drawn)
        texts = texts_of(seed, folder)
        for spec in study.methods:
            method = row_of(study, spec, texts, SIZES[-1]).method
            if isinstance(method, LocatedEdit):  # MEMIT's is the first's
                take_moments(method, model, tokenizer)
            with found_once():
                for size in SIZES:
                    file = folder / f"{spec.label}-{seed}-{size}.json"
                    if not file.exists():
                        found = run(study, spec, model, tokenizer, material, seed, texts, size)
                        write_text(file, json.dumps(found) + "\n")
                        print(spec.label, seed, size, {k: round(v, 4) for k, v in found.items()}, flush=True)


def row_of(study: Study, spec: MethodSpec, texts: Path, size: str) -> Row:
    """The method with C over so much of these texts; EasyEdit's take it from us, and may name tokens, too."""
    chosen = {**spec.set, "mom2_dataset": str(texts), "mom2_n_samples": size, "stats_dir": str(texts.parent / "stats")}
    return Row.load(MethodSpec(spec.label, spec.hparams, chosen), study.model)


def run(
    study: Study,
    spec: MethodSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    seed: int,
    texts: Path,
    size: str,
) -> Record:
    """What a method does with C over so much text; the model is put back."""
    row = row_of(study, spec, texts, size)
    names = row.method.weight_names(model)
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    edit = row.apply(model, tokenizer, material, seed)
    try:
        change = sum(float((model.get_parameter(n) - W).double().norm() ** 2) for n, W in before.items())
        whole = sum(float(W.double().norm() ** 2) for W in before.values())
        measures = Measures(study)
        found = measures.take(measures.asked(model, tokenizer, material))
    finally:
        edit.revert(model)
    return {name: found[name] for name in SHOWN if name in found} | {"change": (change / whole) ** 0.5}


def collected(study: Study, folder: Path) -> list[Record]:
    """The results that are there."""
    return [
        {"method": spec.label, "seed": seed, "size": size} | json.loads(file.read_text())
        for spec in study.methods
        for size in SIZES
        for seed in study.seeds
        if (file := folder / f"{spec.label}-{seed}-{size}.json").exists()
    ]


def table(records: Sequence[Record]) -> str:
    """Means ± standard deviations over seeds."""
    head = ["method", "tokens behind C", "seeds", *(label for label, *_ in SHOWN.values())]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, size in dict.fromkeys((r["method"], r["size"]) for r in records):
        own = [r for r in records if (r["method"], r["size"]) == (method, size)]
        cells = []
        for name, (_, scale, digits) in SHOWN.items():
            values = [scale * r[name] for r in own]
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}")
        lines.append(f"| {method} | {size.removesuffix('m')} m | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(records: Sequence[Record]) -> None:
    """Each number over the size, a line a method."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "zerounlearn"
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(2, 4).flat
    sizes = list(dict.fromkeys(r["size"] for r in records))
    for axes, (name, (label, scale, _)) in zip(panels, SHOWN.items(), strict=False):
        for method in dict.fromkeys(r["method"] for r in records):
            of = [[scale * r[name] for r in records if (r["method"], r["size"]) == (method, s)] for s in sizes]
            axes.plot(
                [i for i, values in enumerate(of) if values],
                [mean(values) for values in of if values],
                marker=".",
                label=method,
            )
        axes.set_title(label, fontsize=9)
        axes.set_xticks(range(len(sizes)), [s.removesuffix("m") for s in sizes], fontsize=7)
    panels = list(figure.axes)
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", title="tokens behind C, by m")
    figure.savefig(PLOT, metadata={"Date": None})


def filled(page: str) -> str:
    """The page with the table between its marks."""
    return between(page, *MARKS, table(json.loads(RESULT.read_text(encoding="utf-8"))))


def main() -> None:
    """Measure what is missing, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    args = parser.parse_args()
    study = load_study(STUDY)
    folder = ROOT / study.output
    folder.mkdir(parents=True, exist_ok=True)
    if not args.write:
        measure(study, folder)
    records = collected(study, folder)
    write_text(RESULT, json.dumps(records, indent=1) + "\n")
    plot(records)
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
