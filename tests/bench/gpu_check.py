"""`make gpu-check`: on a machine with an NVIDIA card, parity with torch and speed against it, into a dated file.

Parity: the bundled prior's weights, exported for the card in bfloat16 and float16, against torch in float32 on the CPU, on
real text; whether a row's scores depend on the rows around it; how long Ctrl-C takes in the middle of scoring. Speed: random
weights in the shapes of known models against torch in bfloat16 with its fused attention, which computes the same outputs; and
the share of the matrix peak that torch reaches on this card.

With --device cpu everything runs on the CPU with a float32 prior, to try the script itself: those figures say nothing of a
card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from common import machine, take_turns

import toedit
from toedit.export import export

SOURCE = Path(__file__).parents[2] / "python" / "prior"
K, KEEP, WANTED, THRESHOLDS = 8, 0.9, 0.27, (0.9, 0.99, 0.999)

# name: (configuration class, its settings)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("LlamaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
                             "vocab_size": 4096, "max_position_embeddings": 512}),
    "gpt2-124m": ("GPT2Config", {"vocab_size": 50257}),
    "qwen2-0.5b": ("Qwen2Config", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                                   "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
                                   "max_position_embeddings": 2048, "tie_word_embeddings": True}),
    "llama-1b": ("LlamaConfig", {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
                                 "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
                                 "max_position_embeddings": 2048, "tie_word_embeddings": True}),
    "llama-8b": ("LlamaConfig", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                                 "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
                                 "max_position_embeddings": 2048}),
}  # fmt: skip


def card() -> str | None:
    """Name, memory and driver of the first card, or None."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def text_rows(tokenizer: Any, tokens: int, longest: int) -> list[list[int]]:
    """Rows of real text, as long as its paragraph groups happen to be."""
    rows: list[list[int]] = []
    for text in topics.values():
        for part in text.split("\n\n\n"):
            ids = tokenizer(part, add_special_tokens=False)["input_ids"][:longest]
            if ids and tokens > 0:
                rows.append(ids)
                tokens -= len(ids)
    return rows


def torch_logp(model: Any, rows: list[list[int]], device: str) -> list[np.ndarray[Any, Any]]:
    """ln P of every token behind the BOS id 0, a row at a time, its softmax in float64."""
    out = []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([[0, *row]], device=device)
            logp = torch.log_softmax(model(input_ids=ids[:, :-1], use_cache=False).logits.double(), -1)
            out.append(logp.gather(-1, ids[:, 1:, None]).squeeze().reshape(-1).cpu().numpy())
    return out


def parity(dtype: str, folder: Path, device: str, tokens: int) -> dict[str, Any]:
    """Against torch in float32 on the CPU, and against itself in other company."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    rows = text_rows(tokenizer, min(tokens, 30_000), 511)
    model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()
    want = np.concatenate(torch_logp(model, rows, "cpu"))
    path = export(str(SOURCE), folder / dtype, dtype=dtype, bos="always", max_length=512)  # type: ignore[arg-type]
    with toedit.Prior(path, device=device) as prior:
        together = prior.score(rows)
        alone = [prior.score([row])[0].as_py() for row in rows[:40]]
        turned = prior.score(rows[::-1])
    got = np.concatenate([np.array(r, float) for r in together.field("logp").to_pylist()])
    difference = np.abs(got - want)
    likely = want >= np.log(KEEP)
    return {
        "dtype": dtype,
        "positions": len(want),
        "max_abs_dlogp": float(difference.max()),
        "mean_abs_dlogp": float(difference.mean()),
        "mean_abs_dlogp_where_likely": float(difference[likely].mean()),
        "max_abs_dlogp_where_likely": float(difference[likely].max()),
        "decisions_that_differ": {str(t): int(((got >= np.log(t)) != (want >= np.log(t))).sum()) for t in THRESHOLDS},
        "rows_that_differ_alone": sum(a != b for a, b in zip(alone, together[:40].to_pylist(), strict=True)),
        "rows_that_differ_in_another_order": sum(
            a != b for a, b in zip(turned.to_pylist()[::-1], together.to_pylist(), strict=True)
        ),
    }


def interrupted(path: Path, device: str) -> float:
    """Seconds from Ctrl-C in the middle of scoring to the exception."""
    rows = [[1 + i % 4000 for i in range(500)]] * 4000
    sent = 0.0

    def press() -> None:
        nonlocal sent
        time.sleep(1.5)
        sent = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    with toedit.Prior(path, device=device) as prior:
        prior.score(rows[:1])
        threading.Thread(target=press).start()
        try:
            prior.score(rows)
        except KeyboardInterrupt:
            return time.perf_counter() - sent
    raise SystemExit("gpu-check: scoring was over before Ctrl-C; give it more rows")


def torch_scorer(model: Any, rows: list[list[int]], device: str, budget: int, low: float) -> Callable[[], None]:
    """The same outputs by torch: rows sorted by length in padded batches; ln P of every token, and the top 8 from *low* on."""
    ordered = sorted(rows, key=len, reverse=True)
    batches, start = [], 0
    while start < len(ordered):
        length = len(ordered[start])
        chunk = ordered[start : start + max(1, budget // length)]
        start += len(chunk)
        batches.append(torch.tensor([[0, *row] + [0] * (length - len(row)) for row in chunk]))

    @torch.inference_mode()
    def score() -> None:
        for ids in batches:
            ids = ids.to(device)
            logp = torch.log_softmax(model(input_ids=ids[:, :-1], use_cache=False).logits.float(), -1)
            of_token = logp.gather(-1, ids[:, 1:, None]).squeeze(-1)
            top = logp[of_token >= low].topk(K, -1)
            of_token.cpu(), top.values.cpu(), top.indices.cpu()

    return score


def peak(device: str) -> float:
    """Matrix multiplications of bfloat16 a second, in FLOP/s: the best of several."""
    n = 8192 if device != "cpu" else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        for _ in range(5):
            a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begun) / 5)
    return 2 * n**3 / best


def speed(name: str, folder: Path, device: str, dtype: str, flops: float, tokens: int) -> dict[str, Any]:
    """Tokens a second of a shape with random weights, ours and torch's in turn."""
    import transformers

    kind, settings = SHAPES[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(SOURCE)
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if device != "cpu" else None).eval()
    path = export(model, folder / name, dtype=dtype, tokenizer=tokenizer, bos="always", max_length=512)  # type: ignore[arg-type]
    model = model.to(device)
    rows = text_rows(tokenizer, tokens, 511)
    count = sum(map(len, rows))
    # Random weights are sure of nothing: the threshold is one that about a quarter of the tokens reach, as in bench_models.py.
    low = float(np.quantile(np.concatenate(torch_logp(model, rows[:50], device)), 1 - WANTED))
    with toedit.Prior(path, device=device) as prior:
        peers: dict[str, Callable[[], object]] = {"toedit": lambda: prior.score(rows, k=K, keep=[(float(np.exp(low)), 1.0)])}
        for budget in (4096, 16384, 65536) if device != "cpu" else (2048,):
            scorer = torch_scorer(model, rows, device, budget, low)
            try:
                scorer()
            except torch.cuda.OutOfMemoryError:
                # not kept from ours: the prior has its memory since it was opened
                torch.cuda.empty_cache()
                print(f"gpu-check: {name}: torch has no memory for {budget} tokens at a time", file=sys.stderr)
                continue
            peers[f"torch {budget}"] = scorer
        timings = take_turns(peers, 5)
    mine = timings.pop("toedit")
    best = min(timings.values(), key=lambda t: t.median)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "shape": name,
        "parameters": parameters,
        "tokens": count,
        "torch_tokens_at_a_time": int(best.name.split()[1]),
        "tokens_per_s": {"min": count / max(mine.seconds), "median": count / mine.median, "max": count / mine.least},
        "torch_tokens_per_s": {"median": count / best.median, "max": count / best.least},
        "ratio": {"median": best.median / mine.median, "of minima": best.least / mine.least},
        "share_of_peak": 2 * parameters * count / mine.median / flops,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu tries the script")
    parser.add_argument(
        "--shapes", nargs="*", default=["gpt2-124m", "qwen2-0.5b", "llama-1b", "llama-8b"], choices=list(SHAPES)
    )
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of a timed turn")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the dated result file")
    args = parser.parse_args()
    on_card = args.device != "cpu"
    name = card() if on_card else f"CPU ({platform.machine()})"
    if name is None:
        print(
            "gpu-check: no NVIDIA card is visible (nvidia-smi names none), so nothing of CUDA can be checked here",
            file=sys.stderr,
        )
        return 2
    result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "device": name, "machine": machine()}
    result["versions"] = {"toedit": toedit.__version__, "torch": torch.__version__, "python": platform.python_version()}
    args.out.mkdir(parents=True, exist_ok=True)
    label = "".join(c if c.isalnum() else "-" for c in name.split(",")[0])
    file = args.out / f"{result['date']}-{label}.json"

    def record(key: str, value: object) -> None:
        """Keep what there is: the largest shapes come last, and may not fit the machine or the time."""
        result[key] = value
        file.write_text(json.dumps(result, indent=2) + "\n")

    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dtypes = ("bf16", "fp16") if on_card else ("fp32",)
        record("parity", [parity(dtype, folder, args.device, args.tokens) for dtype in dtypes])
        record("ctrl_c_s", interrupted(folder / dtypes[0], args.device))
        flops = peak(args.device)
        record("matrix_peak_tflops", flops / 1e12)
        speeds: list[dict[str, Any]] = []
        for shape in args.shapes:
            print(f"gpu-check: {shape}", file=sys.stderr)
            try:
                speeds.append(speed(shape, folder, args.device, dtypes[0], flops, args.tokens))
            except Exception as error:
                failed = True
                speeds.append({"shape": shape, "error": f"{type(error).__name__}: {error}"})
            record("speed", speeds)
            shutil.rmtree(folder / shape, ignore_errors=True)
    print(file.read_text(), end="")
    print(f"written to {file}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
