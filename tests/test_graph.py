"""The graph of a prior: its head in chunks, one fused attention a layer, in blocks for long rows, every weight once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip(
    "onnxruntime", exc_type=ImportError, reason="running graphs needs onnxruntime, which cannot be imported here"
)

import onnx
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, PhiConfig, Qwen2Config

from toedit import _blocks, _chunks, _graph, _int8
from toedit.export import FP32_TOLERANCE, _quiet

VOCAB = _chunks.LARGE_VOCAB
ROW = 4 * VOCAB
LAYERS = 2
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 640,
    # the beginnings that transformers gives leave ln P all alike
    "initializer_range": 0.2,
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    # heads of 12 are not for GroupQueryAttention
    "llama with Attention": LlamaConfig(**{**SMALL, "hidden_size": 48}, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=False),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_positions=640, n_embd=64, n_layer=LAYERS, n_head=4, initializer_range=0.2),
    # soft caps behind the output embedding, and a bias there
    "gemma2": Gemma2Config(
        **SMALL,
        head_dim=16,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        sliding_window=90,
    ),
    "mistral": MistralConfig(**SMALL, sliding_window=70),
    "phi": PhiConfig(**{**SMALL, "num_key_value_heads": 4}),
}

Outputs = list[npt.NDArray[Any]]
_made: dict[str, tuple[Any, bytes]] = {}


def traced(name: str) -> tuple[Any, bytes]:
    """The model and its graph with logits, made once."""
    if name not in _made:
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(CONFIGS[name]).float().eval()
        with torch.no_grad():  # biases begin as zeros, which would hide one that is lost
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
        with _quiet():
            _made[name] = model, _graph.trace(model).proto().SerializeToString()
    return _made[name]


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    _made.clear()


def packed(name: str) -> _graph.Graph:
    return _graph.pack_attention(_graph.Graph(onnx.load_from_string(traced(name)[1])))


def graph_of(
    name: str, dtype: str, logits_bytes: int = 8 * ROW, part_bytes: int | None = 3 * ROW, *, blocks: bool = True
) -> _graph.Graph:
    graph = packed(name)
    if dtype == "int8":
        graph = _int8.to_int8(graph)
    graph = _graph.add_outputs(graph, logits_bytes=logits_bytes, part_bytes=part_bytes)
    return _blocks.cut(graph) if blocks else graph


def open_graph(graph: _graph.Graph, threads: int = 1, disabled: Sequence[str] = ()) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.proto().SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )


def run(session: onnxruntime.InferenceSession, ids: npt.NDArray[np.int64], k: int = 5, low: float = -10.5) -> Outputs:
    feeds = {"input_ids": ids, "k": np.array([k]), "keep_low": np.float32([low]), "keep_high": np.float32([0])}
    return list(session.run(None, feeds))


def of_row(outputs: Outputs, index: int, length: int) -> list[bytes]:
    logp, where, ids, top = outputs
    start = index * logp.shape[1]
    inside = (where >= start) & (where < start + length - 1)
    return [a.tobytes() for a in (logp[index, : length - 1], where[inside] - start, ids[inside], top[inside])]


# The head in chunks


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "gpt2"])
def test_chunks_answer_as_the_whole_does(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = graph_of(name, dtype)
    monkeypatch.setattr(_chunks, "LARGE_VOCAB", VOCAB + 1)
    whole = graph_of(name, dtype)
    assert (_graph.chunked(chunks), _graph.chunked(whole)) == (True, False)
    # That one puts the division of a soft cap into the product, where the two are in one graph: another rounding.
    sessions = [open_graph(graph, disabled=["MatMulScaleFusion"]) for graph in (chunks, whole)]
    rng = np.random.default_rng(0)
    wanted = 0
    for shape in [(1, 2), (1, 3), (2, 2), (3, 4), (1, 9), (1, 10), (2, 12), (3, 40), (7, 8), (1, 200)]:
        ids = rng.integers(VOCAB, size=shape)
        got, want = (run(session, ids) for session in sessions)
        for mine, theirs in zip(got, want, strict=True):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            assert mine.tobytes() == theirs.tobytes(), shape
        wanted += len(got[1])
    assert 50 < wanted < 550  # of 580
    nothing = run(sessions[0], ids, k=7, low=1.0)
    assert [out.shape for out in nothing] == [(1, 199), (0,), (0, 7), (0, 7)]


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["llama", "llama with Attention", "gpt2"])
def test_same_bits_in_any_chunk_and_company(name: str, dtype: str) -> None:
    operator = {"llama with Attention": "Attention"}.get(name, "com.microsoft.GroupQueryAttention")
    graph = graph_of(name, dtype)
    assert _graph.attention_of(graph) == operator
    # chunks of 8 rows in parts of 3, of 24 in no parts, and one chunk in parts of one row; one thread and two
    ways = ((8, 3, 1), (24, None, 2), (800, 1, 1))
    sessions = [open_graph(graph_of(name, dtype, n * ROW, part and part * ROW), t) for n, part, t in ways]
    rng = np.random.default_rng(1)
    rows = [rng.integers(VOCAB, size=n) for n in (2, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 25, 33, 65, 100)]
    alone = [of_row(run(sessions[0], row[None]), 0, len(row)) for row in rows]
    seen = 0
    while seen < 200:
        choice = rng.integers(len(rows), size=rng.integers(1, 7))
        width = max(len(rows[i]) for i in choice) + int(rng.choice([0, 0, 1, 2, 7, 30]))
        batch = np.full((len(choice), width), rng.integers(VOCAB))
        for target, i in zip(batch, choice, strict=True):
            target[: len(rows[i])] = rows[i]
        outputs = run(sessions[rng.integers(3)], batch)
        for index, i in enumerate(choice):
            assert of_row(outputs, index, len(rows[i])) == alone[i], (len(rows[i]), batch.shape)
            seen += 1


def test_a_head_that_is_not_known_stays_whole() -> None:
    graph = packed("llama")
    last = next(n for n in graph.nodes if "logits" in n.output)
    last.output[0] = "before"
    graph.nodes.append(graph.node("Softmax", ["before"], ["logits"], axis=1))
    graph.index()
    assert not _graph.chunked(_graph.add_outputs(graph))


def test_a_small_vocabulary_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "LARGE_VOCAB", VOCAB + 1)
    assert not _graph.chunked(graph_of("llama", "fp32"))


_PEAK = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
ids = np.random.default_rng(0).integers(151_936, size=(16, 513))
band = {"keep_low": np.float32([-12]), "keep_high": np.float32([0])}
logp = session.run(None, {"input_ids": ids, "k": np.array([8]), **band})[0]
assert logp.shape == (16, 512) and np.isfinite(logp).all()
# not getrusage, whose largest is that of the process which this one was forked from
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_8192_tokens_with_a_large_vocabulary_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SMALL, "vocab_size": 151_936, "num_hidden_layers": 1, "max_position_embeddings": 512})
    config.tie_word_embeddings = True
    with _quiet():
        graph = _graph.add_outputs(_graph.pack_attention(_graph.trace(AutoModelForCausalLM.from_config(config).eval())))
    (tmp_path / "model.onnx").write_bytes(graph.proto().SerializeToString())
    weights = (tmp_path / "model.onnx").stat().st_size
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "model.onnx")]
    kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout)
    assert 4 * 8192 * 151_936 > 4 << 30, "logits that would not fit"
    assert kilobytes * 1024 < weights + 10**9


# Weights and nodes


def stored(graph: _graph.Graph) -> int:
    return sum(value.nbytes for value in graph.weights.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_every_weight_is_stored_once(name: str) -> None:
    model, _ = traced(name)
    parameters = sum(p.numel() for p in model.parameters())
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert model.config.tie_word_embeddings == (name != "qwen2")
    # beside the parameters: tables of rotary frequencies, shapes and axes
    assert 4 * parameters <= stored(graph_of(name, "fp32")) < 4 * parameters + 10_000
    # int8: a float32 scale for every column, and for every row of a table
    tables = VOCAB * (2 if name == "qwen2" else 1)
    expected = parameters + 3 * vectors + 4 * tables
    assert expected <= stored(graph_of(name, "int8")) < expected + 20_000


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_one_attention_node_a_layer_and_no_logits(name: str, dtype: str) -> None:
    proto = graph_of(name, dtype).proto()
    count = Counter(n.op_type for n in _graph._all_nodes(proto.graph.node))
    # one for a run of short rows, or one for each block of a long one
    assert (count["If"], count["GroupQueryAttention"], count["Split"]) == (LAYERS, LAYERS * (1 + _blocks.BLOCKS), LAYERS)
    assert not {"Attention", "Softmax", "RotaryEmbedding"} & set(count)
    products = count["MatMul"] + count["Gemm"] + count["MatMulIntegerToFloat"]
    # queries, keys and values in one; what comes out of the attention; gate and up and down, or two in a GPT-2; the head
    assert products == LAYERS * (4 if name == "gpt2" else 5) + 1
    if dtype == "int8":
        assert count["MatMulIntegerToFloat"] == products
    assert [o.name for o in proto.graph.output] == ["logp", "topk_row", "topk_ids", "topk_logp"]
    assert all(len(o.type.tensor_type.shape.dim) <= 2 for o in proto.graph.output)
    for node in _graph._all_nodes(proto.graph.node):
        assert not node.doc_string
        assert not node.metadata_props


@pytest.mark.parametrize("name", list(CONFIGS))
def test_chunked_graphs_are_torch(name: str) -> None:
    model, _ = traced(name)
    ids = np.random.default_rng(5).integers(VOCAB, size=(3, 61))
    with torch.inference_mode():
        log_p = torch.log_softmax(model(input_ids=torch.tensor(ids[:, :-1])).logits.double(), -1)
    want = log_p.gather(-1, torch.tensor(ids[:, 1:, None])).squeeze(-1).numpy()
    logp, where, top_ids, top = run(open_graph(graph_of(name, "fp32")), ids, low=-99)
    assert np.abs(logp - want).max() <= FP32_TOLERANCE
    assert where.tolist() == list(range(180))
    best, best_ids = log_p.flatten(0, 1).topk(5, -1)
    np.testing.assert_allclose(top, best.numpy(), rtol=2**-11, atol=FP32_TOLERANCE)
    assert (top_ids == best_ids.numpy()).mean() > 0.99
    whole_row = np.random.default_rng(6).integers(VOCAB, size=(1, 350))
    with torch.inference_mode():
        log_p = torch.log_softmax(model(input_ids=torch.tensor(whole_row[:, :-1])).logits.double(), -1)
    long = log_p.gather(-1, torch.tensor(whole_row[:, 1:, None])).squeeze(-1).numpy()
    assert np.abs(run(open_graph(graph_of(name, "fp32")), whole_row)[0] - long).max() <= FP32_TOLERANCE
    int8 = run(open_graph(graph_of(name, "int8")), ids)[0]
    spread = want.std()
    assert 0 < np.abs(int8 - want).mean() < 0.1 * spread


def test_int8_products_do_not_saturate() -> None:
    """Processors without VNNI add pairs of products in 16 bits: the largest that the format holds must come out whole."""
    rng = np.random.default_rng(7)
    depth, width = 768, 24
    x = np.ones((6, depth), dtype=np.float32)
    weight = np.ones((depth, width), dtype=np.float32)
    weight[:, 8:16] = -1
    x[1], x[2, ::2], x[3, depth // 2 :] = -1, -1, 0
    # pairs of neighbours with the largest sum, at random places
    x[4:] = np.repeat(rng.choice([-1, 0.5, 1], size=(2, depth // 2)), 2, axis=1)
    weight[:, 16:] = np.repeat(rng.choice([-1, 1], size=(depth // 2, 8)), 2, axis=0)
    helper, tensor = onnx.helper, onnx.TensorProto
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "weight"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", tensor.FLOAT, ["rows", depth])],
            [helper.make_tensor_value_info("y", tensor.FLOAT, ["rows", width])],
            [onnx.numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    (y,) = open_graph(_int8.to_int8(_graph.Graph(proto))).run(None, {"x": x})
    rows = np.rint(127 * x.astype(np.float64)).astype(np.int64)
    columns = np.int64(_int8.WEIGHT_LIMIT) * weight.astype(np.int64)
    np.testing.assert_allclose(y, rows @ columns / (127 * _int8.WEIGHT_LIMIT), rtol=1e-6, atol=1e-3)


# Attention in blocks


def kernels(graph: _graph.Graph, shape: tuple[int, int]) -> Counter[str]:
    """How often each operator runs for a batch, by ONNX Runtime's own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(graph.proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
        run(session, np.zeros(shape, dtype=np.int64))
        events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(e["args"]["op_name"] for e in events if e["name"].endswith("kernel_time"))


def test_long_rows_alone_are_cut() -> None:
    graph = graph_of("llama", "fp32")
    longest = _blocks.LONGEST_WHOLE
    for shape, blocks in [((1, longest + 1), 1), ((1, longest + 2), _blocks.BLOCKS), ((2, longest + 2), 1)]:
        assert kernels(graph, shape)["GroupQueryAttention"] == blocks * LAYERS, shape
    assert (_blocks.are_in(graph), _blocks.are_in(graph_of("llama", "fp32", blocks=False))) == (True, False)
    other = graph_of("llama with Attention", "fp32")
    assert not _blocks.are_in(other)
    assert kernels(other, (1, longest + 2))["Attention"] == LAYERS


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma2", "mistral", "phi"])
def test_blocks_change_no_bit(name: str, dtype: str) -> None:
    graph = graph_of(name, dtype)
    assert _blocks.are_in(graph)
    blocks, threads, whole = open_graph(graph), open_graph(graph, 2), open_graph(graph_of(name, dtype, blocks=False))
    rng = np.random.default_rng(2)
    cut = [_blocks.LONGEST_WHOLE + n for n in (2, 3, 4, 5, 9)] + [300, 321, 415, 513, 601, 640]
    for length in [2, 9, 33, 200, _blocks.LONGEST_WHOLE + 1, *cut]:
        ids = rng.integers(VOCAB, size=(1, length))
        want = [out.tobytes() for out in run(whole, ids)]
        for session in (blocks, threads):
            assert [out.tobytes() for out in run(session, ids)] == want, length
    # a row that is whole by itself, padded to lengths at which it is cut, and beside another, where none is
    for length in (20, 100, 200, 250):
        row = rng.integers(VOCAB, size=length)
        alone = of_row(run(blocks, row[None]), 0, length)
        for width, neighbours in ((300, 0), (417, 0), (513, 0), (300, 1)):
            batch = rng.integers(VOCAB, size=(1 + neighbours, width))
            batch[0, :length] = row
            assert of_row(run(blocks, batch), 0, length) == alone, (length, width, neighbours)
