"""Priors for a card, run by ONNX Runtime's own CUDA provider over libraries that stand in for NVIDIA's (card/cudart.c).

That shows what the provider takes for its own and what it refuses, what it launches and how much memory it asks for; no value
is computed. It needs the package onnxruntime-gpu, beside the environment's ONNX Runtime: `make test-card` fetches it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx
from transformers import AutoTokenizer

from card import stand_in
from test_families import CONTEXT, FAMILIES, SOURCE, random_model
from toedit import _chunks
from toedit.export import export

# A folder with the package `onnxruntime` of onnxruntime-gpu in it.
RUNTIME = os.environ.get("TOEDIT_CARD_RUNTIME", "")
pytestmark = pytest.mark.skipif(not RUNTIME, reason="needs onnxruntime-gpu in a folder of its own: make test-card")

# What ONNX Runtime may compute on the CPU: whole numbers that are shapes.
SHAPES = {"Add", "Cast", "Concat", "Div", "Mul", "Reshape", "Squeeze", "Sub"}
WANTED = 5  # positions that the stand-in says are wanted


class Card:
    """The stand-in, and processes that run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = stand_in.build(Path(RUNTIME, "onnxruntime", "capi", "libonnxruntime_providers_cuda.so"), folder)
        path = os.pathsep.join([found["PYTHONPATH"], RUNTIME])
        self.environment = os.environ | found | {"PYTHONPATH": path, "TOEDIT_CARD_COUNT": str(WANTED)}

    def run(self, code: str, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {name: value for name, value in (self.environment | settings).items() if value}
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=200, env=environment)


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return Card(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Path]:
    """Makes a prior of a family for a card; its head is worked in chunks if its vocabulary has *large* ids."""
    known: dict[tuple[str, str, int], Path] = {}

    def make(family: str, dtype: str, large: int = _chunks.LARGE_VOCAB) -> Path:
        if (family, dtype, large) not in known:
            folder = tmp_path_factory.mktemp("priors") / "prior"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_chunks, "LARGE_VOCAB", large)
                tokenizer = AutoTokenizer.from_pretrained(SOURCE)
                model = random_model(family)
                export(model, folder, tokenizer=tokenizer, bos="always", max_length=CONTEXT, dtype=dtype)  # type: ignore[arg-type]
            known[family, dtype, large] = folder
        return known[family, dtype, large]

    return make


ONE_RUN = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
card = {"use_tf32": "1", "sdpa_kernel": "19"}
session = onnxruntime.InferenceSession(
    sys.argv[1] + "/model.onnx", options, providers=[("CUDAExecutionProvider", card), "CPUExecutionProvider"])
ids = np.random.default_rng(0).integers(4096, size=(4, 100))
feeds = {"input_ids": ids, "k": np.array([6]), "keep_low": np.float32([-1, -9]), "keep_high": np.float32([0, -5])}
print([(a.shape, str(a.dtype)) for a in session.run(None, feeds)])
"""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "large"), [("bf16", _chunks.LARGE_VOCAB), ("fp16", 8)])
def test_a_family_runs_on_the_card_and_nowhere_else(
    card: Card, made: Callable[..., Path], tmp_path: Path, family: str, dtype: str, large: int
) -> None:
    """And without cuDNN, which is not in the loader's path."""
    if family == "phimoe":
        pytest.skip("its choice of experts takes cuDNN's largest value, for which there is no stand-in")
    folder = made(family, dtype, large)
    done = card.run(ONE_RUN, folder, TOEDIT_CARD_LOG=str(tmp_path / "log"))
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "E:onnx" in line or "rror" in line]
    shapes = [((4, 99), "float32"), ((WANTED,), "int64"), ((WANTED, 6), "int32"), ((WANTED, 6), "float32")]
    assert done.stdout.strip() == str(shapes)
    # where the nodes of the graph, and of the loop in it, are computed
    placed: dict[str, Counter[str]] = {"CPU": Counter(), "CUDA": Counter()}
    for line in done.stderr.splitlines():
        if found := re.search(r"placed on \[(CPU|CUDA)ExecutionProvider\]", line):
            where = found[1]
        elif found := re.search(r"VerifyEachNodeIsAssignedToAnEp\] +(\w+) \(", line):
            placed[where][found[1]] += 1
    assert placed["CUDA"]["MatMul"] + placed["CUDA"]["Gemm"] >= 9
    assert set(placed["CPU"]) <= SHAPES
    assert "MemcpyToHost" not in placed["CUDA"]  # nothing that the host waits for
    log = (tmp_path / "log").read_text()
    # the head in float32, in tensor cores, and nothing else
    assert (log.count("product float32"), log.count("mode TF32")) == (1, 1)
    assert log.count("product half") >= 8
    settings = json.loads((folder / "prior.json").read_text())
    assert settings["graph"]["tf32"] is True
    if settings["graph"]["attention"] == "com.microsoft.GroupQueryAttention":
        # flash attention, one kernel for each layer; where there are few heads, it splits the keys
        assert len(re.findall(r"flash_fwd_(?:splitkv_)?kernel", log)) == placed["CUDA"]["GroupQueryAttention"] == 2
    assert "TopK" in log
    if family != "bloom":  # whose activation is a function of its own
        assert "OP_Pow" not in log
    # to the host: the outputs, how many positions are wanted, and whether the loop goes on
    assert log.count("to_host") == (6 if large == 8 else 5)


SCORE = """
import json, sys, warnings, toedit
warnings.simplefilter("always")
prior = toedit.Prior(sys.argv[1], **json.loads(sys.argv[2]))
rows = [[7] * n for n in (3, 60, 70, 199, 199, 150)] * 5
scores = prior.score(rows, k=4, keep=[(0.5, 1.0)])
print(json.dumps({"lengths": [len(row) for row in scores.field("logp")], **prior.stats()}))
"""


def scored(card: Card, folder: Path, options: dict[str, Any] | None = None, **settings: str) -> tuple[dict[str, Any], str]:
    done = card.run(SCORE, folder, json.dumps(options or {}), **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_prior_scores(card: Card, made: Callable[..., Path], tmp_path: Path) -> None:
    """By way of Go: all rows come back, three buckets are a run each, and memory is about as the folder says."""
    for folder in (made("llama3", "bf16"), made("gpt2", "fp16", 8)):
        log = tmp_path / folder.parent.name
        got, said = scored(card, folder, TOEDIT_CARD_LOG=str(log))
        memory = json.loads((folder / "prior.json").read_text())["memory"]
        rows, length = 16384 // CONTEXT, CONTEXT
        most = memory["fixed"] + rows * length * (memory["position"] + length * memory["pair"])
        highest = max(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("memory "))
        assert most / 10 < highest < most + (folder / "model.onnx").stat().st_size + (16 << 20)
        assert got.pop("lengths") == [3, 60, 70, 199, 199, 150] * 5
        assert (got["runs"], got["halved"], got["waited"]) == (3, 0, 0)
        assert said == ""


def test_several_cards(card: Card, made: Callable[..., Path]) -> None:
    assert scored(card, made("llama3", "bf16"), {"device": "cuda:1"}, TOEDIT_CARDS="2")[0]["runs"] == 3


def test_a_card_with_little_memory_makes_smaller_runs(card: Card, made: Callable[..., Path]) -> None:
    whole, _ = scored(card, made("llama3", "bf16"))
    short, said = scored(card, made("llama3", "bf16"), TOEDIT_CARD_MEMORY=str(200 << 20))
    assert short["lengths"] == whole["lengths"]
    assert short["halved"] > 0
    assert short["runs"] >= whole["runs"]
    assert "MemoryWarning: there was no memory for a run of the model" in said
    assert "the same but for rounding" in said
    limited, said = scored(card, made("llama3", "bf16"), {"memory_limit": 100 << 20}, TOEDIT_CARD_MEMORY=str(400 << 20))
    assert (limited["halved"], said) == (0, "")
    done = card.run(SCORE, made("llama3", "bf16"), "{}", TOEDIT_CARD_MEMORY=str(2 << 20))
    assert done.returncode == 1
    assert "cuda:0" in done.stderr.splitlines()[-1] or "cannot open model.onnx" in done.stderr.splitlines()[-1]
    assert "emory" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"LD_LIBRARY_PATH": ""}, {}, "libcuda.so.1: cannot open .* the NVIDIA driver is missing"),
        ({"TOEDIT_CARDS": "0"}, {}, "the NVIDIA driver is missing or too old, or no card is visible"),
        ({}, {"device": "cuda:1"}, "ONNX Runtime cannot use cuda:1: .* there is no such card"),
        ({}, {"device": "cpu"}, r"was exported for CUDA \(bf16\) and cannot run on the CPU"),
    ],
)
def test_what_is_missing_is_named(
    card: Card, made: Callable[..., Path], settings: dict[str, str], options: dict[str, str], message: str
) -> None:
    done = card.run(SCORE, made("llama3", "bf16"), json.dumps(options), **settings)
    assert done.returncode == 1
    assert re.search(message, done.stderr.splitlines()[-1])


def test_ctrl_c_in_the_middle_of_scoring(card: Card, made: Callable[..., Path]) -> None:
    """The provider's library takes no signal from Go and Python."""
    code = """
import sys, toedit
prior = toedit.Prior(sys.argv[1])
prior.score([[7] * 50])
print("scoring", flush=True)
while True:
    prior.score([[7] * 190] * 500)
"""
    command = [sys.executable, "-c", code, str(made("llama3", "bf16"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=card.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "scoring\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said.splitlines()[-1] == "KeyboardInterrupt"


def test_the_check_of_an_export_and_a_prior_in_one_process(card: Card, made: Callable[..., Path]) -> None:
    """Python's session and the library's load one provider. (torch would load the real runtime: it is not in that process.)"""
    code = """
import sys, pathlib, toedit
from toedit import _export_check
check = _export_check._Graph(pathlib.Path(sys.argv[1], "model.onnx"), {"use_tf32": "1", "sdpa_kernel": "19"}, 200)
prior = toedit.Prior(sys.argv[1])
for _ in range(2):
    print(check([[5, 6, 7], [8] * 150], 0)[0].shape, len(prior.score([[5, 6, 7]])[0]["logp"]))
"""
    done = card.run(code, made("llama3", "bf16"))
    assert (done.returncode, done.stdout) == (0, "(2, 152) 3\n" * 2), done.stderr
    done = card.run(code, made("llama3", "bf16"), TOEDIT_CARDS="0")
    assert done.returncode == 1
    assert "PriorError: ONNX Runtime" in done.stderr


def test_an_operator_that_needs_cudnn(card: Card, made: Callable[..., Path], tmp_path: Path) -> None:
    """None of ours does; in a graph that has one, cuDNN is looked for in the first run, and named with the way out."""
    folder = tmp_path / "prior"
    shutil.copytree(made("llama3", "bf16"), folder)
    proto = onnx.load(folder / "model.onnx")
    first = next(i for i, node in enumerate(proto.graph.node) if "context" in node.output)
    proto.graph.node[first].output[0] = "before"
    node, axis = onnx.helper.make_node, onnx.numpy_helper.from_array(np.array([1]), "axis_of_positions")
    proto.graph.initializer.append(axis)
    for offset, added in enumerate(
        [
            node("Cast", ["before"], ["before.int32"], to=onnx.TensorProto.INT32),
            node("ReduceMax", ["before.int32", axis.name], ["largest.int32"], keepdims=1),
            node("Cast", ["largest.int32"], ["largest"], to=onnx.TensorProto.INT64),
            node("Min", ["before", "largest"], ["context"]),
        ]
    ):
        proto.graph.node.insert(first + 1 + offset, added)
    model = proto.SerializeToString()
    (folder / "model.onnx").write_bytes(model)
    settings = json.loads((folder / "prior.json").read_text())
    settings["files"]["model.onnx"] = {"sha256": hashlib.sha256(model).hexdigest(), "size": len(model)}
    (folder / "prior.json").write_text(json.dumps(settings))
    # toedit would find the environment's cuDNN, which knows that there is no card; the others are in the loader's path
    done = card.run("import toedit._cuda\ntoedit._cuda.preload = lambda library: []\n" + SCORE, folder, "{}")
    assert done.returncode == 1
    assert re.search("MissingDependencyError: .*cuDNN is unavailable.*pip install nvidia-cudnn-cu13", done.stderr)
