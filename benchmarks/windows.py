"""Every window of five layers at both places: what editing there does, beside what the separability map says of it.

    python benchmarks/windows.py --seeds 0 1    # measures what has no result yet, then writes
    python benchmarks/windows.py --write        # writes what there is

`preset: specific` on ten development facts that SmolLM2 says, with the retain set that it draws; nothing but the layers
and the place differs. C of all layers comes from one pass, each prompt is asked once a window. The map is taken of the
same facts, before anything is edited. Writes benchmarks/results/windows.{json,svg} and the table in docs/method.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pages import between
from scipy.stats import spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.corpora import open_corpus
from zerounlearn.evaluation.probes import Probes
from zerounlearn.files import write_text
from zerounlearn.method.base import load_method
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.located import located
from zerounlearn.method.zerounlearn.method import unlearn
from zerounlearn.method.zerounlearn.separability import GROUPS, PLACES, separability, whole_layout
from zerounlearn.model.loading import load_model
from zerounlearn.statistics.collect import second_moments
from zerounlearn.study.material import Data
from zerounlearn.study.spec import DataSpec

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/llama-smollm2-135m"
OUTPUT = ROOT / "outputs/windows"
RESULT = ROOT / "benchmarks/results/windows.json"
PLOT = RESULT.with_suffix(".svg")
PAGE = ROOT / "docs/method.md"
MARKS = "<!-- windows -->", "<!-- end of windows -->"
WIDTH = 5
PAIRS = {  # what the map says of a group, and what is then measured of it
    "paraphrases": "gen",
    "relation": "spe_relation",
    "subject": "spe_subject",
}
MEASURED = ("eff", "gen", "spe_relation", "spe_subject", "spe_unrelated")
Record = dict[str, Any]


def method_of(*settings: str) -> ZeroUnlearn:
    """The preset with what differs."""
    own = [f"model_name={MODEL}", f"stats_dir={ROOT / 'data/stats'}", "preset=specific", *settings]
    method = load_method(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml", own)
    assert isinstance(method, ZeroUnlearn)
    return method


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Every window that has no result yet, with one draw."""
    depth = model.config.num_hidden_layers
    # The place of `specific` first.
    windows = [(place, first) for place in reversed(PLACES) for first in range(depth - WIDTH + 1)]
    files = {window: OUTPUT / f"{seed}-{window[0]}-{window[1]}.json" for window in windows}
    if not (missing := [window for window in windows if not files[window].exists()]):
        return
    spec = DataSpec("development facts", "embedded", options={"facts": "development"}, known=True)
    drawn = Data.load(spec).asked_of(model, tokenizer).draw(10, seed, retain_size=0, unrelated_size=40)
    requests = [fact.request for fact in drawn.facts]
    asked = {query[0] for query in drawn.probes.items()}
    any_window = method_of("layers=[0]")
    retain = any_window.retained(model, tokenizer, requests, held_out=asked)
    probes = Probes.of(drawn.facts, retain=retain, unrelated=drawn.probes.spe_unrelated).resolved(model, tokenizer)
    base, corpus = probes.measure(model, tokenizer), open_corpus("embedded")
    separation = separability(model, tokenizer, drawn.facts, any_window, texts=corpus.texts(), retain=retain)
    every = method_of(f"layers={list(range(depth))}")
    second_moments(whole_layout(model, every), tokenizer, every, corpus)
    for place, first in missing:
        layers = list(range(first, first + WIDTH))
        # Not made again where a fact stays said: a window is to be judged by itself.
        run = method_of(f"layers={layers}", f"fact_token={place}", "retries=0")
        edit = unlearn(model, tokenizer, requests, run, corpus, retain=retain)
        after = probes.measure(model, tokenizer)
        edit.revert(model)
        share = separation.window(layers, place).share
        record = {
            "seed": seed,
            "place": place,
            "first": first,
            "after": {name: after[name] for name in MEASURED},
            "base": {name: base[name] for name in MEASURED},
            "share": {group: share[group] for group in GROUPS if not math.isnan(share[group])},
        }
        write_text(files[place, first], json.dumps(record) + "\n")
        print(seed, place, first, {name: round(after[name], 3) for name in MEASURED}, flush=True)


def suggested(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Record:
    """What a run without layers takes."""
    run = located(method_of("layers=auto"), model, tokenizer)
    return {"place": run.fact_token, "first": run.layers[0]}


def score(record: Record) -> float:
    """Forgotten and kept in one number, in points: the fall of Eff and Gen and what is left of the specificities, each
    as a share of the base model's.
    """
    after, base = record["after"], record["base"]
    lost = [1 - after[name] / base[name] for name in ("eff", "gen")]
    kept = [min(after[name] / base[name], 1.0) for name in ("spe_relation", "spe_subject", "spe_unrelated")]
    return 100 * (sum(lost) + fmean(kept)) / 3


def by_window(records: Sequence[Record]) -> list[tuple[str, int, float]]:
    """Place, first layer and mean score over the seeds, the best first."""
    windows = dict.fromkeys((r["place"], r["first"]) for r in records)
    means = [(p, f, fmean(score(r) for r in records if (r["place"], r["first"]) == (p, f))) for p, f in windows]
    return sorted(means, key=lambda one: -one[2])


def correlations(records: Sequence[Record]) -> dict[str, tuple[float, int]]:
    """Rank correlation of a group's share with how much of what is asked of it is not said any more, and the runs."""
    found = {}
    for group, name in PAIRS.items():
        pairs = [(r["share"][group], 1 - r["after"][name] / r["base"][name]) for r in records if group in r["share"]]
        if pairs:
            found[group] = float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)
    return found


def table(result: Record) -> str:
    """The best windows and the suggested one, and how well the map foretells."""
    records = result["runs"]
    ranked = by_window(records)
    chosen = result["suggested"]
    lines = [
        "| place, layers | score | Eff ↓ | Gen ↓ | relation ↑ | subject ↑ | unrelated ↑ |",
        "|---|---|---|---|---|---|---|",
    ]
    shown = [*ranked[:5], *(w for w in ranked[5:] if (w[0], w[1]) == (chosen["place"], chosen["first"]))]
    for place, first, points in shown:
        own = [r for r in records if (r["place"], r["first"]) == (place, first)]
        cells = " | ".join(f"{100 * fmean(r['after'][name] for r in own):.1f}" for name in MEASURED)
        at = "the prompt's last token" if place == "last" else "the subject's last token"
        mark = ", suggested" if (place, first) == (chosen["place"], chosen["first"]) else ""
        lines.append(f"| {at}, {first}–{first + WIDTH - 1}{mark} | {points:.1f} | {cells} |")
    base = [r["base"] for r in records]
    cells = " | ".join(f"{100 * fmean(b[n] for b in base):.1f}" for n in MEASURED)
    lines.append(f"| base model | – | {cells} |")
    told = ", ".join(f"{group} {value:.2f}" for group, (value, _) in correlations(records).items())
    seeds = sorted({r["seed"] for r in records})
    lines.append(
        f"\n{len(records)} runs, seeds {', '.join(map(str, seeds))}. Rank correlation of a group's mean share "
    )
    lines[-1] += f"with what is not said of it any more: {told}."
    return "\n".join(lines)


def plot(records: Sequence[Record]) -> None:
    """A group's share against what is then not said of it any more, a point a run."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "zerounlearn"
    found = correlations(records)
    figure = Figure(figsize=(3 * len(found), 3), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(found)), found, strict=True):
        for place, label in (("subject_last", "subject's last token"), ("last", "prompt's last token")):
            own = [r for r in records if r["place"] == place]
            lost = [100 * (1 - r["after"][PAIRS[group]] / r["base"][PAIRS[group]]) for r in own]
            axes.scatter([r["share"][group] for r in own], lost, s=8, label=label)
        axes.set_title(f"{group} (ρ = {found[group][0]:.2f})", fontsize=9)
        axes.set_xlabel("share of the update", fontsize=8)
    figure.axes[0].set_ylabel("not said any more, %", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(PLOT, metadata={"Date": None})


def filled(page: str) -> str:
    """The page with the table between its marks."""
    return between(page, *MARKS, table(json.loads(RESULT.read_text(encoding="utf-8"))))


def main() -> None:
    """Measure what is missing, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--write", action="store_true", help="measure nothing")
    args = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if not args.write:
        model, tokenizer = load_model(str(MODEL), device="auto")
        for seed in args.seeds:
            measure(model, tokenizer, seed)
        write_text(OUTPUT / "suggested.json", json.dumps(suggested(model, tokenizer)) + "\n")
    files = sorted(OUTPUT.glob("[0-9]*.json"))
    result = {
        "suggested": json.loads((OUTPUT / "suggested.json").read_text(encoding="utf-8")),
        "runs": [json.loads(file.read_text(encoding="utf-8")) for file in files],
    }
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    plot(result["runs"])
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
