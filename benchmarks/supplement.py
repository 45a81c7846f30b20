"""The supplement's experiments A to F in small, beside the paper's figures: the tables of docs/results.md.

    python benchmarks/supplement.py         # writes the tables of what is in benchmarks/results/supplement.csv
    python benchmarks/supplement.py --run   # runs studies/small_*.yaml first, or goes on with them

The paper's figures (arXiv 2605.18879, supplement, tables 1 to 14) are in benchmarks/results/supplement_paper.csv. With
`--run`, AlphaEdit's row needs EasyEdit's 2026 edition: export EASYEDIT_HOME=…/EasyEdit.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from pages import between

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ("small_levels", "small_ablations", "small_sizes")
FOUND = ROOT / "benchmarks/results/supplement.csv"
PAPER = ROOT / "benchmarks/results/supplement_paper.csv"
SCALING = ROOT / "benchmarks/results/scaling.json"
PAGE = ROOT / "docs/results.md"
METRICS = ("eff", "gen", "spe", "ppl", "rouge_l", "rouge_l_neighbours")
SHARES = frozenset(METRICS) - {"ppl"}
LABELS = {"eff": "Eff. ↓", "gen": "Gen. ↓", "spe": "Spe. ↑", "ppl": "PPL ↓", "rouge_l": "ROUGE-L ↓"}

Row = dict[str, str]


def collect() -> list[Row]:
    """Every number of the studies that are finished, and the base model's of the same draws; the others' stay."""
    from zerounlearn.study.run import Plan
    from zerounlearn.study.spec import load_study

    rows = []
    for name in STUDIES:
        plan = Plan.of(load_study(ROOT / f"studies/{name}.yaml"))
        found = [plan.record(planned) for planned in plan.cells]
        finished = [record for record in found if record is not None and record["status"] == "done"]
        if len(finished) < len(found):
            print(f"{name}: {len(finished)} of {len(found)} cells are done; its earlier numbers stay")
            rows += [row for row in read(FOUND) if row["study"] == name]
            continue
        for record in finished:
            cell = record["cell"]
            place = {"study": name, "dataset": cell["dataset"], "n": str(cell["n"]), "seed": str(cell["seed"])}
            after = {**record["after"], "peak_bytes": record["peak_bytes"]}
            for method, numbers in (("base", record["before"]), (cell["method"], after)):
                rows += [
                    place | {"method": method, "metric": metric, "value": repr(float(numbers[metric]))}
                    for metric in (*METRICS, "peak_bytes")
                    if numbers.get(metric) is not None
                ]
    return list({json.dumps(row): row for row in rows}.values())


def write(path: Path, rows: Sequence[Row]) -> None:
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path.write_text(stream.getvalue(), encoding="utf-8")


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


class Here:
    """What the studies measured, as text."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, study: str, method: str, metric: str, *, dataset: str = "", n: str = "") -> str:
        """Mean ± standard deviation over seeds; a dash where nothing was measured."""
        wanted = {"study": study, "method": method, "metric": metric} | ({"dataset": dataset} if dataset else {})
        wanted |= {"n": n} if n else {}
        values = [float(row["value"]) for row in self.rows if wanted.items() <= row.items()]
        if not values:
            return "–"
        scale, digits = (100.0, 1) if metric in SHARES else (2.0**-30, 2) if metric == "peak_bytes" else (1.0, 2)
        shown = f"{scale * mean(values):.{digits}f}"
        return shown if len(values) == 1 else f"{shown} ± {scale * stdev(values):.{digits}f}"


class Paper:
    """What the supplement says, as text."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(r["experiment"], r["dataset"], r["row"], r["metric"]): r for r in rows}

    def __call__(self, experiment: str, dataset: str, label: str, metric: str) -> str:
        row = self.rows.get((experiment, dataset, label, metric))
        if row is None:
            return "–"
        return row["mean"] + (f" ± {row['sd']}" if row["sd"] else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def levels(here: Here, paper: Paper) -> str:
    """A: RWKU's levels; the paper's Eff. beside ROUGE-L."""
    methods = ("base", "GA", "FT", "ROME", "MEMIT", "AlphaEdit", "NPO", "NPO (all layers)", "ZeroUnlearn")
    own = ("level 1, cloze", "level 2, question", "level 3, attack")
    head = ["", *(f"{level.split(',')[0]}, {what}" for level in own for what in ("paper: Eff. ↓", "here: ROUGE-L ↓"))]
    rows = []
    for method in methods:
        row = [method]
        for number, level in enumerate(own, 1):
            row.append(paper("A", f"RWKU level {number}", method, "eff"))
            row.append(here("small_levels", method, "rouge_l", dataset=level))
        row += [paper("A", "RWKU level 3", method, "ppl"), here("small_levels", method, "ppl", dataset=own[2])]
        rows.append(row)
    return table([*head, "level 3, paper: PPL ↓", "level 3, here: PPL ↓"], rows)


def beside(here: Here, paper: Paper, experiment: str, rows: Sequence[str], sets: Sequence[str]) -> str:
    """A row a method, in C a size: ours, then the paper's on each of its data sets."""
    by_size = experiment == "C"
    head, body = [""], []
    shown = {name: [m for m in METRICS[:4] if paper(experiment, name, rows[-1], m) != "–"] for name in sets}
    head += [f"here: {LABELS[metric]}" for metric in METRICS[:4]]
    head += [f"{name}: {LABELS[metric]}" for name in sets for metric in shown[name]]
    for row in rows:
        study, method, n = ("small_sizes", "ZeroUnlearn", row) if by_size else ("small_ablations", row, "10")
        line = [row, *(here(study, method, metric, n=n) for metric in METRICS[:4])]
        body.append(line + [paper(experiment, name, row, metric) for name in sets for metric in shown[name]])
    return table(head, body)


def costs(here: Here) -> str:
    """F: what a run takes by its number of facts."""
    record = json.loads(SCALING.read_text(encoding="utf-8"))
    rows = [
        [str(p["n"]), f"{sum(p['seconds'].values()):.3g}", f"{p['peak_bytes'] / 2**30:.2f}"]
        for p in record["sweeps"]["n"]["points"]
    ]
    whole = table(["facts", "whole run, s", "memory beyond the model, GiB"], rows)
    rows = [[str(b["n"]), f"{b['cpu_seconds']:.3g}", f"{b['peak_bytes'] / 2**30:.3f}"] for b in record.get("bases", [])]
    basis = table(["facts", "basis of V_u, CPU s", "memory beyond V_u, GiB"], rows)
    sizes = sorted({int(row["n"]) for row in here.rows if row["study"] == "small_sizes"})
    rows = [[str(n), here("small_sizes", "ZeroUnlearn", "peak_bytes", n=str(n))] for n in sizes]
    return "\n\n".join([whole, basis, table(["facts", "SmolLM2-135M, most memory of the process, GiB"], rows)])


def sections() -> dict[str, str]:
    """Markdown by experiment, from the files in benchmarks/results alone."""
    here, paper = Here(read(FOUND)), Paper(read(PAPER))
    sizes = [str(n) for n in sorted({int(r["row"]) for r in read(PAPER) if r["experiment"] == "C"})]
    targets = ["base", "ZeroUnlearn", "target I don't know.", "target Hello."]
    return {
        "A": levels(here, paper),
        "B": beside(here, paper, "B", ["base", "NPO", "NPO (all layers)", "ZeroUnlearn"], ["MCF", "ZsRE", "MQuAKE"]),
        "C": beside(here, paper, "C", sizes, ["MCF", "ZsRE", "MQuAKE"]),
        "D": beside(here, paper, "D", ["base", "ZeroUnlearn", "w/o OP", "w/o UT"], ["ZsRE", "MQuAKE"]),
        "E": beside(here, paper, "E", targets, ["MCF", "ZsRE", "MQuAKE"]),
        "F": costs(here),
    }


def filled(page: str) -> str:
    """The page with every experiment's tables between its marks."""
    for name, text in sections().items():
        page = between(page, f"<!-- supplement {name} -->", f"<!-- end of {name} -->", text)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the studies, or what is left of them, before")
    parser.add_argument("--collect", action="store_true", help="take up what the studies have so far, without running")
    args = parser.parse_args()
    if args.run:
        from zerounlearn.study.run import run_study

        for name in STUDIES:
            run_study(ROOT / f"studies/{name}.yaml")
    if args.run or args.collect:
        write(FOUND, collect())
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
