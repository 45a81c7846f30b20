"""What an edit's factors tell whoever reads them: are the forgotten answers among the words that their directions mean?

    python benchmarks/leak.py [--facts 10] [--seeds 0 1]

Each singular direction of each layer's change, with both signs, goes through the model's final norm and head (the
logit lens); a fact's answer is found where its first token is among the first `TOP` of any of them. As a control, so
are answers of other facts that the model knows and that were not forgotten. Writes benchmarks/results/leak.json and
the table of docs/edits.md (--tables: the table alone).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pages import between
from transformers import AutoModelForCausalLM, AutoTokenizer

import zerounlearn as zu
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.demo.smollm2 import fetch_smollm2
from zerounlearn.files import write_text
from zerounlearn.method.base import load_method
from zerounlearn.model.answers import score
from zerounlearn.model.tokens import continuation

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/leak.json"
PAGE = ROOT / "docs/edits.md"
BEGIN, END = "<!-- what an edit's factors tell -->", "<!-- end of what an edit's factors tell -->"
RUNS = {
    "paper": ("ZeroUnlearn", "preset=paper"),
    "specific": ("ZeroUnlearn", "preset=specific"),
    "GD": ("ZeroUnlearn-GD", ""),
}
TOP = 10
DIRECTIONS = 50  # of the largest singular values of a layer


@torch.no_grad()
def told(model: Any, edit: zu.Edit) -> set[int]:
    """The tokens that the directions of a change mean most."""
    found: set[int] = set()
    for name in edit.digests:
        if name in edit.factors:
            left, right = (factor.double() for factor in edit.factors[name])
            change = left @ right
        else:
            change = edit.changes[name].double()
        U, S, _ = torch.linalg.svd(change, full_matrices=False)
        directions = U[:, 1e-6 * S[0] < S][:, :DIRECTIONS].mT.float()
        for sign in (1, -1):
            logits = model.lm_head(model.model.norm(sign * directions))
            found |= set(logits.topk(TOP, dim=-1).indices.flatten().tolist())
    return found


def measured(model: Any, tokenizer: Any, name: str, facts: list[zu.Fact], others: list[zu.Fact], seed: int) -> Any:
    folder, preset = RUNS[name]
    settings = [f"model_name={model.config._name_or_path}", f"stats_dir={ROOT / 'data/stats'}", f"seed={seed}"]
    method = load_method(ROOT / f"hparams/{folder}/smollm2-135m.yaml", [*settings, *filter(None, [preset])])
    edit = zu.unlearn(model, tokenizer, facts, method)
    edit.revert(model)
    tokens = told(model, edit)

    def share(asked: list[zu.Fact]) -> float:
        first = [continuation(tokenizer, fact.request.prompt, fact.request.answer)[0] for fact in asked]
        return sum(token in tokens for token in first) / len(first)

    vocabulary = len(tokens) / model.config.vocab_size
    return {"method": name, "seed": seed, "n": len(facts), "forgotten": share(facts), "others": share(others)} | {
        "of the vocabulary": vocabulary
    }


def table(runs: Sequence[Any]) -> str:
    """Means over the seeds."""
    seeds, n = sorted({run["seed"] for run in runs}), runs[0]["n"]
    lines = [
        f"Measured (`benchmarks/leak.py`, SmolLM2, {n} facts, seeds {', '.join(map(str, seeds))}): each singular "
        f"direction of each layer's change, with both signs, read by the logit lens. Among the first {TOP} tokens are",
        "",
        "| | first tokens of the forgotten answers, % | of other answers that it knows, % | of the vocabulary, % |",
        "|---|---|---|---|",
    ]
    for name in RUNS:
        own = [run for run in runs if run["method"] == name]
        shares = [100 * sum(run[k] for run in own) / len(own) for k in ("forgotten", "others", "of the vocabulary")]
        lines.append(f"| {name} | {' | '.join(f'{share:.1f}' for share in shares)} |")
    return "\n".join(lines)


def filled(page: str, runs: Sequence[Any]) -> str:
    """A page with the table put in."""
    return between(page, BEGIN, END, table(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    if args.tables:
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), json.loads(RESULT.read_text())["runs"]))
        return
    folder = fetch_smollm2(ROOT / "models" / "llama-smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    facts = [entry.fact for entry in packaged_entries()]
    known = [f for f, s in zip(facts, score(model, tokenizer, [f.request.query for f in facts]), strict=True) if s.said]
    runs = []
    for seed in args.seeds:
        drawn = random.Random(seed).sample(known, len(known))
        chosen: dict[str, zu.Fact] = {fact.request.answer: fact for fact in drawn[: 3 * args.facts]}
        forgotten = list(chosen.values())[: args.facts]
        answers = {fact.request.answer for fact in forgotten}
        others = list({f.request.answer: f for f in drawn if f.request.answer not in answers}.values())
        for name in RUNS:
            runs.append(measured(model, tokenizer, name, forgotten, others, seed))
            print(json.dumps(runs[-1]), flush=True)
    write_text(RESULT, json.dumps({"top": TOP, "runs": runs}, indent=1) + "\n")
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), runs))


if __name__ == "__main__":
    main()
