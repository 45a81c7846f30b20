"""ZeroUnlearn in EasyEdit's own convention: a method, an hparams file, a data file.

python examples/run_ZeroUnlearn_editing.py \
        --editing_method ZeroUnlearn \
        --hparams_dir hparams/ZeroUnlearn/llama3.2-3b.yaml \
        --data_dir data/multi_counterfact.json \
        --ds_size 50
"""

import argparse
import json
from pathlib import Path

import zerounlearn.easyedit  # registers the method, so it comes before the framework

# isort: split
from easyeditor import BaseEditor

from zerounlearn.data.fact import load_facts

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editing_method", default="ZeroUnlearn", choices=sorted(zerounlearn.easyedit.METHODS))
    parser.add_argument("--hparams_dir", required=True, help="an hparams YAML file")
    parser.add_argument(
        "--data_dir",
        required=True,
        help="CounterFact, EasyEdit or forget-set records (json, jsonl, yaml, csv)",
    )
    parser.add_argument("--output_dir", default="./outputs", type=Path)
    parser.add_argument("--ds_size", default=10, type=int, help="how many records to forget")
    parser.add_argument("--sequential_edit", action="store_true", help="keep one batch's edit for the next")
    args = parser.parse_args()

    hparams = zerounlearn.easyedit.METHODS[args.editing_method].hparams.from_hparams(args.hparams_dir)
    facts = load_facts(args.data_dir)[: args.ds_size]

    editor = BaseEditor.from_hparams(hparams)
    metrics, model, _ = editor.batch_edit(
        prompts=[fact.request.prompt for fact in facts],
        subject=[fact.request.subject for fact in facts],
        ground_truth=[fact.request.answer for fact in facts],  # the sensitive answer
        target_new=[editor.tok.eos_token] * len(facts),  # the neutral target
        rephrase_prompts=[fact.paraphrases[0] for fact in facts] if all(f.paraphrases for f in facts) else None,
        sequential_edit=args.sequential_edit,
        keep_original_weight=not args.sequential_edit,  # the 2023 edition's name for the same
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    output = args.output_dir / f"{args.editing_method}_metrics.json"
    output.write_text(json.dumps(metrics, indent=2, default=str))
    print(f"{len(metrics)} records measured by EasyEdit: {output}")
