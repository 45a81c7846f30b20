"""Forgetting against what it costs, on facts that no hyperparameter was chosen on: the published form, ours, and GD.

python benchmarks/quality.py [KEY=VALUE ...] [--n 10 50] [--seeds 0 1 2 3 4] [--jobs 2]

For each n and seed, n facts that the model knows over six relations are forgotten and five things are asked: the
prompts (Eff), their paraphrases (Gen), other subjects of the same relations that were not in the retain set
(spe_relation), other facts about the same subjects (spe_subject), and facts of other relations (spe_unrelated), each
as the share of what the base model answers; and perplexity on held-out text. The variant `specific` is run at several
strengths: that is the front. Finished cells are kept in outputs/quality, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn.data.corpora import open_corpus
from zerounlearn.data.entry import Entry
from zerounlearn.data.known import known_entries
from zerounlearn.data.request import Request
from zerounlearn.data.retain import draw_retain_set
from zerounlearn.data.sets.embedded import packaged_entries, split_entries
from zerounlearn.demo.smollm2 import fetch_smollm2
from zerounlearn.demo.wikipedia import embedded_held_out_texts
from zerounlearn.evaluation.perplexity import perplexity
from zerounlearn.evaluation.probes import Probes
from zerounlearn.files import write_text
from zerounlearn.method.base import load_method
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import unlearn
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.tokens import Query
from zerounlearn.report.run import environment

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/quality.json"
CELLS = ROOT / "outputs/quality"
RELATIONS = 6
# Of each relation at most this many subjects are asked; the rest may be shown to a method that retains.
HELD_OUT = 8
UNRELATED = 60
STRENGTHS = (0.5, 1.2, 2.0)
COLUMNS = ("eff", "gen", "spe_relation", "spe_subject", "spe_unrelated", "ppl")


@dataclass(frozen=True)
class Draw:
    """What a cell forgets, what it asks, and what it shows to a method with a retain set."""

    requests: list[Request]
    probes: Probes
    retain: list[Request]


@lru_cache(maxsize=1)
def loaded() -> tuple[Any, Any, list[Entry], list[Entry]]:
    """The model, its tokenizer, and the facts that it knows: (development, evaluation)."""
    folder = fetch_smollm2(ROOT / "models" / "llama-smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    halves = [known_entries(model, tokenizer, half) for half in split_entries(packaged_entries())]
    return model, tokenizer, *halves


def draw(split: str, n: int, seed: int) -> Draw:
    """`n` facts over six relations, one relation after the other."""
    model, tokenizer, development, evaluation = loaded()
    facts = development if split == "development" else evaluation
    generator = torch.Generator().manual_seed(seed)

    def shuffled(items: Sequence[Any]) -> list[Any]:
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

    by_relation: dict[str, list[Entry]] = defaultdict(list)
    for fact in shuffled(facts):
        by_relation[str(fact.topic)].append(fact)
    large = [r for r in sorted(by_relation) if len(by_relation[r]) > n // RELATIONS]
    picked = shuffled(large)[:RELATIONS]
    chosen: list[Entry] = []
    while len(chosen) < n:
        before = len(chosen)
        for relation in picked:
            if by_relation[relation] and len(chosen) < n:
                chosen.append(by_relation[relation].pop())
        if len(chosen) == before:
            raise SystemExit(f"only {before} known facts in {len(picked)} relations: ask for a smaller n")
    forgotten = {f.fact.request.prompt for f in chosen}
    subjects = {f.fact.request.subject for f in chosen}
    asked: list[Entry] = []
    for relation in picked:
        rest = shuffled(
            [f for f in development + evaluation if f.topic == relation and f.fact.request.subject not in subjects]
        )
        asked += rest[: min(HELD_OUT, len(rest) // 2)]
    others = dict.fromkeys(item for f in chosen for item in f.fact.others if item[0] not in forgotten)
    unrelated = shuffled([f for f in facts if f.topic not in picked and f.fact.request.subject not in subjects])[
        :UNRELATED
    ]
    probes = Probes(
        eff=tuple(f.fact.request.query for f in chosen),
        gen=tuple(Query(p, f.fact.request.answer) for f in chosen for p in f.fact.paraphrases),
        spe_relation=tuple(f.fact.request.query for f in asked),
        spe_subject=tuple(Query(*pair) for pair in others),
        spe_unrelated=tuple(f.fact.request.query for f in unrelated),
    ).only_known(model, tokenizer)
    requests = [f.fact.request for f in chosen]
    packaged = [entry.fact for entry in packaged_entries()]
    retain = draw_retain_set(
        model, tokenizer, requests, packaged, held_out=[query.prompt for query in probes.items()], seed=seed
    )
    return Draw(requests, probes, retain)


def group(split: str, n: int, seed: int, overrides: Sequence[str], strengths: Sequence[float]) -> list[dict[str, Any]]:
    """The base model's row, or those of methods that share z* and V_u, which are then found once.

    No strengths mean the published method and GD, strengths the variant `specific` at these.
    """
    model, tokenizer, *_ = loaded()
    texts = embedded_held_out_texts()
    drawn = draw(split, n, seed)

    def measured() -> dict[str, float]:
        return drawn.probes.measure(model, tokenizer) | {"ppl": perplexity(model, tokenizer, texts)}

    def hparams(name: str, *changes: str) -> Any:
        fixed = [f"model_name={fetch_smollm2(ROOT / 'models' / 'llama-smollm2-135m')}", f"seed={seed}"]
        fixed += [f"stats_dir={ROOT / 'data' / 'stats'}", *overrides, *changes]
        return load_method(ROOT / f"hparams/{name}/smollm2-135m.yaml", fixed)

    where = {"n": n, "seed": seed}
    if strengths:
        rows = []
        plan = [("specific", hparams("ZeroUnlearn", "preset=specific", f"strength={s}")) for s in strengths]
    else:
        rows = [{"preset": "base", "algorithm": "none", **where, **measured(), "seconds": 0.0}]
        plan = [("paper", hparams("ZeroUnlearn")), ("gd", hparams("ZeroUnlearn-GD"))]
    vectors, seconds_of_vectors = None, 0.0
    for preset, hp in plan:
        start = time.perf_counter()
        outcome = unlearn(
            model,
            tokenizer,
            drawn.requests,
            hp,
            open_corpus(hp.mom2_dataset),
            retain=drawn.retain if strengths else (),
            vectors=vectors,
        )
        seconds = time.perf_counter() - start
        if vectors is None:
            vectors, seconds_of_vectors = outcome.vectors, outcome.seconds["vectors"]
        else:
            seconds += seconds_of_vectors
        rows.append(
            {
                "preset": preset,
                "algorithm": hp.alg_name,
                **where,
                **measured(),
                "seconds": seconds,
                "strength": hp.strength,
                "retained": len(drawn.retain) if strengths else 0,
                "relative_change": [layer.relative_change for layer in outcome.layers],
            }
        )
        with torch.no_grad():
            for name, weight in outcome.before.items():
                model.get_parameter(name).copy_(weight)
        Lineage.of(model).traces.clear()
        print(preset, n, seed, f"strength {hp.strength:g}", shown(rows[-1]), f"{seconds:.0f} s", flush=True)
    return rows


def kept_group(
    split: str, n: int, seed: int, overrides: Sequence[str], strengths: Sequence[float]
) -> list[dict[str, Any]]:
    """`group`, from disk if it has been run with the same settings; after a change of code, delete the folder."""
    settings: list[Any] = [split, n, seed, list(overrides), list(strengths), ZeroUnlearn.PRESETS if strengths else {}]
    settings += [(ROOT / f"hparams/{name}/smollm2-135m.yaml").read_text() for name in ("ZeroUnlearn", "ZeroUnlearn-GD")]
    key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8)
    file = CELLS / f"{split}-{n}-{seed}-{key.hexdigest()}.json"
    if not file.exists():
        write_text(file, json.dumps(group(split, n, seed, overrides, strengths)))
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def shown(row: dict[str, Any]) -> str:
    return " ".join(f"{c} {row[c]:.3f}" for c in COLUMNS if c in row)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def plot(runs: list[dict[str, Any]], front: list[dict[str, Any]], file: Path) -> None:
    """Forgetting (1 − Gen) against each specificity, means over seeds; one panel a specificity, one colour an n."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    marks = {"base": "o", "paper": "s", "gd": "^"}
    for axis, name in zip(axes, ("spe_relation", "spe_subject", "spe_unrelated"), strict=True):
        for n, colour in zip(sorted({r["n"] for r in runs}), ("#0072B2", "#D55E00", "#009E73"), strict=False):
            line = [
                (statistics.mean(r[name] for r in rows), 1 - statistics.mean(r["gen"] for r in rows))
                for s in sorted({r["strength"] for r in front})
                if (rows := [r for r in front if r["n"] == n and r["strength"] == s])
            ]
            axis.plot(*zip(*line, strict=True), "-", color=colour, marker=".", label=f"specific, n = {n}")
            for preset, mark in marks.items():
                rows = [r for r in runs if r["n"] == n and r["preset"] == preset]
                x, y = statistics.mean(r[name] for r in rows), 1 - statistics.mean(r["gen"] for r in rows)
                axis.plot([x], [y], mark, color=colour, mfc="none", label=f"{preset}, n = {n}")
        axis.set_xlabel(f"{name} (share kept)")
        axis.set_xlim(0, 1.02)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("1 − Gen (paraphrases forgotten)")
    axes[0].legend(fontsize=7)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="hyperparameters to change")
    parser.add_argument("--n", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--split", choices=["evaluation", "development"], default="evaluation")
    parser.add_argument("--strengths", type=float, nargs="*", default=list(STRENGTHS), help="of the front")
    parser.add_argument("--jobs", type=int, default=1, help="processes, which share the cores")
    parser.add_argument("--output", type=Path, help=f"default: {RESULT.relative_to(ROOT)} for the evaluation split")
    args = parser.parse_args()
    model, *_ = loaded()
    env = environment(model) | {"split": args.split, "overrides": args.overrides, "jobs": args.jobs}
    default = ZeroUnlearn.PRESETS["specific"]["strength"]
    strengths = [default, *(s for s in args.strengths if s != default)]
    todo = [
        (args.split, n, seed, args.overrides, several)
        for n in args.n
        for several in (strengths, [])
        for seed in args.seeds
    ]
    if args.jobs > 1:
        threads = max(1, torch.get_num_threads() // args.jobs)
        with ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
            groups = list(pool.map(kept_group, *zip(*todo, strict=True)))
    else:
        groups = [kept_group(*each) for each in todo]
    rows = [row for found in groups for row in found]
    runs = [row for row in rows if row["preset"] != "specific" or row["strength"] == default]
    front = [row for row in rows if row["preset"] == "specific"]
    print(f"\n{'preset':10}{'strength':>9}{'n':>4}" + "".join(f"{c:>17}" for c in COLUMNS) + f"{'seconds':>9}")
    for n in args.n:
        for preset in ("base", "paper", "gd", "specific"):
            print_row([r for r in runs if r["n"] == n and r["preset"] == preset], preset, "")
        for strength in sorted(strengths):
            print_row([r for r in front if r["n"] == n and r["strength"] == strength], "specific", f"{strength:g}")
    output = args.output or (RESULT if args.split == "evaluation" else None)
    if output:
        write_text(output, json.dumps({"environment": env, "runs": runs, "front": front}, indent=1) + "\n")
        plot(runs, front, output.with_suffix(".svg"))


def print_row(rows: list[dict[str, Any]], preset: str, strength: str) -> None:
    values = "".join(f"{spread([r[c] for r in rows]):>17}" for c in COLUMNS)
    print(f"{preset:10}{strength:>9}{rows[0]['n']:>4}{values}{statistics.mean(r['seconds'] for r in rows):9.0f}")


if __name__ == "__main__":
    main()
