"""ZeroUnlearn-GD on many requests at once: does it fit into memory, and what does it take?

python benchmarks/many.py [--n 500 2000] [--found 64]

The requests are all packaged prompts in which the subject stands: facts, paraphrases, and other facts of the subject.
z* and V_u are found so many at a time, whatever n is: here for the first `--found` requests alone, in two Adam steps,
and repeated for the others, since on a CPU that stage would take hours for 2,000. All else is a whole run. Each n
is a process of its own; peak memory is what the operating system says of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn.data.corpora import open_corpus
from zerounlearn.data.request import Request
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.demo.smollm2 import fetch_smollm2
from zerounlearn.files import write_text
from zerounlearn.method.base import load_method
from zerounlearn.method.zerounlearn.method import Vectors, unlearn
from zerounlearn.model.lineage import Lineage
from zerounlearn.report.run import environment

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/many.json"


def requests(n: int) -> list[Request]:
    """The first `n` distinct ones."""
    found: dict[str, Request] = {}
    for fact in (entry.fact for entry in packaged_entries()):
        request = fact.request
        own = [(prompt, request.answer) for prompt in (request.prompt, *fact.paraphrases)]
        for prompt, answer in [*own, *fact.others]:
            if request.subject in prompt:
                found.setdefault(prompt, Request.of(prompt, request.subject, answer))
    if len(found) < n:
        raise SystemExit(f"only {len(found)} packaged prompts name their subject: ask for a smaller n")
    return list(found.values())[:n]


def run(n: int, found: int) -> dict[str, object]:
    """One run in this process."""
    folder = fetch_smollm2(ROOT / "models" / "llama-smollm2-135m")
    hparams = load_method(
        ROOT / "hparams/ZeroUnlearn-GD/smollm2-135m.yaml",
        [f"model_name={folder}", f"stats_dir={ROOT / 'data' / 'stats'}", "reproduce=exact", "v_num_grad_steps=2"],
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = requests(n)
    corpus = open_corpus(hparams.mom2_dataset)
    few = unlearn(model, tokenizer, asked[:found], hparams, corpus)
    with torch.no_grad():
        for name, weight in few.originals.items():
            model.get_parameter(name).copy_(weight)
    Lineage.of(model).traces.clear()
    assert few.vectors is not None
    times = torch.arange(n) % min(found, n)
    vectors = Vectors(few.vectors.z[times], {i: V[times] for i, V in few.vectors.V.items()}, few.vectors.prefixes)
    outcome = unlearn(model, tokenizer, asked, hparams, corpus, vectors=vectors)
    return {
        "n": n,
        "found": found,
        "seconds_of_found": few.seconds["vectors"],
        "seconds": outcome.seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "environment": environment(model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--found", type=int, default=64, help="requests whose z* and V_u are really found")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one, args.found)))
        return
    rows = []
    for n in args.n:
        command = [sys.executable, __file__, "--one", str(n), "--found", str(args.found)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in rows[-1]["seconds"].items())
        print(f"n = {n}: peak {rows[-1]['peak_bytes'] / 2**30:.2f} GiB; {seconds}", flush=True)
    write_text(RESULT, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
