"""Scoring with the shapes of a GPT-2 (124M) and of a small Llama (135M), random weights, against torch; rows of 513 tokens.

torch gets its best form: inference mode, its fused attention, no padding and the batch size that is fastest for it. It
computes the same: ln P of every token and the top 8 where P is high, with a threshold that about a quarter of the tokens
reach, as text does. toedit runs through ``Prior.score``; beside it stand the bare ONNX Runtime calls of the same runs (one
thread each, side by side on all cores), for what everything around them costs, the share of matrix products and attention in
ONNX Runtime's own profile, and the same graph with its attention whole instead of in blocks. A mixture of 32
experts, of which a token takes 4, stands beside the faster of torch's ways to compute them, and beside itself with all
computed.

    python tests/bench/bench_models.py [gpt2] [llama] [mixture]
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from common import bfloat16_left_out, machine, report, take_turns

import toedit
import toedit.export
from toedit import _blocks, _graph

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama2c import word_tokenizer

LENGTH, ROWS, K, WANTED, ROUNDS = 513, 8, 8, 0.27, 5
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "MatMulIntegerToFloat", "GroupQueryAttention", "Attention")
GOALS = {
    "gpt2": {("fp32", "torch fp32"): 1.8, ("int8", "torch fp32"): 4.2, ("int8", "torch bf16 autocast"): 2.1},
    "llama": {("fp32", "torch fp32"): 2.0, ("int8", "torch fp32"): 3.6, ("int8", "torch bf16 autocast"): 1.8},
    "mixture": {},
}

Ids = npt.NDArray[np.int64]


def shape_of(name: str) -> Any:
    """The configuration, with transformers' own defaults for a GPT-2."""
    from transformers import GPT2Config, LlamaConfig, Qwen3MoeConfig

    if name == "gpt2":
        return GPT2Config()
    if name == "mixture":
        return Qwen3MoeConfig(
            vocab_size=32_000,
            hidden_size=1024,
            num_hidden_layers=2,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            num_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=512,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    return LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def torch_scorer(model: Any, rows: Ids, batch: int, threshold: float, autocast: bool) -> Callable[[], Any]:
    data = torch.from_numpy(rows).split(batch)

    @torch.inference_mode()
    def score() -> torch.Tensor:
        out = []
        for ids in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            log_p = torch.log_softmax(logits.float(), -1)
            of_token = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
            log_p[of_token >= threshold].topk(K, -1)
            out.append(of_token)
        return torch.cat(out)

    return score


def fastest_batch(name: str, make: Callable[[int], Callable[[], Any]]) -> Callable[[], Any]:
    candidates = {batch: make(batch) for batch in (1, 2, 4)}
    timings = take_turns({str(batch): call for batch, call in candidates.items()}, 2)
    best = min(candidates, key=lambda batch: timings[str(batch)].least)
    print(f"  {name}: batches of {best} rows are its fastest")
    return candidates[best]


def session_of(model: str | bytes, profile: str = "") -> onnxruntime.InferenceSession:
    """A prior's graph as the scorer opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(ids: Ids, threshold: float) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "k": np.array([K]),
        "keep_low": np.array([threshold], np.float32),
        "keep_high": np.zeros(1, np.float32),
    }


def bare(prior: toedit.Prior, rows: Ids, threshold: float) -> Callable[[], Any]:
    """The runs that the scorer makes of the rows, and nothing else."""
    session = session_of(str(prior.path / "model.onnx"))
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    runs = [feeds(row[None], threshold) for row in rows]
    return lambda: list(pool.map(lambda run: session.run(None, run), runs))


def profile(name: str, prior: toedit.Prior, rows: Ids, threshold: float) -> None:
    """Print where ONNX Runtime says that one run's time goes."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(str(prior.path / "model.onnx"), profile=str(Path(folder) / "run"))
        for row in rows[:3]:
            session.run(None, feeds(row[None], threshold))
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        # the time of a loop, or of a choice, is that of the kernels in it
        if event.get("cat") != "Node" or not event["name"].endswith("kernel_time"):
            continue
        if event["args"]["op_name"] not in ("Loop", "If"):
            spent[event["args"]["op_name"]] += event["dur"]
    whole = sum(spent.values())
    share = sum(spent[op] for op in PRODUCTS) / whole
    others = ", ".join(f"{op} {t / whole:.1%}" for op, t in spent.most_common(12) if op not in PRODUCTS)
    products = ", ".join(f"{op} {spent[op] / whole:.1%}" for op in PRODUCTS if spent[op])
    print(f"  {name}: {share:.1%} of the kernels' time in matrix products and attention (goal 85 %): {products}; then {others}")


def whole_attention(prior: toedit.Prior) -> onnxruntime.InferenceSession:
    """The prior's graph with the attention of every row in one piece."""
    import onnx

    model = onnx.load(str(prior.path / "model.onnx"))
    nodes = []
    for node in model.graph.node:
        if node.op_type == "If":
            (attention,) = next(a.g for a in node.attribute if a.name == "else_branch").node
            attention.name, attention.output[0] = node.name, node.output[0]
            node = attention
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return session_of(model.SerializeToString())


def blocks(name: str, prior: toedit.Prior, vocab: int, threshold: float) -> None:
    """Print what attention in blocks gains, for one row on one thread."""
    sessions = {"in blocks": session_of(str(prior.path / "model.onnx")), "whole": whole_attention(prior)}
    for length in (LENGTH, 2 * LENGTH - 2):
        run = feeds(np.random.default_rng(1).integers(3, vocab, size=(1, length)), threshold)
        peers = {how: functools.partial(session.run, None, run) for how, session in sessions.items()}
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*(call() for call in peers.values()), strict=True))
        timings = take_turns(peers, ROUNDS)
        ours, theirs = timings["in blocks"], timings["whole"]
        print(
            f"  {name}: attention in blocks, {length} tokens: {theirs.median / ours.median:.2f} times as fast by median, "
            f"{theirs.least / ours.least:.2f} by minimum, the same bits"
        )


def take_fastest_experts(model: Any, rows: Ids) -> None:
    """Let torch compute a mixture's experts in the way that is fastest here."""

    def with_experts(how: str) -> Callable[[], Any]:
        def score() -> Any:
            model.set_experts_implementation(how)
            return torch_scorer(model, rows[:2], 1, 0.0, False)()

        return score

    timings = take_turns({how: with_experts(how) for how in ("eager", "grouped_mm")}, 2)
    best = min(timings, key=lambda how: timings[how].least)
    model.set_experts_implementation(best)
    print(f"  torch: {best} experts are its fastest")


def choice(name: str, model: Any, prior: toedit.Prior, rows: Ids, threshold: float) -> None:
    """Print what computing only the experts that tokens chose gains, for one row on one thread."""
    traced = _graph.pack_attention(_graph.trace(model, choose=False))
    all_of_them = _blocks.cut(_graph.add_outputs(traced))
    sessions = {
        "chosen": session_of(str(prior.path / "model.onnx")),
        "all": session_of(all_of_them.proto().SerializeToString()),
    }
    run = feeds(rows[:1], threshold)
    timings = take_turns({how: functools.partial(session.run, None, run) for how, session in sessions.items()}, ROUNDS)
    print(
        f"  {name}: only the experts that were chosen: {timings['all'].median / timings['chosen'].median:.2f} times as fast by "
        f"median, {timings['all'].least / timings['chosen'].least:.2f} by minimum, as all of them"
    )


def compare(name: str) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape_of(name)).eval()
    rows = np.random.default_rng(0).integers(3, model.config.vocab_size, size=(ROWS, LENGTH))
    tokens = ROWS * (LENGTH - 1)
    print(f"\n{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, {ROWS} rows of {LENGTH} tokens")
    mixed = model._can_set_experts_implementation()
    if mixed:
        take_fastest_experts(model, rows)
    log_p = torch_scorer(model, rows, 1, 0.0, False)().numpy()
    threshold = float(np.quantile(log_p, 1 - WANTED))
    with tempfile.TemporaryDirectory() as folder:
        words = word_tokenizer(model.config.vocab_size)
        priors = {}
        for dtype in ("fp32", "int8"):
            path = toedit.export.export(model, Path(folder) / dtype, tokenizer=words, dtype=dtype, bos="never")  # type: ignore[arg-type]
            priors[dtype] = toedit.Prior(path)
        given = rows.tolist()
        keep = [(float(np.exp(threshold)), 1.0)]
        peers: dict[str, Callable[[], Any]] = {}
        forms = {"torch fp32": False} | ({} if bfloat16_left_out() else {"torch bf16 autocast": True})
        for theirs, autocast in forms.items():
            peers[theirs] = fastest_batch(theirs, lambda b, a=autocast: torch_scorer(model, rows, b, threshold, a))  # type: ignore[misc]
        for dtype, prior in priors.items():
            peers[dtype] = lambda prior=prior: prior.score(given, k=K, keep=keep)  # type: ignore[misc]
        got = np.stack([row["logp"][1:] for row in peers["fp32"]().to_pylist()])
        print(f"  largest |difference of ln P| from torch, fp32: {np.abs(got - log_p).max():.2g}")
        timings = take_turns(peers, ROUNDS)
        for dtype in ("fp32", "int8"):
            report(f"{name}, {dtype}", {k: t for k, t in timings.items() if k == dtype or k.startswith("torch")}, tokens, dtype)
        for (ours, theirs), goal in GOALS[name].items():
            if theirs not in timings:
                continue
            ratio = timings[theirs].median / timings[ours].median
            least = timings[theirs].least / timings[ours].least
            print(f"  {ours} / {theirs}: {ratio:.2f} by median, {least:.2f} by minimum (goal {goal})")
        for dtype, prior in priors.items():
            pair = take_turns({"ours": peers[dtype], "bare": bare(prior, rows, threshold)}, 2 * ROUNDS)
            mine, theirs = pair["ours"], pair["bare"]
            print(
                f"  {dtype}: Prior.score takes {mine.median / theirs.median - 1:+.1%} by median, "
                f"{mine.least / theirs.least - 1:+.1%} by minimum, of the bare ONNX Runtime calls (goal 2 %)"
            )
        for dtype, prior in priors.items():
            profile(f"{name}, {dtype}", prior, rows, threshold)
            blocks(f"{name}, {dtype}", prior, model.config.vocab_size, threshold)
        if mixed:
            choice(f"{name}, fp32", model, priors["fp32"], rows, threshold)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    print(f"Models, {cores} cores. {machine()}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sys.argv[1:] or list(GOALS):
            compare(name)


if __name__ == "__main__":
    main()
