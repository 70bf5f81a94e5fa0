"""Every family of causal language models converts exactly: random weights, through the whole of `toedit export` and `Prior`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toedit

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime", exc_type=ImportError, reason="exporting needs onnxruntime, which cannot be imported here")

import onnx
import onnxruntime
import torch
import transformers
from transformers import AutoTokenizer

from toedit import _card, _chunks, _graph
from toedit.export import FP32_TOLERANCE, export

pytestmark = pytest.mark.usefixtures("traced_once")

SOURCE = Path(__file__).parents[1] / "python" / "prior"
VOCABULARY, CONTEXT, WINDOW = 4096, 200, 24

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def config(kind: str, without: tuple[str, ...] = (), **settings: Any) -> Any:
    shape = {name: value for name, value in _SHAPE.items() if name not in without}
    return getattr(transformers, kind)(**(shape | settings))


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_FUSED = "com.microsoft.GroupQueryAttention"

FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT),
    "llama3": lambda: config("LlamaConfig", rope_parameters=_LLAMA3),
    "mistral": lambda: config("MistralConfig", sliding_window=WINDOW),
    "qwen2": lambda: config("Qwen2Config"),
    "qwen3": lambda: config("Qwen3Config", head_dim=16),
    "olmo": lambda: config("OlmoConfig"),
    "olmo2": lambda: config("Olmo2Config"),
    "gemma2": lambda: config("Gemma2Config", head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16),
    # heads as wide as the real ones: below about 64 positions their kernel rounds otherwise
    "gemma2-wide": lambda: config("Gemma2Config", head_dim=256, sliding_window=WINDOW, query_pre_attn_scalar=256),
    "gemma3": lambda: config(
        "Gemma3TextConfig",
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": lambda: config("PhiConfig"),
    "gpt-neox": lambda: config("GPTNeoXConfig", ("num_key_value_heads",)),
    "opt": lambda: config("OPTConfig", ("num_key_value_heads", "intermediate_size"), ffn_dim=96, word_embed_proj_dim=64),
    "smollm3": lambda: config("SmolLM3Config"),
    "starcoder2": lambda: config("Starcoder2Config", sliding_window=WINDOW),
    "falcon": lambda: config("FalconConfig", ("num_key_value_heads", "intermediate_size"), alibi=False, multi_query=True),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4),
    "gpt-j": lambda: transformers.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT, rotary_dim=8
    ),
    "mixtral": lambda: config("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": lambda: config("Qwen3MoeConfig", head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48),
    # experts with biases, their matrices transposed; attention with sinks
    "gpt-oss": lambda: config(
        "GptOssConfig", head_dim=16, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2, rope_parameters=_PLAIN
    ),
    # experts chosen one after the other
    "phimoe": lambda: config("PhimoeConfig", num_local_experts=4, num_experts_per_tok=2),
}
# Those that attend in their own way.
DECOMPOSED = {"falcon", "bloom"}
MIXTURES = {"mixtral", "qwen3-moe", "gpt-oss", "phimoe"}


def random_model(family: str) -> Any:
    """Weights large enough that attention, soft caps and windows matter."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model


def torch_logp(model: Any, row: list[int]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        logp = torch.log_softmax(model(input_ids=torch.tensor([[0, *row[:-1]]])).logits[0].double(), -1)
    return logp[torch.arange(len(row)), torch.tensor(row)].numpy()


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_converts(family: str, dtype: Any, tmp_path: Path) -> None:
    """Exactly in fp32; in int8 nearly, and a row's scores are its own too."""
    model = random_model(family)
    said: list[str] = []
    folder = export(
        model,
        tmp_path / family,
        tokenizer=AutoTokenizer.from_pretrained(SOURCE),
        bos="always",
        max_length=CONTEXT,
        dtype=dtype,
        progress=said.append,
    )
    settings = json.loads((folder / "prior.json").read_text())
    assert settings["graph"]["attention"] == ("decomposed" if family in DECOMPOSED else _FUSED)
    assert any("attention is the model's own" in line for line in said) == (family in DECOMPOSED)
    assert not any("every expert is computed" in line for line in said)
    assert settings["graph"].get("min_positions", 0) == (72 if family == "gemma2-wide" else 0)

    graph = onnx.load(folder / "model.onnx").graph
    weights = {i.name: i.data_type for i in graph.initializer}
    turned = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Gather", "Transpose")}
    products = [n.input[1] for n in graph.node if n.op_type in ("Gemm", "MatMul")]
    in_float = [name for name in products if weights.get(turned.get(name, name)) == onnx.TensorProto.FLOAT]
    # in int8 only the choice of experts, in each of two layers
    assert len(in_float) == 2 * (family in MIXTURES) if dtype == "int8" else len(in_float) > 8

    rng = np.random.default_rng(5)
    rows = [rng.integers(1, VOCABULARY, size=n).tolist() for n in (1, 2, 7, 8, 9, 31, 63, 64, 65, 128, 150, CONTEXT)]
    with toedit.Prior(folder, threads=2) as prior:
        together = prior.score(rows, keep=[(0.0, 1.0)], k=4)
        got = np.concatenate([np.array(row["logp"].as_py(), float) for row in together])
        want = np.concatenate([torch_logp(model, row) for row in rows])
        if dtype == "fp32":
            np.testing.assert_allclose(got, want, atol=FP32_TOLERANCE, rtol=0)
        else:
            assert 0 < np.abs(got - want).mean() < 0.15 * want.std()
        for n, row in enumerate(rows):
            assert prior.score([row], keep=[(0.0, 1.0)], k=4)[0].as_py() == together[n].as_py()  # the same bits
        some = rng.permutation(len(rows))[:6]
        assert prior.score([rows[i] for i in some], keep=[(0.0, 1.0)], k=4).to_pylist() == [
            together[int(i)].as_py() for i in some
        ]


def test_windows_and_caps_matter_to_the_rows_above() -> None:
    """The test above would pass without them if the models paid them no heed."""
    row = np.random.default_rng(5).integers(1, VOCABULARY, size=150).tolist()
    for family, change in (
        ("mistral", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma3", {"sliding_window": 200}),
        ("llama3", {"rope_parameters": _PLAIN}),
    ):
        model = random_model(family)
        other = transformers.AutoModelForCausalLM.from_config(type(model.config)(**(model.config.to_dict() | change))).eval()
        other.load_state_dict(model.state_dict())
        assert np.abs(torch_logp(model, row) - torch_logp(other, row)).max() > 10 * FP32_TOLERANCE, (family, change)


def test_what_does_not_convert_says_what_does(tmp_path: Path) -> None:
    alibi = config("FalconConfig", ("num_key_value_heads", "intermediate_size"), alibi=True, multi_query=False)
    model = transformers.AutoModelForCausalLM.from_config(alibi).eval()
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    with pytest.raises(toedit.PriorError, match=r"export with graph=False \(--no-graph\) and score with toedit\.torch\.score"):
        export(model, tmp_path / "prior", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []
    folder = export(model, tmp_path / "prior", tokenizer=tokenizer, graph=False, max_length=CONTEXT)
    prior = toedit.Prior(folder)
    assert prior.describe()["device"] == "elsewhere"
    assert prior.describe()["vocab_size"] == VOCABULARY
    with pytest.raises(toedit.PriorError, match=r"has no graph .*toedit\.torch\.score"):
        prior.score([[1, 2]])
    again = export(model, tmp_path / "again", tokenizer=tokenizer, graph=False, max_length=CONTEXT)
    assert toedit.Prior(again).fingerprint == prior.fingerprint
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    other = export(model, tmp_path / "other", tokenizer=tokenizer, graph=False, max_length=CONTEXT)
    assert toedit.Prior(other).fingerprint != prior.fingerprint


def widened(path: Path) -> bytes:
    """The graph of a bfloat16 prior with float32 in the place of bfloat16, which the CPU can run: rounded weights, no more."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in _graph._all_nodes(proto.graph.node):
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == onnx.TensorProto.BFLOAT16:
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.t.data_type == onnx.TensorProto.BFLOAT16:
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(attribute.t).astype(np.float32)))
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("family", "large"),
    [
        (f, 8)
        for f in ("gpt2", "llama3", "qwen2", "qwen3", "olmo2", "gemma2", "phi", "opt", "falcon", "mixtral", "gpt-oss", "phimoe")
    ]
    + [(f, _chunks.LARGE_VOCAB) for f in ("gpt2", "gemma2")],
)
def test_the_graph_for_a_card_says_what_torch_does(
    family: str, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chunks, "LARGE_VOCAB", large)
    monkeypatch.setattr(_card, "LOGITS_BYTES", 48 * 4 * VOCABULARY)  # several chunks
    model = random_model(family)
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    folder = export(model, tmp_path / "prior", tokenizer=tokenizer, bos="always", max_length=CONTEXT, dtype="bf16")
    graph = _graph.Graph(onnx.load(folder / "model.onnx"))
    types = _card._element_types(graph)
    turned = [types[node.input[0]] for node in graph.nodes if node.op_type in ("Cos", "Sin")]
    assert set(turned) == ({onnx.TensorProto.FLOAT} if family not in ("gpt2", "opt") else set())  # bfloat16 has no position 257
    in_half = [n.op_type for n in graph.nodes if n.input and types.get(n.input[0]) == onnx.TensorProto.BFLOAT16]
    assert not {"ArgMax", "Clip", "ReduceMax", "TopK"} & set(in_half)  # for which a card has no kernel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(widened(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    ids = np.random.default_rng(7).integers(VOCABULARY, size=(3, 60))
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(input_ids=torch.tensor(ids[:, :-1])).logits.double(), -1).numpy()
    want = np.take_along_axis(logprobs, ids[:, 1:, None], 2)[..., 0]
    low, high = np.float32([-3, -6, -9]), np.float32([0, -4, -7])
    outputs = session.run(None, {"input_ids": ids, "k": np.array([6]), "keep_low": low, "keep_high": high})
    logp, where, topk_ids, topk_logp = map(np.asarray, outputs)
    # GPT-OSS's activation has a factor of 1.702, which is rounded as the weights are
    np.testing.assert_allclose(logp, want, atol=2e-3 if family == "gpt-oss" else 2e-4, rtol=0)
    wanted = ((logp[..., None] >= low) & (logp[..., None] <= high)).any(-1)
    assert 10 < wanted.sum() < wanted.size - 10
    np.testing.assert_array_equal(where, np.flatnonzero(wanted))
    of_wanted = logprobs[wanted]
    np.testing.assert_allclose(topk_logp, -np.sort(-of_wanted, axis=1)[:, :6], atol=1e-2, rtol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(of_wanted, topk_ids.astype(np.int64), 1), topk_logp, atol=1e-2, rtol=1e-3)
