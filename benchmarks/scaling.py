"""How time and memory grow: with n, layers, sequence length, d and m, on random-weight Llamas; and what that predicts.

    python benchmarks/scaling.py             # measures (about five minutes on 2 quiet cores), fits, predicts
    python benchmarks/scaling.py --predict   # the predictions alone, from `costs.py`; nothing is run

Writes benchmarks/results/scaling.json and prints Markdown tables. A fitted exponent is the slope of log seconds over
log size, by least squares over the points.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import costs
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from zerounlearn.core.solve import factor_base, solve_update
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.data.corpora import Corpus
from zerounlearn.data.request import Request
from zerounlearn.files import write_text
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import unlearn
from zerounlearn.model.peak import peak_memory

RESULT = Path(__file__).resolve().parent / "results" / "scaling.json"
WORDS = 2000


@dataclass(frozen=True)
class Setting:
    """One run: the model's shape and what it forgets."""

    n: int = 8
    layers: int = 3
    length: int = 16
    d: int = 256
    m: int = 1024
    blocks: int = 12

    def shape(self, vocabulary: int) -> costs.Shape:
        """Heads of 64, two to a key and value."""
        return costs.Shape(self.d, self.m, self.blocks, self.d // 64, max(self.d // 128, 1), 64, vocabulary)

    def hparams(self, folder: str) -> ZeroUnlearn:
        first = self.blocks // 2
        return ZeroUnlearn(
            model_name="random-llama",
            layers=list(range(first, first + self.layers)),
            reproduce="exact",
            v_num_grad_steps=4,
            mom2_n_samples=64,
            stats_dir=folder,
            regularization_lam=10.0,
            n_contexts=5,
        )


SWEEPS: dict[str, list[int]] = {
    "n": [1, 5, 20, 100, 500],
    "layers": [1, 2, 4, 6],
    "length": [8, 16, 32, 64],
    "d": [128, 256, 512, 1024],
    "m": [512, 1024, 2048, 4096],
}
# Solves alone, at the shapes of real models' down projections, as far as 16 GiB hold them.
SOLVES = [(576, 1536), (1024, 4096), (2048, 8192), (3072, 8192), (4096, 14336)]
# The singular vectors of V_u alone, at the sizes of figures 1 and 2 of the paper's supplement and its model's width.
BASES, BASE_WIDTH = [10, 25, 50, 100, 200, 500, 1000], 3072


def tokenizer(words: int = WORDS) -> PreTrainedTokenizerFast:
    """Whole words by number, so that lengths in tokens are what a sweep says."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(words)}
    for word in ("The", "Therefore", "Because", "I", "You", "is", "a", "."):
        vocabulary[word] = len(vocabulary)
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def random_llama(shape: costs.Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama of this shape with random weights, made where it is to be."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d,
        intermediate_size=shape.m,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        max_position_embeddings=1024,
    )
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type), device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def random_corpus(texts: int, length: int) -> Corpus:
    """Texts of so many words."""
    draw = torch.randint(WORDS, (texts, length), generator=torch.Generator().manual_seed(1)).tolist()
    return Corpus("random", lambda: [" ".join(f"w{x}" for x in row) for row in draw])


def requests(setting: Setting) -> list[Request]:
    """Subjects of two words in the middle of `length` words, all different."""
    drawn = torch.randint(WORDS, (setting.n, setting.length), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for i, numbers in enumerate(drawn):
        words = [f"w{x}" for x in numbers]
        at = setting.length // 2
        subject = f"w{i % WORDS} {words[at]}"
        found.append(Request.of(" ".join([*words[:at], "{}", *words[at + 2 :]]), subject, f"w{(i * 7) % WORDS}"))
    return found


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds by stage, and the highest resident memory beyond the model, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, setting).result()


def _measure(setting: Setting) -> dict[str, Any]:
    tok = tokenizer()
    model = random_llama(setting.shape(len(tok)), torch.float32, torch.device("cpu"))
    corpus = random_corpus(64, 128)
    base = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder, peak_memory(torch.device("cpu")) as peak:
        outcome = unlearn(model, tok, requests(setting), setting.hparams(folder), corpus)
    return {"seconds": outcome.seconds, "peak_bytes": peak.bytes - base}


def measure_solve(d: int, m: int, n: int = 50) -> dict[str, Any]:
    """The factor of B₀, and one solve with it."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(d, m, generator=g) / m**0.5
    X = torch.randn(2048, m, generator=g)
    C = X.mT @ X / len(X)
    C.diagonal().add_(0.1)
    K, R, V = torch.randn(n, m, generator=g), torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    start = time.perf_counter()
    base = factor_base(W, C, corpus_weight=15000.0, ridge=1.0)
    factored = time.perf_counter() - start
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        solve_update(W, base, K, R, orthonormal_basis(V), forget_weight=50.0).apply(W)
        seconds.append(time.perf_counter() - start)
    return {"d": d, "m": m, "n": n, "factor": factored, "solve": statistics.median(seconds)}


def measure_basis(n: int, d: int = BASE_WIDTH) -> dict[str, Any]:
    """An orthonormal basis of n outputs, in a process of its own with one thread.

    The median of three in the process's own seconds, which other work on the machine does not lengthen, and the memory
    beyond V_u.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_basis, n, d).result()


def _measure_basis(n: int, d: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    V = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    orthonormal_basis(V[:1])  # the library's own start-up is not the basis's
    base, seconds = psutil.Process().memory_info().rss, []
    with peak_memory(torch.device("cpu")) as peak:
        for _ in range(3):
            start = time.thread_time()
            orthonormal_basis(V)
            seconds.append(time.thread_time() - start)
    return {"d": d, "n": n, "cpu_seconds": statistics.median(seconds), "peak_bytes": max(peak.bytes - base, 0)}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def sweep(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    points = [{name: size} | measure(replace(Setting(), **{name: size})) for size in sizes]
    for point in points:
        print(name, point[name], {k: round(v, 3) for k, v in point["seconds"].items()}, flush=True)
    upper = points[len(points) // 2 :] if len(points) > 4 else points  # where fixed costs are small
    stages = points[0]["seconds"]
    return {
        "sizes": list(sizes),
        "points": points,
        "exponents": {
            stage: exponent([p[name] for p in upper], [p["seconds"][stage] for p in upper]) for stage in stages
        }
        | {"memory": exponent([p[name] for p in upper], [max(p["peak_bytes"], 1) for p in upper])},
    }


@dataclass(frozen=True)
class Gpu:
    """What a device is taken to reach: FLOP/s in bfloat16 and float64, bytes of memory."""

    half: float
    double: float
    memory: float


# The rest of a device's memory is left to activations, C and its factor.
_WEIGHT_SHARE = 0.6

# d, m, blocks, heads, key-value heads, head size, vocabulary; edited layers as published.
LLAMAS = {
    "Llama-3.2-3B": (costs.Shape(3072, 8192, 28, 24, 8, 128, 128256), [16, 17, 18]),
    "Llama-3.1-8B": (costs.Shape(4096, 14336, 32, 32, 8, 128, 128256), [19, 20, 21]),
    "Llama-3.1-70B": (costs.Shape(8192, 28672, 80, 64, 8, 128, 128256), [47, 48, 49]),
}


def predictions(n: int, texts: int, tokens: int, gpu: Gpu, gpus: int) -> list[dict[str, Any]]:
    """Seconds of each stage on `gpus` devices, None for a model that does not fit.

    Six contexts of 12 tokens before a prompt of 8, the subject's last token 5 before its end, an answer of 2 tokens,
    24 steps for every vector, `texts` texts of `tokens` tokens. The corpus is split over as many copies of the model
    as fit; a copy that is spread over devices runs its layers one after the other, so all else takes what it takes on
    one device.
    """
    found = []
    for name, (shape, layers) in LLAMAS.items():
        rows = [
            costs.Replayed(6, 21, 2, shape.blocks - 1 - layer, 25, 24)
            for layer in (layers[-1], *layers)
            for _ in range(6 * n)
        ]
        weights = shape.blocks * shape.block + 2.0 * shape.d * shape.vocabulary  # two bytes a weight
        copies = gpus // math.ceil(weights / (_WEIGHT_SHARE * gpu.memory))
        vectors = costs.optimisation(shape, rows) + costs.recording(shape, [21] * 6 * n)
        seconds = {
            "statistics": costs.statistics(shape, [tokens] * texts, layers) / gpu.half / max(copies, 1),
            "z+sensitive": vectors / gpu.half,
            "keys": costs.keys(shape, [20] * 6 * n, layers) / gpu.half,
            "factor": len(layers) * costs.factor(shape) / gpu.double,
            "solve": len(layers) * costs.solve(shape, n, n) / gpu.double,
        }
        found.append(
            {
                "model": name,
                "gpus": gpus,
                "copies": copies,
                "weights_bytes": weights,
                "C_bytes_a_layer": 4.0 * shape.m**2,
                "seconds": seconds if copies else None,
            }
        )
    return found


def table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def markdown(record: dict[str, Any]) -> str:
    parts = []
    for name, result in record.get("sweeps", {}).items():
        stages = list(result["points"][0]["seconds"])
        rows: list[list[Any]] = [[name, *(f"{s}, s" for s in stages), "memory, MB"]]
        rows += [
            [p[name], *(f"{p['seconds'][s]:.3g}" for s in stages), f"{p['peak_bytes'] / 1e6:.0f}"]
            for p in result["points"]
        ]
        rows.append(["exponent", *(f"{result['exponents'][s]:.2f}" for s in (*stages, "memory"))])
        parts.append(table(rows))
    if "solves" in record:
        rows = [["d", "m", "factor of B₀, s", "solve, s"]]
        rows += [[s["d"], s["m"], f"{s['factor']:.3g}", f"{s['solve']:.3g}"] for s in record["solves"]]
        parts.append(table(rows))
    if "bases" in record:
        rows = [["d", "n", "basis of V_u, CPU s", "memory, MB"]]
        rows += [[b["d"], b["n"], f"{b['cpu_seconds']:.3g}", f"{b['peak_bytes'] / 1e6:.0f}"] for b in record["bases"]]
        parts.append(table(rows))
    rows = [["predicted, s", "GPUs", "statistics", "z* and V_u", "keys", "factor of B₀", "solve"]]
    for p in record["predictions"]:
        seconds = [f"{s:.2g}" for s in p["seconds"].values()] if p["seconds"] else ["does not fit"] * 5
        rows.append([p["model"], p["gpus"], *seconds])
    return "\n\n".join([*parts, table(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="the predictions alone")
    parser.add_argument("--only", nargs="+", choices=[*SWEEPS, "solve", "basis"], default=[*SWEEPS, "solve", "basis"])
    parser.add_argument("--rate", type=float, default=300e12, help="FLOP/s in bfloat16 that the GPU is taken to reach")
    parser.add_argument("--double", type=float, default=40e12, help="its FLOP/s in float64")
    args = parser.parse_args()
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not args.predict:
        for name in args.only:
            if name in SWEEPS:
                record.setdefault("sweeps", {})[name] = sweep(name, SWEEPS[name])
        if "solve" in args.only:
            free = min(psutil.virtual_memory().available, 16 * 2**30)
            record["solves"] = [measure_solve(d, m) for d, m in SOLVES if 4 * m * m + 40 * d * m + 16 * d * d < free]
        if "basis" in args.only:
            record["bases"] = [measure_basis(n) for n in BASES]
        if args.only != ["basis"]:  # which keeps a record of its own
            record["environment"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    gpu = Gpu(args.rate, args.double, 80e9)
    record["predictions"] = [
        prediction for gpus in (1, 2, 8) for prediction in predictions(50, 100_000, 512, gpu, gpus)
    ]
    record["predicted_for"] = asdict(gpu) | {"n": 50, "texts": 100_000, "tokens_a_text": 512}
    write_text(RESULT, json.dumps(record, indent=1) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
