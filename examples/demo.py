"""The main job in one script: forget ten facts that the embedded model knows, and show before and after.

python examples/demo.py [--n 10] [--seed 0] [--preset specific] [--output outputs/demo]
"""

import argparse
import time
from pathlib import Path

import torch

from zerounlearn.data.sets.embedded import packaged_entries, split_entries
from zerounlearn.demo.smollm2 import fetch_smollm2
from zerounlearn.easyedit import ZeroUnlearnEditor, ZeroUnlearnHyperParams
from zerounlearn.model.answers import score

ROOT = Path(__file__).resolve().parents[1]


def choose(editor: ZeroUnlearnEditor, n: int, seed: int) -> list:
    """`n` facts that the model knows, one relation after the other; none that hyperparameters were chosen on."""
    _, entries = split_entries(packaged_entries())
    facts = [entry.fact for entry in entries]
    known = score(editor.model, editor.tok, [fact.request.query for fact in facts])
    by_relation: dict[str, list] = {}
    for i in torch.randperm(len(facts), generator=torch.Generator().manual_seed(seed)).tolist():
        if known[i].said:
            by_relation.setdefault(entries[i].topic, []).append(facts[i])
    chosen = []
    while len(chosen) < n and any(by_relation.values()):
        for members in by_relation.values():
            if members and len(chosen) < n:
                chosen.append(members.pop())
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--preset", default="paper", choices=list(ZeroUnlearnHyperParams.PRESETS), help="the published method, or ours"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "demo")
    args = parser.parse_args()
    start = time.perf_counter()

    model = fetch_smollm2(ROOT / "models" / "llama-smollm2-135m")
    hparams = ZeroUnlearnHyperParams.from_hparams(
        ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml",
        [f"model_name={model}", f"stats_dir={ROOT / 'data' / 'stats'}", f"seed={args.seed}", f"preset={args.preset}"],
    )
    editor = ZeroUnlearnEditor.from_hparams(hparams)
    chosen = choose(editor, args.n, args.seed)
    report, _ = editor.unlearn(chosen)
    report.save(args.output)

    print(f"\n{'prompt':58} {'sensitive answer':18} {'before':16} after")
    for fact in report.facts:
        before, after = (text.completion.replace("\n", "⏎")[:14] for text in (fact.before, fact.after))
        print(f"{fact.prompt[:56]:58} {fact.answer:18} {before:16} {after}")
    print(f"\n{'':8} {'Eff ↓':>8} {'Gen ↓':>8} {'Spe ↑':>8} {'subject ↑':>9} {'PPL ↓':>7}")
    for name, phase in (("before", report.before), ("after", report.after)):
        shares = (phase.eff, phase.gen, phase.spe, phase.spe_subject)
        print(f"{name:8} " + " ".join(f"{100 * share:7.1f}%" for share in shares) + f" {phase.ppl:8.2f}")
    print(f"\nreport: {args.output / 'report.md'} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
