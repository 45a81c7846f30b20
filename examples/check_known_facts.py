"""Which of the packaged facts does a model know? Prints one row a relation, and writes the verdicts on request.

    python examples/check_known_facts.py --model models/llama-smollm2-135m --output known.json

Only a known fact can be forgotten, so a study starts here. The paraphrase, neighbour and other columns are
shares over the *known* facts: what is there to be damaged when those are unlearned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn.data.entry import Entry
from zerounlearn.data.known import known
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.files import write_text


def judge(model: Any, tokenizer: Any, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each fact: whether it is known, and the verdicts on its paraphrases, neighbours and others."""
    groups = [
        (
            [(fact.request.prompt, fact.request.answer)],
            [(paraphrase, fact.request.answer) for paraphrase in fact.paraphrases],
            list(fact.neighbours),
            list(fact.others),
        )
        for fact in (entry.fact for entry in entries)
    ]
    # Facts are one another's neighbours, so each distinct item is asked once.
    items = list(dict.fromkeys(item for parts in groups for part in parts for item in part))
    verdict = dict(zip(items, known(model, tokenizer, items), strict=True))
    return [
        {
            "case_id": entry.case_id,
            "relation": entry.topic,
            "known": verdict[parts[0][0]],
            "paraphrases": [verdict[item] for item in parts[1]],
            "neighbours": [verdict[item] for item in parts[2]],
            "others": [verdict[item] for item in parts[3]],
        }
        for entry, parts in zip(entries, groups, strict=True)
    ]


def row(name: str, results: Sequence[dict[str, Any]]) -> str:
    """One line of the table."""
    hits = [result for result in results if result["known"]]
    cells = [f"{name:15}", f"{len(results):5}", f"{len(hits):5}"]
    for key in ("paraphrases", "neighbours", "others"):
        verdicts = [verdict for result in hits for verdict in result[key]]
        cells.append(f"{100 * sum(verdicts) / len(verdicts):16.1f} %" if verdicts else f"{'–':>18}")
    return " | ".join(cells)


def main() -> None:
    """Read the command line, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--relation", action="append", help="only this relation; may be repeated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="where to write the verdicts as JSON")
    arguments = parser.parse_args()

    entries = packaged_entries(arguments.relation)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device)
    results = judge(model, tokenizer, entries)

    heads = f"{'relation':15} | {'facts':>5} | {'known':>5} | {'paraphrases known':>18}"
    print(f"{heads} | {'neighbours known':>18} | {'others known':>18}")
    for relation in dict.fromkeys(str(entry.topic) for entry in entries):
        print(row(relation, [result for result in results if result["relation"] == relation]))
    print(row("all", results))
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
