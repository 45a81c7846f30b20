"""Quality on the embedded model: what is forgotten, and what goes with it, over seeds.

    python benchmarks/quality.py                                        # the committed figures
    python benchmarks/quality.py --split development layers=[15,16,17]  # a trial, on facts of no figure

A cell draws `n` facts that the model knows, spread over relations, from one half of the packaged facts;
forgets them; measures; and puts the weights back. `spe_relation` is taken on neighbours of the same relation,
`spe_subject` on other facts about the same subjects, `spe_unrelated` on facts of relations without any
forgotten fact; all three only on prompts that the base model answers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn.assets.corpora import open_corpus
from zerounlearn.assets.facts import Fact, load_facts, split_facts
from zerounlearn.assets.smollm2 import fetch_smollm2
from zerounlearn.assets.wikipedia import embedded_held_out_texts
from zerounlearn.files import write_text
from zerounlearn.method.hparams import METHODS, load_hparams
from zerounlearn.method.metrics import perplexity, score
from zerounlearn.method.report import environment
from zerounlearn.method.request import Request
from zerounlearn.method.unlearn import unlearn

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "quality.json"
Items = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """The prompts of one cell, each with its true answer."""

    requests: Sequence[Request]
    forget: Items
    paraphrases: Items
    relation: Items
    subject: Items
    unrelated: Items


def known_items(model, tokenizer, items: Items) -> list[tuple[str, str]]:
    return [item for item, s in zip(items, score(model, tokenizer, items), strict=True) if s.said]


def draw(model, tokenizer, facts: Sequence[Fact], n: int, seed: int, relations: int) -> Cell:
    """`n` facts over `relations` relations, round robin; `facts` are those that the model knows."""
    generator = torch.Generator().manual_seed(seed)
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for i in torch.randperm(len(facts), generator=generator).tolist():
        by_relation[facts[i].relation].append(facts[i])
    large = [r for r in sorted(by_relation) if len(by_relation[r]) >= max(2, n // relations)]
    picked = [large[i] for i in torch.randperm(len(large), generator=generator).tolist()[:relations]]
    chosen: list[Fact] = []
    while len(chosen) < n:
        before = len(chosen)
        for relation in picked:
            if by_relation[relation] and len(chosen) < n:
                chosen.append(by_relation[relation].pop())
        if len(chosen) == before:
            raise SystemExit(f"only {before} known facts in {len(picked)} relations: ask for a smaller n")
    forgotten = {fact.text for fact in chosen}
    neighbours = dict.fromkeys(p for fact in chosen for p in fact.neighbours if p[0] not in forgotten)
    others = dict.fromkeys(p for fact in chosen for p in fact.others if p[0] not in forgotten)
    unrelated = [(f.text, f.answer) for f in facts if f.relation not in picked][:60]
    return Cell(
        requests=[f.to_forget().request for f in chosen],
        forget=[(f.text, f.answer) for f in chosen],
        paraphrases=[(p, f.answer) for f in chosen for p in f.paraphrases],
        relation=known_items(model, tokenizer, list(neighbours)),
        subject=known_items(model, tokenizer, list(others)),
        unrelated=unrelated,
    )


def measure(model, tokenizer, cell: Cell, texts: Sequence[str]) -> dict[str, float | None]:
    parts = {
        "eff": cell.forget, "gen": cell.paraphrases, "spe_relation": cell.relation,
        "spe_subject": cell.subject, "spe_unrelated": cell.unrelated,
    }  # fmt: skip
    result: dict[str, float | None] = {}
    scores = iter(score(model, tokenizer, [item for items in parts.values() for item in items]))
    for name, items in parts.items():
        hits = [next(scores) for _ in items]
        result[name] = sum(h.said for h in hits) / len(hits) if hits else None
        result[f"{name}_probability"] = sum(h.probability for h in hits) / len(hits) if hits else None
    result["ppl"] = perplexity(model, tokenizer, texts, progress=False)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="hyperparameters to change")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS))
    parser.add_argument("--n", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--relations", type=int, default=6)
    parser.add_argument("--split", choices=["evaluation", "development"], default="evaluation")
    parser.add_argument("--output", type=Path, help=f"default: {RESULT.relative_to(ROOT)} for the evaluation split")
    args = parser.parse_args()
    folder = fetch_smollm2(ROOT / "models" / "llama-smollm2-135m")
    fixed = [f"model_name={folder}", f"stats_dir={ROOT / 'data' / 'stats'}", *args.overrides]
    methods = [load_hparams(ROOT / f"hparams/{name}/smollm2-135m.yaml", fixed) for name in args.methods]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    development, evaluation = split_facts(load_facts())
    half = development if args.split == "development" else evaluation
    said = score(model, tokenizer, [(f.text, f.answer) for f in half])
    facts = [f for f, s in zip(half, said, strict=True) if s.said]
    texts = embedded_held_out_texts()
    runs = []
    for n in args.n:
        for seed in args.seeds:
            cell = draw(model, tokenizer, facts, n, seed, args.relations)
            base = measure(model, tokenizer, cell, texts)
            runs.append({"preset": "base", "algorithm": "none", "n": n, "seed": seed, **base, "seconds": 0.0})
            for hparams in methods:
                hparams.seed = seed
                start = time.perf_counter()
                outcome = unlearn(model, tokenizer, cell.requests, hparams, open_corpus(hparams.mom2_dataset))
                seconds = time.perf_counter() - start
                after = measure(model, tokenizer, cell, texts)
                with torch.no_grad():
                    for name, weight in outcome.originals.items():
                        model.get_parameter(name).copy_(weight)
                runs.append({
                    "preset": "paper", "algorithm": hparams.alg_name, "n": n, "seed": seed, **after, "seconds": seconds,
                    "neutral_nll": outcome.neutral_nll, "relative_change": [x.relative_change for x in outcome.layers],
                })  # fmt: skip
                shown = {k: round(v, 3) for k, v in after.items() if v is not None and "probability" not in k}
                print(hparams.alg_name, n, seed, json.dumps(shown), f"{seconds:.0f} s", flush=True)
    print(f"\n{'algorithm':16}{'n':>5}" + "".join(f"{c:>18}" for c in COLUMNS))
    for n in args.n:
        for algorithm in ("none", *args.methods):
            rows = [r for r in runs if r["n"] == n and r["algorithm"] == algorithm]
            print(f"{algorithm:16}{n:>5}" + "".join(f"{spread([r[c] for r in rows]):>18}" for c in COLUMNS))
    output = args.output or (RESULT if args.split == "evaluation" else None)
    if output:
        record = {"environment": environment(model) | {"split": args.split, "overrides": args.overrides}, "runs": runs}
        write_text(output, json.dumps(record, indent=1) + "\n")


COLUMNS = ("eff", "gen", "spe_relation", "spe_subject", "spe_unrelated", "ppl")


def spread(values: Sequence[float | None]) -> str:
    found = [v for v in values if v is not None]
    if not found:
        return "–"
    return f"{statistics.mean(found):.3f} ± {statistics.stdev(found) if len(found) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
