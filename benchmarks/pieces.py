"""The measurements of `speed.py`, each in a process of its own.

    python benchmarks/pieces.py NAME OUTPUT.json [KEY=VALUE]...    # hyperparameters, for a trial

Compared things are measured in one process, one after the other, with the same requests, contexts and hyperparameters.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import costs
import psutil
import torch
from plain import plain
from stopwatch import Run, Stopwatch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn.core.nullspace import Weights, free_space, solve_adam, solve_exact
from zerounlearn.core.solve import factor_base, solve_update
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.data.corpora import Corpus, open_corpus
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import target_ids
from zerounlearn.data.sets.embedded import packaged_entries, split_entries
from zerounlearn.demo.smollm2 import fetch_smollm2
from zerounlearn.files import write_text
from zerounlearn.method.base import load_method
from zerounlearn.method.edit import Edit
from zerounlearn.method.zerounlearn import method as algorithm
from zerounlearn.method.zerounlearn.batches import build, distinct
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.contexts import sample_prefixes
from zerounlearn.model.answers import score
from zerounlearn.model.families import families
from zerounlearn.model.tokens import continuation
from zerounlearn.statistics.collect import second_moments

ROOT = Path(__file__).resolve().parents[1]
# Texts behind C here: every implementation reads the same ones, the plain one six times.
TEXTS = 60


class Bench:
    """Model, tokenizer, facts, contexts and corpus that all implementations share."""

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        folder = fetch_smollm2(ROOT / "models" / "llama-smollm2-135m")
        self.folder, self.overrides = folder, list(overrides)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        texts = list(open_corpus("embedded").texts())
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:TEXTS].tolist()
        self.texts = [texts[i] for i in order]
        self.corpus = Corpus(f"speed{TEXTS}", lambda: self.texts)
        self.prefixes = sample_prefixes(
            self.model, self.tokenizer, 5, 10, generator=torch.Generator().manual_seed(0)
        )  # as `unlearn` samples them
        self.shape = costs.Shape.of(self.model.config)

    def hparams(self, stats_dir: str, **changes: Any) -> ZeroUnlearn:
        fixed = (
            families["llama"].to_dict()
            | {  # spelled out, for the plain implementation reads them
                "model_name": self.folder,
                "stats_dir": stats_dir,
                "mom2_n_samples": TEXTS,
                "reproduce": "exact",
            }
            | changes
        )
        return load_method(
            ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml", [*(f"{k}={v}" for k, v in fixed.items()), *self.overrides]
        )

    def facts(self, n: int) -> list[Fact]:
        """Facts over the relations, round robin."""
        _, entries = split_entries(packaged_entries())
        by_relation: dict[str, list[Fact]] = {}
        for entry in entries:
            by_relation.setdefault(str(entry.topic), []).append(entry.fact)
        chosen: list[Fact] = []
        while len(chosen) < n:
            for members in by_relation.values():
                if members and len(chosen) < n:
                    chosen.append(members.pop())
        return chosen

    def put_back(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.model.get_parameter(name).copy_(value)

    def plain_facts(self, facts: Sequence[Fact], hp: ZeroUnlearn) -> list[plain.Fact]:
        requests = [fact.request for fact in facts]
        return [
            (
                r.prompt,
                r.subject,
                continuation(self.tokenizer, r.prompt, r.answer),
                target_ids(self.tokenizer, r, hp.neutral_target),
            )
            for r in requests
        ]


@contextmanager
def watched(name: str, wrap: Callable[..., Any]) -> Iterator[None]:
    """Replace a function that `unlearn` calls by `wrap(original)`."""
    original = getattr(algorithm, name)
    setattr(algorithm, name, wrap(original))
    try:
        yield
    finally:
        setattr(algorithm, name, original)


def statistics_piece(bench: Bench) -> list[Run]:
    """C of three layers: one pass for all, against two passes a layer, one text at a time."""
    ours, theirs = Stopwatch(), Stopwatch()
    layout = algorithm.find_layout(bench.model, bench.hparams("unused"))
    gaps = []
    for repetition in range(3):
        with tempfile.TemporaryDirectory() as folder:
            hp = bench.hparams(folder)
            with ours("statistics"):
                found = second_moments(layout, bench.tokenizer, hp, bench.corpus)
            ours.next()
            if repetition == 0:
                with theirs("statistics"):
                    plainly = {i: plain.moments(bench.model, bench.tokenizer, bench.texts, i, hp) for i in hp.layers}
                theirs.next()
                for layer, (C, VC) in plainly.items():
                    W = layout.read(layer)
                    gaps += [_gap(found[layer], C), _gap(W @ found[layer], VC)]
    lengths = [
        len(bench.tokenizer(t, truncation=True, max_length=hp.stats_max_length)["input_ids"]) for t in bench.texts
    ]
    flops = costs.statistics(bench.shape, lengths, hp.layers)
    shared = {"tokens": sum(lengths), "relative_difference": max(gaps)}
    return ours.runs("ours", None, flops=flops, **shared) + theirs.runs("plain", None, **shared)


def pair_piece(bench: Bench, n: int, *, repetitions: int, measured_n: int | None = None) -> list[Run]:
    """Everything but the statistics: ours by the published steps and by the default ones, and plain by the published.

    With `measured_n` the plain one does so many of the n.

    Requests take unequal numbers of steps, which are the same in both: the time of z and V_u is scaled up by the steps
    times tokens that all of them take over those of the ones that were measured.
    """
    facts = bench.facts(n)
    requests = [fact.request for fact in facts]
    ours, fast, theirs = Stopwatch(), Stopwatch(), Stopwatch()
    flops: list[float] = []
    work: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        hp = bench.hparams(folder)
        layout = algorithm.find_layout(bench.model, hp)
        moments = second_moments(layout, bench.tokenizer, hp, bench.corpus)
        C = {layer: moments[layer] for layer in hp.layers}
        originals = {layout.weight_names[i]: layout.read(i).clone() for i in hp.layers}

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def run(layout, tokenizer, problems, prefixes, hparams, **more):
                with ours("z+sensitive"):
                    found = original(layout, tokenizer, problems, prefixes, hparams, **more)
                flops.append(_flops(bench.shape, tokenizer, problems, prefixes, hparams, found.steps.tolist()))
                for stage, at in (("z", "block"), ("sensitive", "projection")):
                    work[stage] = _work(tokenizer, problems, prefixes, hparams, found.steps.tolist(), at)
                return found

            return run

        def forgotten(clock: Stopwatch, run: ZeroUnlearn) -> Edit:
            with clock("total without statistics"):
                edit = algorithm.unlearn(bench.model, bench.tokenizer, requests, run, bench.corpus)
            for stage in ("contexts", "keys", "solve"):
                clock.add(stage, edit.seconds[stage])
            clock.add("total without statistics", -edit.seconds["statistics"])
            return edit

        for _ in range(repetitions):
            with watched("optimise", counted):
                outcome = forgotten(ours, hp)
            edited = {name: bench.model.get_parameter(name).detach().clone() for name in originals}
            with ours("evaluate"):
                score(bench.model, bench.tokenizer, _pairs(facts))
            ours.next()
            bench.put_back(originals)
        for _ in range(repetitions):
            fast.add("z+sensitive", forgotten(fast, hp.replace(reproduce="fast")).seconds["vectors"])
            fast.next()
            bench.put_back(originals)
        if outcome.vectors.prefixes != bench.prefixes:
            raise RuntimeError("the two implementations would not have had the same contexts")
        some = facts[:: n // measured_n] if measured_n else facts
        values = {layer: layout.read(layer) @ C[layer] for layer in hp.layers}
        with theirs("contexts"):
            plain_contexts(bench)
        found = plain.unlearn(
            bench.model, bench.tokenizer, bench.plain_facts(some, hp), bench.prefixes, C, hp, VC=values, clock=theirs
        )
        with theirs("evaluate"):
            plain_scores(bench, _pairs(some))
        theirs.next()
        bench.put_back(originals)
    more = {}
    if measured_n is None:
        names = {layer: layout.weight_names[layer] for layer in hp.layers}
        more["relative_difference"] = max(_gap(edited[names[i]], W) for i, W in found.items())
        more["relative_difference_of_change"] = max(
            float((edited[names[i]] - W).norm() / (W - originals[names[i]]).norm()) for i, W in found.items()
        )
    runs = ours.runs("ours", n)
    for run in runs:
        if run["stage"] == "z+sensitive":
            run["flops"] = statistics.median(flops)
    chosen = [fact.request.prompt for fact in some]
    factors = {stage: sum(each.values()) / sum(each[prompt] for prompt in chosen) for stage, each in work.items()}
    runs += fast.runs("ours, fast", n)
    return runs + _with_sums(theirs.runs("plain", n, measured_n=measured_n, factors=factors, **more))


def _with_sums(runs: list[Run]) -> list[Run]:
    """The plain implementation's stages and their sums; contexts and solve hardly grow with n and are not scaled up."""
    by_stage = {run["stage"]: run for run in runs}
    for stage in ("contexts", "solve", "write"):
        if measured := by_stage[stage].pop("measured_n", None):
            by_stage[stage]["seconds"] *= measured / by_stage[stage]["n"]
    sums = {
        "z+sensitive": ("z", "sensitive"),
        "total without statistics": ("contexts", "z", "sensitive", "keys", "solve", "write"),
    }
    for stage, parts in sums.items():
        by_stage[stage] = by_stage["z"] | {
            "stage": stage,
            "seconds": sum(by_stage[part]["seconds"] for part in parts),
            "peak_bytes": max(by_stage[part]["peak_bytes"] for part in parts),
        }
    return list(by_stage.values())


def plain_contexts(bench: Bench) -> None:
    """Five prefixes as the published code samples them: one batch with a key-value cache, top 5."""
    ids = bench.tokenizer(["The", "Because", "I", "You", "Then"], return_tensors="pt")["input_ids"]
    with torch.random.fork_rng():
        bench.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=5,
            max_length=10,
            pad_token_id=bench.tokenizer.eos_token_id,
        )


@torch.no_grad()
def plain_scores(bench: Bench, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Teacher-forced answers, one prompt at a time with all logits."""
    found = []
    for prompt, answer in pairs:
        ids = bench.tokenizer(prompt)["input_ids"]
        target = continuation(bench.tokenizer, prompt, answer)
        logits = bench.model(input_ids=torch.tensor([ids + target[:-1]])).logits[0, len(ids) - 1 :]
        found.append(logits.argmax(-1).tolist() == target)
    return found


def solve_piece(_: None) -> list[Run]:
    """One layer at Llama-3.2-3B's shape, on synthetic matrices: ours with B₀'s factor at hand, and plain."""
    d, m, n = 3072, 8192, 50
    g = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g)

    W = random(d, m) / m**0.5
    X = random(4096, m)
    C = X.mT @ X / len(X)
    del X
    K, R, V = random(n, m), random(n, d), random(n, d)
    hp = ZeroUnlearn(model_name="none", layers=[0])
    ours, factor, theirs = Stopwatch(), Stopwatch(), Stopwatch()
    with factor("solve: factor of B₀, once"):
        base = factor_base(W, C, corpus_weight=hp.wiki_KKT_lam, ridge=hp.regularization_lam)
    factor.next()
    ours.start = psutil.Process().memory_info().rss
    for _ in range(5):
        with ours("solve"):
            Q = orthonormal_basis(V, rtol=1e-6)
            edited = solve_update(W, base, K, R, Q, forget_weight=hp.forget_KKT_lam).apply(W)
        ours.next()
    theirs.start = psutil.Process().memory_info().rss
    VC = W @ C
    for _ in range(2):  # some ten seconds each on 2 cores
        with theirs("solve"):
            expected = plain.solve(W, C, VC, K.mT, (K @ W.mT).mT, R.mT, V.mT, hp)
        theirs.next()
    shape = costs.Shape(d, m, 1, 1, 1, 1, 1)
    more = {"d": d, "m": m, "dtype": "float64", "relative_difference": _gap(edited, expected)}
    more["bound_bytes"] = C.numel() * C.element_size() + 2 * d * m * 8
    return (
        ours.runs("ours", n, flops=costs.solve(shape, n, n), **more)
        + factor.runs("ours", n, flops=costs.factor(shape), **more)
        + theirs.runs("plain", n, **more)
    )


def gradient_piece(_: None) -> list[Run]:
    """ZeroUnlearn-GD's two solvers on one layer of SmolLM2's shape, and the objective that each reaches."""
    d, m, n = 576, 1536, 10
    g = torch.Generator().manual_seed(0)
    W = torch.randn(d, m, generator=g, dtype=torch.float64) / m**0.5
    X = torch.randn(4 * m, m // 2, generator=g, dtype=torch.float64) @ torch.randn(m // 2, m, generator=g).double()
    C = X.mT @ X / len(X) / m
    K, R, V = (torch.randn(n, size, generator=g, dtype=torch.float64) for size in (m, d, d))
    Q = orthonormal_basis(V)
    space = free_space(C, 1e-2, "absolute", where="the layer")
    weights = Weights(1.0, 100.0, 0.1)
    M = K @ W.mT

    def objective(edited: torch.Tensor) -> float:
        out = K @ edited.mT
        terms = (1.0, (out @ Q)), (100.0, out - M - R), (0.1, edited - W)
        return float(sum(weight * term.square().sum() for weight, term in terms))

    runs = []
    for name, repetitions, solver in (
        ("ours-gd-exact", 5, lambda: solve_exact(W, space, K, R, Q, weights)),
        ("ours-gd-adam", 1, lambda: solve_adam(W, space, K, R, Q, weights, steps=500, lr=1e-3)),
    ):
        clock = Stopwatch()
        for _ in range(repetitions):
            with clock("solve"):
                update = solver()
            clock.next()
        runs += clock.runs(name, n, d=d, m=m, objective=objective(update.apply(W)), free_directions=space.directions)
    return runs


def easyedit_piece(bench: Bench, name: str, n: int, *, measured_n: int | None = None) -> list[Run]:
    """A method of the framework through its own `BaseEditor`: the seconds that it reports for applying the edit.

    Its statistics are read from a cache of the same texts; what AlphaEdit projects on, it takes from them itself.
    """
    from zerounlearn.easyedit.editions.compat import framework

    easyeditor = framework().module
    facts = bench.facts(n)[: measured_n or n]
    requests = [fact.request for fact in facts]
    clock = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        hp = bench.hparams(folder)
        corpus = Corpus("wikipedia", lambda: bench.texts)  # the name under which EasyEdit looks for statistics
        second_moments(algorithm.find_layout(bench.model, hp), bench.tokenizer, hp, corpus)
        values = json.loads(json.dumps(hp.to_dict())) | {
            "alg_name": name,
            "mom2_dataset": "wikipedia",
            "mom2_adjustment": name != "ROME",
            "device": "cpu",
            "layers": hp.layers[-1:] if name == "ROME" else hp.layers,
            "batch_size": len(facts),
            "context_template_length_params": [[hp.context_length, 5]],
            "v_loss_layer": 29,
            "lm_head_module": "model.embed_tokens",  # tied, and 2023's MEMIT asks for a weight by this name
            "P_loc": str(Path(folder) / "null_space_project.pt"),
            "nullspace_threshold": 2e-2,
            "L2": 10.0,
        }
        cls = getattr(easyeditor, f"{name}HyperParams")
        fields = cls.__dataclass_fields__
        settings = cls(**{key: value for key, value in values.items() if key in fields})
        editor = easyeditor.BaseEditor(settings)
        arguments = {
            "prompts": [r.prompt for r in requests],
            "subject": [r.subject for r in requests],
            "ground_truth": [r.answer for r in requests],
            "target_new": [bench.tokenizer.eos_token] * len(requests),
            "verbose": False,
        }
        with clock("total with evaluation"), _inside(folder):  # AlphaEdit leaves its projector where it is called
            batched = name != "ROME" and (len(facts) > 1 or framework().edition == "checkout")
            edit = editor.batch_edit if batched else editor.edit
            metrics = edit(**arguments, **({"sequential_edit": True} if framework().edition == "checkout" else {}))[0]
        each = [float(m["time"]) for m in metrics]
        clock.peak["total"] = clock.peak["total with evaluation"]
        clock.add("total", each[0] if batched else sum(each))
        clock.next()
    return clock.runs(f"easyedit-{name.lower()}", n, measured_n=measured_n, edition=framework().edition)


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Make it the current folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _pairs(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    return [
        pair
        for f in facts
        for pair in [f.request.query[:2], *((p, f.request.answer) for p in f.paraphrases), *f.neighbours, *f.others]
    ]


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def _flops(shape: costs.Shape, tokenizer, problems, prefixes, hp, steps: list[int]) -> float:
    depth = shape.blocks
    rows = build(tokenizer, problems, prefixes, hp)
    replayed = []
    for row in rows:
        back = steps[row.problem]
        forward = min(back + 1, hp.v_num_grad_steps)
        above = depth - 1 - problems[row.problem].layer
        size = len(row.ids) - row.position
        replayed.append(costs.Replayed(size, len(row.ids), max(len(row.targets), 1), above, forward, back))
    lengths = [len(sequence) for sequence in distinct(row.ids for row in rows)[0]]
    return costs.optimisation(shape, replayed) + costs.recording(shape, lengths)


def _work(tokenizer, problems, prefixes, hp, steps: list[int], at: str) -> dict[str, float]:
    """Passes times padded tokens of the plain implementation, by prompt."""
    longest: dict[int, int] = {}
    for row in build(tokenizer, problems, prefixes, hp):
        longest[row.problem] = max(longest.get(row.problem, 0), len(row.ids))
    found: dict[str, float] = {}
    for i, problem in enumerate(problems):
        if problem.at == at:
            prompt = problem.request.prompt
            found[prompt] = found.get(prompt, 0.0) + longest[i] * (2 * steps[i] + 1)
    return found


def rate_piece(_: None) -> list[Run]:
    """The machine's rate of matrix products, in FLOP/s."""
    return [{"implementation": "machine", "n": None, "stage": "matmul", "flops_per_second": costs.matmul_rate(6.0)}]


PIECES: dict[str, tuple[bool, Callable[[Any], list[Run]]]] = {
    "rate": (False, rate_piece),
    "solve": (False, solve_piece),
    "gradient": (False, gradient_piece),
    "statistics": (True, statistics_piece),
    "pair-1": (True, lambda bench: pair_piece(bench, 1, repetitions=5)),
    "pair-10": (True, lambda bench: pair_piece(bench, 10, repetitions=3)),
    "pair-50": (True, lambda bench: pair_piece(bench, 50, repetitions=1, measured_n=10)),
    "easyedit-rome-1": (True, lambda bench: easyedit_piece(bench, "ROME", 1)),
    "easyedit-rome-10": (True, lambda bench: easyedit_piece(bench, "ROME", 10, measured_n=2)),
    "easyedit-memit-1": (True, lambda bench: easyedit_piece(bench, "MEMIT", 1)),
    "easyedit-memit-10": (True, lambda bench: easyedit_piece(bench, "MEMIT", 10, measured_n=4)),
}
CHECKOUT = {
    "easyedit-alphaedit-1": (True, lambda bench: easyedit_piece(bench, "AlphaEdit", 1)),
    "easyedit-alphaedit-10": (True, lambda bench: easyedit_piece(bench, "AlphaEdit", 10, measured_n=4)),
}


def main() -> None:
    name, output, overrides = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    with_model, measure = (PIECES | CHECKOUT)[name]
    rate = costs.matmul_rate(1.0)
    runs = measure(Bench(overrides) if with_model else None)
    rate = max(rate, costs.matmul_rate(1.0))
    for run in runs:
        if "flops" in run:
            run["fraction_of_matmul_rate"] = run["flops"] / run["seconds"] / rate
    write_text(output, json.dumps({"matmul_rate": rate, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
