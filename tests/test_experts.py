"""Mixtures of experts: each computes the tokens that chose it, whatever else is run with them, in int8 too."""

from __future__ import annotations

import collections
import copy
import importlib
import json
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

from toedit import _experts, _export_check, _graph
from toedit.export import FP32_TOLERANCE, export

export_module = importlib.import_module("toedit.export")  # its function has its name in the package

SOURCE = Path(__file__).parents[1] / "python" / "prior"
VOCABULARY, CONTEXT, LAYERS, EXPERTS, CHOSEN = 4096, 128, 2, 16, 2
# As large as no other: ONNX Runtime's profile tells an expert's products by it.
INNER = 40


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=INNER,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return network


def exported(network: Any, path: Path, **settings: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    settings = {"tokenizer": tokenizer, "bos": "always", "max_length": CONTEXT, "progress": said.append} | settings
    return export(network, path, **settings), said


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("experts")
    return {dtype: exported(model, path / dtype, dtype=dtype)[0] for dtype in ("fp32", "int8")}


def session_of(folder: Path, *, packed: bool = True, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.disable_prepacking", str(int(not packed)))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def logp(session: onnxruntime.InferenceSession, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    keep = {"keep_low": np.array([-np.inf], np.float32), "keep_high": np.zeros(1, np.float32)}
    return np.asarray(session.run(["logp"], {"input_ids": ids, "k": np.array([1]), **keep})[0])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_no_bit_of_a_row_hangs_on_what_its_experts_compute_beside_it(
    folders: dict[str, Path], dtype: str, packed: bool
) -> None:
    """Alone, a row of eight tokens has experts with one token or none. With matrices that are not packed beforehand ONNX
    Runtime has another kernel for one row, which rounds in another order."""
    session = session_of(folders[dtype], packed=packed)
    rows = np.random.default_rng(1).integers(VOCABULARY, size=(24, 9))
    together = logp(session, rows)
    for n, row in enumerate(rows):
        assert logp(session, row[None]).tobytes() == together[n].tobytes()
    for some in (slice(3, 5), slice(None, None, -1), slice(0, 24, 3)):
        assert logp(session, rows[some]).tobytes() == together[some].tobytes()


def test_an_expert_computes_the_tokens_that_chose_it(model: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    ids = np.random.default_rng(2).integers(VOCABULARY, size=(2, 33))
    chosen: list[Any] = []
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, inputs: chosen.append(inputs[1].numpy()))
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(ids[:, :-1])).logits.double()
    for hook in hooks:
        hook.remove()
    session = session_of(folders["fp32"], profile=tmp_path / "run")
    want = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids[:, 1:, None])).squeeze(-1).numpy()
    np.testing.assert_allclose(logp(session, ids), want, atol=FP32_TOLERANCE, rtol=0)
    rows: dict[int, list[int]] = {2 * INNER: [], INNER: []}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        for shape in event.get("args", {}).get("output_type_shape", []):
            (dims,) = shape.values()
            if event["args"]["op_name"] in ("Gemm", "MatMul", "FusedGemm") and dims[-1] == 2 * INNER:
                rows[2 * INNER].append(dims[0])
        for shape in event.get("args", {}).get("input_type_shape", [])[:1]:
            (dims,) = shape.values()
            if event["args"]["op_name"] in ("Gemm", "MatMul", "FusedGemm") and dims[-1] == INNER:
                rows[INNER].append(dims[0])
    # one more for each expert, of which nothing is kept
    counted = [np.bincount(layer.ravel(), minlength=EXPERTS) + 1 for layer in chosen]
    for got in rows.values():
        assert sorted(got) == sorted(np.concatenate(counted).tolist())


def test_experts_are_stored_in_int8_and_the_choice_of_them_is_not(folders: dict[str, Path]) -> None:
    graph = onnx.load(folders["int8"] / "model.onnx").graph
    kinds = {i.name: (i.data_type, tuple(i.dims)) for i in graph.initializer}
    in_int8 = collections.Counter(
        kinds[node.input[1]] for node in graph.node if node.op_type == "MatMulIntegerToFloat" and node.input[1] in kinds
    )
    for shape in ((64, 2 * INNER), (INNER, 64)):
        assert in_int8[onnx.TensorProto.INT8, shape] == LAYERS * EXPERTS
    in_float = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(in_float) == LAYERS  # which experts a token chooses
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) < LAYERS * (EXPERTS + 4) + 2  # the inner ones' own
    least, most = (sum(f.stat().st_size for f in folders[d].glob("model.onnx*")) for d in ("int8", "fp32"))
    assert least < 0.4 * most


def test_an_expert_s_matrices_are_views_of_the_model_s(model: Any) -> None:
    graph = _graph.trace(model)
    assert not any(node.domain == "toedit" for node in graph.nodes)
    parts = [value for name, value in graph.weights.items() if ".experts." in name and value.ndim == 2]
    assert len(parts) == 2 * LAYERS * EXPERTS
    held = [parameter.detach().numpy() for name, parameter in model.named_parameters() if ".experts." in name]
    assert all(any(np.shares_memory(part, whole) for whole in held) for part in parts)  # no copies


def test_experts_that_cannot_choose_compute_all(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("a choice")

    monkeypatch.setattr(_experts, "of_chosen", refuse)
    folder, said = exported(model, tmp_path / "prior", dtype="fp32")
    assert any("not in this form" in line and "a choice" in line for line in said)
    assert any("every expert is computed for every token" in line for line in said)
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert "ScatterND" not in operators
    assert json.loads((folder / "prior.json").read_text())["check"]["max_abs_dlogp"] <= FP32_TOLERANCE


def test_a_card_computes_all(model: Any, tmp_path: Path) -> None:
    folder, said = exported(model, tmp_path / "prior", dtype="bf16")
    assert any("every expert is computed for every token" in line for line in said)
    graph = onnx.load(folder / "model.onnx").graph
    assert not any(node.op_type == "ScatterND" for node in graph.node)
    # no matrix is taken out of a larger one while it runs
    whole = {i.name for i in graph.initializer if len(i.dims) == 3 and i.dims[0] == EXPERTS}
    assert not whole


def test_a_choice_that_rounding_decides_is_not_held_against_a_graph(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two models two experts stand 1e-6 apart for the first token of a row, in the one this way and in the other that:
    rounding moves torch by as much."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.layer_types = 1, None  # no later token reads what the first one became
    torch.manual_seed(4)
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    (layer,) = network.model.layers
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
        seen: list[Any] = []
        hook = layer.mlp.gate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].reshape(-1, 64)[0].double()))
        network(input_ids=torch.tensor([[tokenizer.bos_token_id, 1]]))
        hook.remove()
        first = seen[0]
        gate = layer.mlp.gate.weight
        order = (gate.double() @ first).argsort(descending=True)
        last_in, first_out = order[CHOSEN - 1], order[CHOSEN]
        folders = {}
        for way in (1, -1):
            wanted = (gate[last_in].double() @ first) * (1 + way * 1e-6)
            gate[first_out] += (first * ((wanted - gate[first_out].double() @ first) / (first @ first))).float()
            folders[way], _ = exported(network, tmp_path / str(way))
    rows = _export_check.sample(tokenizer, json.loads((folders[1] / "prior.json").read_text()))
    how: dict[str, Any] = {"context": CONTEXT, "exact": True}
    same, _ = _export_check.check(torch, network, folders[-1] / "model.onnx", rows, **how)
    assert same["max_abs_dlogp"] <= FP32_TOLERANCE
    assert "decided_by_rounding" not in same
    other, _ = _export_check.check(torch, network, folders[1] / "model.onnx", rows, **how)
    assert other["max_abs_dlogp"] > FP32_TOLERANCE
    assert other["decided_by_rounding"] == len(rows.text)  # the first position of each
    assert "at 8 of which rounding decides what experts a token has" in export_module._of_check(other)
    # What torch is sure of is held against it as ever.
    with torch.no_grad():
        layer.mlp.experts.down_proj.mul_(1.01)
    with pytest.raises(toedit.PriorError, match="differs from torch"):
        _export_check.check(torch, network, folders[1] / "model.onnx", rows, **how)
    # And so is all, where torch is sure of little.
    layer.mlp.experts.down_proj.data.div_(1.01)
    monkeypatch.setattr(_export_check, "_UNDECIDED", 0.0)
    with pytest.raises(toedit.PriorError, match="differs from torch"):
        _export_check.check(torch, network, folders[1] / "model.onnx", rows, **how)


def test_scores_through_the_prior_are_a_row_s_own(model: Any, folders: dict[str, Path]) -> None:
    rng = np.random.default_rng(5)
    rows = [rng.integers(1, VOCABULARY, size=n).tolist() for n in (1, 2, 9, 40, 127, 3, 64, 100)]
    with toedit.Prior(folders["fp32"], threads=2) as prior:
        together = prior.score(rows, keep=[(0.0, 1.0)], k=4)
        for n, row in enumerate(rows):
            assert prior.score([row], keep=[(0.0, 1.0)], k=4)[0].as_py() == together[n].as_py()
