"""How fast, and how near the machine's limit: ours, the plain implementation and EasyEdit's own methods.

    python benchmarks/speed.py                       # measures what has no result yet, then writes the tables
    python benchmarks/speed.py --fresh               # measures everything again: about 20 minutes on 2 quiet cores
    python benchmarks/speed.py --only pair-10 rate   # some pieces

Each piece runs in a process of its own and leaves a file in outputs/speed, so an interrupted run goes on where it was.
With EASYEDIT_HOME the checkout's AlphaEdit is measured, too. Writes benchmarks/results/speed.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from pieces import CHECKOUT, PIECES, TEXTS

from zerounlearn.files import whole_file, write_text

ROOT = Path(__file__).resolve().parents[1]

KEPT = ROOT / "outputs" / "speed"
RESULT = ROOT / "benchmarks" / "results"
Run = dict[str, Any]
# (which, stage, n, at least so many times faster than the plain implementation)
BARS = [
    ("ours", "z+sensitive", 10, 10.0),
    ("ours", "z+sensitive", 50, 10.0),
    ("ours", "statistics", None, 5.0),
    ("ours", "solve", 50, 20.0),
    ("ours", "total", 10, 8.0),
    ("ours", "evaluate", 10, 5.0),
    ("ours, fast", "total", 10, 20.0),
]
# At least so many times faster a request than EasyEdit's ROME, of ten.
ROME_BAR = 8.0


def measure(names: Sequence[str], *, fresh: bool, threads: int) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in names:
        output = KEPT / f"{name}.json"
        if output.exists() and not fresh:
            print(f"{name}: kept from an earlier run")
            continue
        print(f"{name}: ", end="", flush=True)
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        if name not in CHECKOUT:
            environment.pop("EASYEDIT_HOME", None)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("pieces.py")), name, str(output)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - start
        if done.returncode:
            print(f"failed after {took:.0f} s\n{done.stderr[-1500:]}")
        else:
            print(f"{took:.0f} s")


def assembled(names: Sequence[str]) -> list[Run]:
    """All pieces' entries; totals are with the statistics, which are measured once and do not depend on n."""
    runs: list[Run] = []
    for name in names:
        file = KEPT / f"{name}.json"
        if file.exists():
            runs += json.loads(file.read_text())["runs"]
    statistics = {r["implementation"]: r for r in runs if r["stage"] == "statistics"}
    for run in [r for r in runs if r["stage"] == "total without statistics"]:
        of = statistics.get(run["implementation"].removesuffix(", fast"))
        if of:
            runs.append(
                run
                | {
                    "stage": "total",
                    "seconds": run["seconds"] + of["seconds"],
                    "peak_bytes": max(run["peak_bytes"], of["peak_bytes"]),
                }
            )
    return runs


def find(runs: Sequence[Run], implementation: str, stage: str, n: int | None, d: int | None = None) -> Run | None:
    """The entry, on SmolLM2 or on synthetic matrices with d rows."""
    wanted = (implementation, stage, n, d)
    return next((r for r in runs if (r["implementation"], r["stage"], r["n"], r.get("d")) == wanted), None)


def markdown(runs: Sequence[Run]) -> str:
    lines = [
        "| stage | n | ours, s | plain, s | times faster | ours, share of matmul rate | peak memory ours / plain, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in [r for r in runs if r["implementation"] in ("ours", "ours, fast")]:
        other = find(runs, "plain", run["stage"], run["n"], run.get("d"))
        share = f"{100 * run['fraction_of_matmul_rate']:.0f} %" if "fraction_of_matmul_rate" in run else "–"
        theirs, ratio, memory = "–", "–", "–"
        if other:
            mark = f" (from {other['measured_n']})" if "measured_n" in other else ""
            theirs, ratio = f"{other['seconds']:.3g}{mark}", f"{other['seconds'] / run['seconds']:.1f}"
            memory = f"{other['peak_bytes'] / 1e6:.0f}" if other["peak_bytes"] is not None else "–"
        own = f"{run['peak_bytes'] / 1e6:.0f}" if run["peak_bytes"] is not None else "–"
        name = run["stage"] + (f", {run['d']} × {run['m']}" if "d" in run else "")
        name += ", fast" if run["implementation"].endswith("fast") else ""
        cells = (name, run["n"] or "–", f"{run['seconds']:.3g}", theirs, ratio, share, f"{own} / {memory}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "| method of EasyEdit | n | seconds a request | ours, seconds a request | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        if run["implementation"].startswith("easyedit") and run["stage"] == "total":
            own = find(runs, "ours, fast", "total without statistics", run["n"])
            mark = f" (from {run['measured_n']})" if "measured_n" in run else ""
            lines.append(
                f"| {run['implementation'].removeprefix('easyedit-')}, {run['edition']} | {run['n']} | "
                f"{run['seconds'] / run['n']:.3g}{mark} | "
                + (f"{own['seconds'] / own['n']:.3g}" if own else "–")
                + f" | {run['peak_bytes'] / 1e6:.0f} |"
            )
    return "\n".join(lines) + "\n"


def bar(stage: str, n: int | None, wanted: float, ratio: float) -> dict[str, Any]:
    """A bar of the comparison, and whether it is met."""
    return {"stage": stage, "n": n, "wanted": wanted, "ratio": ratio, "met": ratio >= wanted}


def bars(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each bar of the comparison, and whether it is met."""
    found = []
    for which, stage, n, wanted in BARS:
        d = 3072 if stage == "solve" else None
        own, other = find(runs, which, stage, n, d), find(runs, "plain", stage, n, d)
        if own and other:
            found.append(bar(stage + which.removeprefix("ours"), n, wanted, other["seconds"] / own["seconds"]))
    own, rome = (find(runs, *of, 10) for of in (("ours, fast", "total without statistics"), ("easyedit-rome", "total")))
    if own and rome:
        found.append(bar("ROME, a request", 10, ROME_BAR, rome["seconds"] / own["seconds"]))
    fraction = (find(runs, "ours", "z+sensitive", 50) or {}).get("fraction_of_matmul_rate")
    if fraction is not None:
        found.append(bar("z+sensitive, share of matmul rate", 50, 0.5, fraction))
    return found


def plot(runs: Sequence[Run], file: Path) -> None:
    import matplotlib.figure

    stages = ["contexts", "statistics", "z+sensitive", "keys", "solve", "evaluate", "total"]
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for offset, (name, colour) in enumerate((("ours", "#2a6f97"), ("plain", "#bc4749"))):
        picked = [find(runs, name, s, None if s == "statistics" else 10) for s in stages]
        axes.bar(
            [i + 0.4 * offset for i in range(len(stages))],
            [p["seconds"] if p else 0 for p in picked],
            width=0.38,
            label=name,
            color=colour,
        )
    axes.set_xticks([i + 0.2 for i in range(len(stages))], stages, rotation=20)
    axes.set_yscale("log")
    axes.set_ylabel("seconds, ten facts, three layers")
    axes.legend()
    with whole_file(file, "wb", remedy="free space") as stream:
        figure.savefig(stream, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="measure again what has a result")
    parser.add_argument("--only", nargs="+", choices=[*PIECES, *CHECKOUT], help="pieces to measure")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    args = parser.parse_args()
    names = [*PIECES, *(CHECKOUT if os.environ.get("EASYEDIT_HOME") else ())]
    measure(args.only or names, fresh=args.fresh, threads=args.threads)
    runs = assembled([*PIECES, *CHECKOUT])
    rate = next((r["flops_per_second"] for r in runs if r["stage"] == "matmul"), None)
    record = {
        "environment": {
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
            "threads": args.threads,
            "load_at_end": os.getloadavg()[0],
            "matmul_flops_per_second": rate,
            "model": "SmolLM2-135M-Instruct",
            "dtype": "float32",
            "corpus_texts": TEXTS,
        },
        "bars": bars(runs),
        "runs": runs,
    }
    write_text(RESULT / "speed.json", json.dumps(record, indent=1) + "\n")
    table = markdown(runs)
    write_text(RESULT / "speed.md", table)
    plot(runs, RESULT / "speed.png")
    print(f"\n{table}")
    for bar in record["bars"]:
        verdict = "met" if bar["met"] else "missed"
        print(f"{verdict:7}{bar['stage']}, n={bar['n']}: {bar['ratio']:.2f} of {bar['wanted']}")


if __name__ == "__main__":
    main()
