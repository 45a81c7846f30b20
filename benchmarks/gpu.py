"""What an accelerator makes of it: the real SmolLM2 job, and the method on random weights of Llamas' real shapes.

    python benchmarks/gpu.py                                  # everything, on the accelerator that torch finds
    python benchmarks/gpu.py --only Llama-3.1-8B --facts 10   # one piece
    python benchmarks/gpu.py --tables                         # docs/scaling.md from benchmarks/results/gpu.json alone

Nothing is downloaded but the embedded model, where it is not there yet. Writes benchmarks/results/gpu.json after each
piece. Where a share of the card's rate is given, operations are those of `costs.py`, the rate is that of one product of
large bfloat16 matrices, measured here.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import costs
import scaling
import torch
from pages import between
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from zerounlearn.api import unlearn_and_report
from zerounlearn.core.solve import factor_base
from zerounlearn.data.sets.embedded import packaged_entries, split_entries
from zerounlearn.demo.smollm2 import fetch_smollm2
from zerounlearn.files import write_text
from zerounlearn.method.base import load_method
from zerounlearn.method.zerounlearn import method
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.model.answers import score
from zerounlearn.model.peak import peak_memory
from zerounlearn.statistics.collect import second_moments

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/gpu.json"
PAGE = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- measured on an accelerator -->", "<!-- end of what was measured on an accelerator -->"
Record = dict[str, Any]

JOBS = [("float32", "paper"), ("float32", "specific"), ("bfloat16", "paper"), ("bfloat16", "specific")]
SHAPES = ["Llama-3.2-3B", "Llama-3.1-8B"]
TEXTS, TEXT_TOKENS, PUBLISHED_TEXTS = 512, 512, 100_000
STAGES = ["contexts", "statistics", "vectors", "keys", "solve", "evaluation"]


def synchronize(device: torch.device) -> None:
    getattr(torch, device.type).synchronize()


def timed(device: torch.device, call: Callable[[], Any], times: int = 10) -> float:
    """Seconds of one call: the median of `times`, after two that are not counted."""
    seconds = []
    for i in range(times + 2):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        if i > 1:
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[times // 2]


def rates(device: torch.device, size: int) -> Record:
    """FLOP/s of square matrix products by precision, as torch is set up, and bytes per second of a copy."""
    found: Record = {}
    for name, side in (("bfloat16", size), ("float16", size), ("float32", size), ("float64", size // 2)):
        X, Y = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))
        found[name] = 2.0 * side**3 / timed(device, lambda X=X, Y=Y: X @ Y)
    source = torch.randn(8 * size**2, device=device)
    target = torch.empty_like(source)
    found["copied bytes"] = 2.0 * 4 * source.numel() / timed(device, lambda: target.copy_(source))
    return found


def smollm2(device: torch.device, args: argparse.Namespace) -> Record:
    """Ten facts that the model knows, statistics included, twice: the first run starts the device's libraries."""
    folder = fetch_smollm2(ROOT / "models/llama-smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = [entry.fact for entry in split_entries(packaged_entries())[1]]
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(0)).tolist()
    runs = []
    for dtype, preset in JOBS:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
        known = score(model, tokenizer, [facts[i].request.query for i in order])
        chosen = [facts[i] for i, answer in zip(order, known, strict=True) if answer.said][: args.known]
        for repetition in range(args.repetitions):
            with tempfile.TemporaryDirectory() as stats, peak_memory(device) as peak:
                run = load_method(
                    ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml", [f"stats_dir={stats}", f"preset={preset}"]
                )
                report, edit = unlearn_and_report(model, tokenizer, chosen, run)
            edit.revert(model)
            shown = ("eff", "gen", "spe", "spe_subject", "ppl")
            runs.append(
                {"dtype": dtype, "preset": preset, "n": len(chosen), "repetition": repetition}
                | {"seconds": report.seconds, "peak_bytes": peak.bytes, "weights_bytes": model.get_memory_footprint()}
                | {when: {k: getattr(getattr(report, when), k) for k in shown} for when in ("before", "after")}
            )
            print(json.dumps(runs[-1]), flush=True)
    return {"runs": runs}


def random_llama(name: str, device: torch.device, args: argparse.Namespace) -> Record:
    """The paper's method at the paper's layers for `args.facts` facts; statistics over a part of the corpus."""
    shape, layers = scaling.LLAMAS[name]
    tokenizer = scaling.tokenizer(shape.vocabulary - 16)
    model = scaling.random_llama(shape, torch.bfloat16, device)
    setting = scaling.Setting(n=args.facts, length=12)
    requests = scaling.requests(setting)
    corpus = scaling.random_corpus(args.texts, TEXT_TOKENS)
    updates: list[int] = []
    optimise = method.optimise

    def counted(*arguments: Any, **settings: Any) -> Any:
        solution = optimise(*arguments, **settings)
        updates.extend(solution.steps.tolist())
        return solution

    record: Record = {"model": name, "n": args.facts, "tokens": args.texts * TEXT_TOKENS, "layers": layers, "runs": []}
    for repetition in range(args.repetitions):
        updates.clear()
        with (
            tempfile.TemporaryDirectory() as stats,
            mock.patch.object(method, "optimise", counted),
            peak_memory(device) as peak,
        ):
            hparams = ZeroUnlearn(
                model_name=name, preset="paper", layers=layers, stats_dir=stats, mom2_n_samples=args.texts
            )
            edit = method.unlearn(model, tokenizer, requests, hparams, corpus)
        edit.revert(model)
        lengths = [0, *(len(tokenizer(prefix)["input_ids"]) for prefix in edit.prefixes)]
        run = {
            "repetition": repetition,
            "seconds": edit.seconds,
            "peak_bytes": peak.bytes,
            "weights_bytes": model.get_memory_footprint(),
            "updates": sum(updates) / len(updates),
            "operations": operations(shape, layers, setting, lengths, updates, [TEXT_TOKENS] * args.texts),
            "relative_change": [layer.relative_change for layer in edit.layers],
            "rounding": [layer.rounding for layer in edit.layers],
        }
        record["runs"].append(run)
        print(json.dumps(run), flush=True)
    record["statistics_seconds"] = {n: statistics_seconds(model, tokenizer, layers, n) for n in args.sizes}
    W = torch.randn(shape.d, shape.m, device=device) / shape.m**0.5
    C = torch.eye(shape.m)
    record["factor_seconds"] = timed(device, lambda: factor_base(W, C, corpus_weight=15000.0, ridge=1.0), times=3)
    return record


def statistics_seconds(model: PreTrainedModel, tokenizer: Any, layers: Sequence[int], texts: int) -> float:
    """Seconds of a pass over so many texts, files included: two sizes tell what is fixed and what a text costs."""
    corpus = scaling.random_corpus(texts, TEXT_TOKENS)
    with tempfile.TemporaryDirectory() as stats:
        hparams = ZeroUnlearn(model_name="random", layers=list(layers), stats_dir=stats, mom2_n_samples=texts)
        start = time.perf_counter()
        second_moments(method.find_layout(model, hparams), tokenizer, hparams, corpus)
        return time.perf_counter() - start


def operations(
    shape: costs.Shape,
    layers: Sequence[int],
    setting: scaling.Setting,
    prefixes: Sequence[int],
    updates: Sequence[int],
    texts: Sequence[int],
) -> dict[str, float]:
    """Floating-point operations by stage; subjects end one word behind the middle, answers have one token."""
    suffix = setting.length - setting.length // 2 - 1
    at = [layers[-1]] * setting.n + [layer for layer in layers for _ in range(setting.n)]
    rows = [
        costs.Replayed(suffix, length + setting.length, 1, shape.blocks - 1 - layer, steps + 1, steps)
        for layer, steps in zip(at, updates, strict=True)
        for length in prefixes
    ]
    lengths = [length + setting.length for length in prefixes] * setting.n
    return {
        "statistics": costs.statistics(shape, texts, layers),
        "vectors": costs.recording(shape, lengths) + costs.optimisation(shape, rows),
        "keys": costs.keys(shape, lengths, layers),
    }


def tables(record: Record) -> str:
    """What docs/scaling.md shows."""
    rate = record["rates"]
    machine = record["environment"]
    parts = [
        f"On one {machine['card']} (torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{record['date']}). Square matrix products reach {rate['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{rate['float32'] / 1e12:.0f} in float32 and {rate['float64'] / 1e12:.0f} in float64; a copy moves "
        f"{rate['copied bytes'] / 1e12:.1f} TB/s."
    ]
    if "smollm2" in record:
        rows: list[list[Any]] = [["SmolLM2-135M, s", *STAGES, "all", "peak, GB", "Eff", "Gen", "Spe", "PPL"]]
        for run in record["smollm2"]["runs"]:
            if run["repetition"] == max(r["repetition"] for r in record["smollm2"]["runs"]):
                seconds, before, after = run["seconds"], run["before"], run["after"]
                said = [f"{100 * before[k]:.0f} → {100 * after[k]:.0f}" for k in ("eff", "gen", "spe")]
                rows.append(
                    [f"`{run['preset']}`, {run['dtype']}, {run['n']} facts"]
                    + [f"{seconds.get(stage, 0.0):.2f}" for stage in STAGES]
                    + [f"{sum(seconds.values()):.1f}", f"{run['peak_bytes'] / 1e9:.2f}", *said]
                    + [f"{before['ppl']:.2f} → {after['ppl']:.2f}"]
                )
        parts.append(scaling.table(rows))
    rows = [["random weights, bfloat16", "stage", "s", "TFLOP/s", "of the bfloat16 rate"]]
    for name in SHAPES:
        if name in record:
            last = record[name]["runs"][-1]
            head = f"{name}, {record[name]['n']} facts, {record[name]['tokens']} tokens"
            for stage, seconds in last["seconds"].items():
                done = last["operations"].get(stage)
                rows.append([head, stage, f"{seconds:.2f}", *(share(done / seconds, rate) if done else ["–", "–"])])
                head = ""
            (few, first), (many, second) = record[name]["statistics_seconds"].items()
            each = (second - first) / (int(many) - int(few))
            there = last["operations"]["statistics"] / record[name]["tokens"] * TEXT_TOKENS / each
            rows.append(["", "statistics, a text more", f"{each:.4f}", *share(there, rate)])
            rows.append(["", "statistics of 100 000 texts, from that", f"{first + PUBLISHED_TEXTS * each:.0f}", "", ""])
            over = last["peak_bytes"] / last["weights_bytes"] - 1
            rows.append(["", f"peak memory {last['peak_bytes'] / 1e9:.1f} GB", "", "", f"weights + {100 * over:.0f} %"])
    if len(rows) > 1:
        parts.append(scaling.table(rows))
    return "\n\n".join(parts)


def share(reached: float, rate: Record) -> list[str]:
    """TFLOP/s, and the part that they are of the card's rate."""
    return [f"{reached / 1e12:.0f}", f"{100 * reached / rate['bfloat16']:.0f} %"]


def filled(page: str, record: Record) -> str:
    """The page with the tables between its marks."""
    return between(page, BEGIN, END, tables(record))


def main() -> None:
    """Measure what is asked for, one piece after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="default: the accelerator that torch finds")
    parser.add_argument("--only", nargs="+", choices=["smollm2", *SHAPES], default=["smollm2", *SHAPES])
    parser.add_argument("--facts", type=int, default=50, help="facts that a random Llama forgets")
    parser.add_argument("--known", type=int, default=10, help="facts that SmolLM2 forgets")
    parser.add_argument("--texts", type=int, default=TEXTS, help=f"texts of {TEXT_TOKENS} tokens behind C")
    parser.add_argument("--sizes", type=int, nargs=2, default=[128, 512], help="texts whose times are compared")
    parser.add_argument("--repetitions", type=int, default=2, help="runs of each; the last is shown")
    parser.add_argument("--size", type=int, default=8192, help="side of the matrices that rates are measured on")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    args = parser.parse_args()
    record: Record = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if not args.tables:
        word = args.device or ("cuda" if torch.cuda.is_available() else "")
        if not word:
            raise SystemExit("torch finds no accelerator here: name one, as --device cuda:1")
        device = torch.device(word)
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type
        versions = {name: metadata.version(name) for name in ("torch", "transformers")}
        record |= {
            "date": time.strftime("%Y-%m-%d"),
            "environment": versions | {"card": card, "python": platform.python_version()},
            "rates": rates(device, args.size),
        }
        print(json.dumps(record["rates"]), flush=True)
        for name in args.only:
            record[name] = smollm2(device, args) if name == "smollm2" else random_llama(name, device, args)
            write_text(RESULT, json.dumps(record, indent=1) + "\n")
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), record))
    print(tables(record))


if __name__ == "__main__":
    main()
