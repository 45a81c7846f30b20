"""Eight trials of each method on development facts, and which of them hparams/ has.

EASYEDIT_HOME=…/EasyEdit python benchmarks/tuning.py [--engine ray]

Runs studies/tuning.yaml on EasyEdit's wheel and studies/tuning_checkout.yaml on the checkout (the options go to both),
and writes what each trial came to. A trial's score is the joint score of every study, which
`zerounlearn.evaluation.joint_score` defines. The best of a method is the chosen one; trials within a thousandth count
as equal, and the gentler one is taken, that with the lower perplexity. Why these trials: studies/tuning.yaml.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from zerounlearn.files import write_text
from zerounlearn.study.spec import load_study

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/tuning.csv"
STUDIES = {"wheel": "studies/tuning.yaml", "checkout": "studies/tuning_checkout.yaml"}
SHOWN = ("eff", "gen", "spe_relation", "spe_subject", "spe_unrelated", "ppl")
EQUAL = 1e-3


def rows(edition: str, file: str) -> pd.DataFrame:
    """A row a trial, from the study's results."""
    study = load_study(ROOT / file)
    results = pd.read_csv(ROOT / study.output / "results.csv")
    trials = []
    for method in study.methods:
        own = results[results["method"] == method.label]
        trial = method.label.removeprefix(f"{method.sweep} ")
        status = own["status"].iloc[0]
        row: dict[str, Any] = {"method": method.sweep, "trial": trial, "easyedit": edition, "status": status}
        row["of"] = f"{method.hparams} {method.set.get('preset', '')}"
        if row["status"] == "done":
            by_phase = own.set_index(["phase", "metric"])["value"]
            row |= {metric: by_phase["after", metric] for metric in (*SHOWN, "score")}
            row |= {"seconds": by_phase["cost", "unlearn_seconds"]}
        trials.append(row)
    return pd.DataFrame(trials)


def choose(trials: pd.DataFrame) -> pd.Series:
    """Whether each trial is the best of its file and preset."""
    chosen = pd.Series(False, index=trials.index)
    for _, group in trials[trials["status"] == "done"].groupby("of"):
        best = group[group["score"] >= group["score"].max() - EQUAL]
        chosen[best["ppl"].idxmin()] = True
    return chosen


def main() -> None:
    """Run both studies and write the table."""
    if not os.environ.get("EASYEDIT_HOME"):
        raise SystemExit("EASYEDIT_HOME is not set: seven of the methods are only in a checkout of EasyEdit")
    for edition, file in STUDIES.items():
        environment = {k: v for k, v in os.environ.items() if edition == "checkout" or k != "EASYEDIT_HOME"}
        command = [sys.executable, "-m", "zerounlearn", "study", file, *sys.argv[1:]]
        done = subprocess.run(command, cwd=ROOT, env=environment)
        if done.returncode not in (0, 1):  # 1: a cell failed, which the table says
            raise SystemExit(done.returncode)
    trials = pd.concat([rows(edition, file) for edition, file in STUDIES.items()], ignore_index=True)
    trials["chosen"] = choose(trials)
    trials = trials.drop(columns="of")
    write_text(RESULT, trials.to_csv(index=False, float_format="%.4g"))
    print(trials.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
