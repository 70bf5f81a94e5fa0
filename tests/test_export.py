"""`toedit export`: the folder it makes is the model, in every batch, or there is no folder at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

import toedit

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime", exc_type=ImportError, reason="exporting needs onnxruntime, which cannot be imported here")

import onnx
import onnxruntime
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from llama2c import word_tokenizer
from toedit import _chunks, _export_check, _graph
from toedit import export as export_module
from toedit.export import FP32_TOLERANCE, export

Rows = list[list[int]]
Outputs = list[npt.NDArray[Any]]

pytestmark = pytest.mark.usefixtures("traced_once")

WEIGHTS = Path(__file__).parents[1] / "python" / "prior"
BUNDLED = Path(toedit.__file__).parent / "builtin_prior"


# What the tests run the graphs with


def open_graph(folder: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def run(
    session: onnxruntime.InferenceSession, ids: npt.NDArray[np.int64], k: int = 8, low: float = 0.3, high: float = 1.0
) -> Outputs:
    """[logp, topk_row, topk_ids, topk_logp] of graph version 1."""
    with np.errstate(divide="ignore"):
        band = [np.log(np.array([bound], dtype=np.float32)) for bound in (low, high)]
    feeds = {"input_ids": ids, "k": np.array([k]), "keep_low": band[0], "keep_high": band[1]}
    return list(session.run(None, feeds))


def padded(rows: Rows, length: int = 0, fill: int = 0) -> npt.NDArray[np.int64]:
    out = np.full((len(rows), max([length, 2, *map(len, rows)])), fill, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def torch_logprobs(model: Any, row: Sequence[int]) -> npt.NDArray[np.float64]:
    """ln P of every id at every position but the last: float64 [len(row) - 1, V]."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def of_targets(logprobs: npt.NDArray[np.float64], row: Sequence[int]) -> npt.NDArray[np.float64]:
    return logprobs[np.arange(len(row) - 1), np.asarray(row[1:])]


# Models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, fp32_prior: toedit.Prior) -> dict[str, Path]:
    """The bundled prior's weights, exported now with each dtype."""
    int8 = tmp_path_factory.mktemp("exported") / "int8"
    card = WEIGHTS / "README.md"
    export(WEIGHTS, int8, dtype="int8", bos="always", max_length=512, name="toedit-builtin", card=card)
    return {"fp32": fp32_prior.path, "int8": int8}


@pytest.fixture(scope="module")
def bundled_model() -> Any:
    return LlamaForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, PreTrainedTokenizerFast]:
    """A model with random weights that exports in a few seconds."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config), word_tokenizer(40)


# The bundled prior


def test_bundled_prior_is_the_export_of_its_weights(folders: dict[str, Path], rows: Rows) -> None:
    mine, bundled = (json.loads((folder / "prior.json").read_text()) for folder in (folders["int8"], BUNDLED))
    made_with = bundled.pop("made_with")
    same = all(metadata.version(p) == made_with[p] for p in ("torch", "transformers", "onnx", "onnxscript"))
    if same:
        assert (folders["int8"] / "model.onnx").read_bytes() == (BUNDLED / "model.onnx").read_bytes()
    for name in ("tokenizer.json", "README.md"):
        assert (folders["int8"] / name).read_bytes() == (BUNDLED / name).read_bytes()
    for key in ("files", "check"):
        mine.pop(key), bundled.pop(key)
    mine.pop("made_with")
    assert mine == bundled
    # Other versions of the tools may write another graph, but not another model.
    sessions = [open_graph(folder, threads=2) for folder in (folders["int8"], BUNDLED)]
    text = padded([row for row in rows if 100 < len(row) <= 512][:8])
    got, want = (run(session, text)[0] for session in sessions)
    assert np.abs(got - want).max() < 0.05
    assert np.abs(got - want).mean() < 0.002


def test_bundled_prior_is_small_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 8_000_000
    card = (BUNDLED / "README.md").read_text()
    for word in ("CC0", "Not for training", "bits per byte", "Gatsby", "Frankenstein"):
        assert word in card


def test_fp32_is_torch(folders: dict[str, Path], bundled_model: Any, rows: Rows) -> None:
    session = open_graph(folders["fp32"], threads=2)
    for row in [row for row in rows if 2 <= len(row) <= 512][:24]:
        logprobs = torch_logprobs(bundled_model, row)
        logp, where, ids, top = run(session, padded([row]), k=16, low=0.0)
        assert np.abs(logp[0] - of_targets(logprobs, row)).max() <= FP32_TOLERANCE
        assert where.tolist() == list(range(len(row) - 1))
        # Top-k: torch's values, to half precision; the ids may differ only where two are nearly equal.
        best = -np.sort(-logprobs, axis=-1)[:, :16]
        np.testing.assert_allclose(top, best, rtol=2**-11, atol=FP32_TOLERANCE)
        np.testing.assert_allclose(np.take_along_axis(logprobs, ids.astype(np.int64), axis=-1), best, atol=2 * FP32_TOLERANCE)


def test_int8_is_near_torch(folders: dict[str, Path], bundled_model: Any, rows: Rows) -> None:
    session = open_graph(folders["int8"], threads=2)
    differences = []
    for row in [row for row in rows if 2 <= len(row) <= 512][:24]:
        logprobs = torch_logprobs(bundled_model, row)
        differences.append(np.abs(run(session, padded([row]))[0][0] - of_targets(logprobs, row)))
    assert np.concatenate(differences).mean() < 0.05
    assert np.concatenate(differences).max() < 1.0


# A row's outputs depend on the row alone


def row_outputs(outputs: Outputs, index: int, length: int) -> tuple[bytes, ...]:
    logp, where, ids, top = outputs
    start = index * logp.shape[1]
    inside = (where >= start) & (where < start + length - 1)
    return (
        logp[index, : length - 1].tobytes(),
        (where[inside] - start).tobytes(),
        ids[inside].tobytes(),
        top[inside].tobytes(),
    )


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_same_bits_in_any_company(folders: dict[str, Path], rows: Rows, dtype: str) -> None:
    rng = np.random.default_rng(3)
    text = [token for row in rows for token in row]
    lengths = [2, 2, 3, 3, 4, 5, 8, 9, 10, 16, 17, 31, 33, 63, 64, 65, 66, 100, 127, 129, 200, 257, 300, 512]
    pool = [text[start : start + length] for start, length in zip(range(0, 200 * len(lengths), 200), lengths, strict=True)]
    sessions = [open_graph(folders[dtype], threads) for threads in (1, 2)]
    alone = [row_outputs(run(sessions[0], padded([row])), 0, len(row)) for row in pool]
    seen = 0
    while seen < 400:
        # short rows among themselves half of the time: that is where kernels for small shapes would show
        longest = 70 if rng.integers(2) else 512
        choice = [i for i in rng.integers(0, len(pool), size=rng.integers(1, 9)) if len(pool[i]) <= longest]
        if not choice:
            continue
        length = max(len(pool[i]) for i in choice) + int(rng.choice([0, 0, 1, 2, 7, 40]))
        batch = padded([pool[i] for i in choice], length, fill=int(rng.integers(4096)))
        outputs = run(sessions[rng.integers(2)], batch)
        for index, i in enumerate(choice):
            assert row_outputs(outputs, index, len(pool[i])) == alone[i], (len(pool[i]), batch.shape)
            seen += 1


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_same_bits_in_small_shapes(folders: dict[str, Path], rows: Rows, dtype: str) -> None:
    session, row = open_graph(folders[dtype]), rows[0]
    for length in range(2, 20):
        wide = row_outputs(run(session, padded([row[:length]], 257, fill=9)), 0, length)
        for width in range(length, 24):
            for batch in (1, 2, 5):
                outputs = run(session, padded([*[row[40:42]] * (batch - 1), row[:length]], width, fill=7))
                assert row_outputs(outputs, batch - 1, length) == wide, (length, width, batch)


# The graph's contract


def test_outputs_of_the_graph(folders: dict[str, Path], rows: Rows) -> None:
    session = open_graph(folders["int8"])
    assert [i.name for i in session.get_inputs()] == ["input_ids", "k", "keep_low", "keep_high"]
    assert [(o.name, o.type) for o in session.get_outputs()] == [
        ("logp", "tensor(float)"),
        ("topk_row", "tensor(int64)"),
        ("topk_ids", "tensor(int32)"),
        ("topk_logp", "tensor(float)"),
    ]
    batch = padded([row[:60] for row in rows if len(row) >= 60][:5])
    every = run(session, batch, k=64, low=0.0)
    logp, _, ids, top = every
    assert logp.shape == (5, 59)
    assert top.shape == (5 * 59, 64)
    # most probable first, and exactly half-precision values
    assert (np.diff(top, axis=-1) <= 0).all()
    np.testing.assert_array_equal(top, top.astype(np.float16).astype(np.float32))
    targets = batch[:, 1:].reshape(-1, 1)
    known = (ids == targets).any(axis=-1)
    assert known.mean() > 0.5
    want = np.sort(np.float16(logp.reshape(-1)[known]))
    np.testing.assert_array_equal(want, np.sort(np.float16(top[ids == targets])))
    # a smaller k is a prefix, and ranges choose rows of the same table; several ranges are a union
    for k, bands in [(1, [(0.5, 1.0)]), (8, [(0.9, 1.0), (0.0, 0.01)]), (3, [(0.2, 0.4), (0.3, 0.6), (1.0, 0.0)])]:
        low, high = (
            np.log(np.maximum(np.array(side, dtype=np.float32), np.float32(1e-30))) for side in zip(*bands, strict=True)
        )
        got = session.run(None, {"input_ids": batch, "k": np.array([k]), "keep_low": low, "keep_high": high})
        flat = logp.reshape(-1, 1)
        wanted = np.flatnonzero(((flat >= low) & (flat <= high)).any(axis=-1))
        assert 0 < len(wanted) < logp.size
        np.testing.assert_array_equal(got[0], logp)
        np.testing.assert_array_equal(got[1], wanted)
        np.testing.assert_array_equal(got[2], ids[wanted, :k])
        np.testing.assert_array_equal(got[3], top[wanted, :k])


def test_nothing_wanted(folders: dict[str, Path], rows: Rows) -> None:
    for folder in folders.values():
        feeds = {"input_ids": padded([rows[0]]), "k": np.array([8]), "keep_low": np.float32([1]), "keep_high": np.float32([0])}
        logp, where, ids, top = open_graph(folder).run(None, feeds)
        assert np.isfinite(logp).all()
        assert where.shape == (0,)
        assert ids.shape == top.shape == (0, 8)


def test_ties_go_to_the_lower_id(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    twins = LlamaForCausalLM(model.config)
    with torch.no_grad():
        twins.lm_head.weight[20:] = twins.lm_head.weight[:20]
    export(twins, tmp_path / "twins", tokenizer=tokenizer)
    _, _, ids, top = run(open_graph(tmp_path / "twins"), padded([[1, 5, 9, 30, 12, 8]]), k=40, low=0.0)
    assert (ids[:, 1::2] == ids[:, ::2] + 20).all()
    np.testing.assert_array_equal(top[:, 1::2], top[:, ::2])


# Checkpoints that nobody on this project made


# The folder


def test_export_is_deterministic_and_carries_no_path(
    folders: dict[str, Path], tiny: tuple[Any, Any], tmp_path: Path, traced_once: pytest.MonkeyPatch
) -> None:
    traced_once.undo()
    model, tokenizer = tiny
    for dtype in ("fp32", "int8"):
        first, second = (export(model, tmp_path / dtype / n, tokenizer=tokenizer, dtype=dtype) for n in ("one", "two"))  # type: ignore[arg-type]
        for path in first.iterdir():
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    here = [str(Path(*parts)).encode() for parts in (Path(__file__).parts[:3], Path(sys.prefix).parts[:3], tmp_path.parts[:2])]
    for folder in (folders["fp32"], folders["int8"], tmp_path / "int8" / "one", BUNDLED):
        graph = onnx.load(folder / "model.onnx")
        del graph.graph.initializer[:]  # random bytes of weights are no text
        for data in (
            graph.SerializeToString(),
            (folder / "prior.json").read_bytes(),
            (folder / "tokenizer_config.json").read_bytes(),
        ):
            assert not [path for path in [*here, b"site-packages", b".py"] if path in data]


def test_settings_are_the_models(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    model.train()
    folder = export(model, tmp_path / "prior", tokenizer=tokenizer, k=100, source={"licence": "none"})
    settings = json.loads((folder / "prior.json").read_text())
    assert settings["check"]["max_abs_dlogp"] <= FP32_TOLERANCE
    expected = {
        "format": 1,
        "architecture": "LlamaForCausalLM",
        "device": "cpu",
        "dtype": "fp32",
        "context_length": 64,
        "vocab_size": 40,
        "tokenizer_size": 40,
        "special_ids": [0, 1, 2],
        "bos": {"rule": "never", "id": 1},
        "k": 40,
        "graph": {"version": 1, "opset": 23, "attention": "com.microsoft.GroupQueryAttention"},
    }
    assert {key: settings[key] for key in expected} == expected
    assert settings["source"]["licence"] == "none"
    for name, entry in settings["files"].items():
        assert entry == {"sha256": export_module._sha256(folder / name), "size": (folder / name).stat().st_size}
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("w7 w5").ids == [7, 5]
    # the model comes back as it was
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_half_precision_models_are_exported_in_float32(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    export(half, tmp_path / "prior", tokenizer=tokenizer, max_length=32)
    assert next(half.parameters()).dtype == torch.bfloat16
    row = [1, 5, 9, 30, 12]
    want = of_targets(torch_logprobs(half.float(), row), row)
    np.testing.assert_allclose(run(open_graph(tmp_path / "prior"), padded([row]))[0][0], want, atol=FP32_TOLERANCE)


def test_command_line(tiny: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "deep" / "prior"
    arguments = [str(tmp_path / "model"), "-o", str(out), "--dtype", "int8", "--max-length", "48", "--bos", "always"]
    assert export_module.main(arguments) == 0
    settings = json.loads((out / "prior.json").read_text())
    assert (settings["dtype"], settings["context_length"], settings["name"]) == ("int8", 48, "model")
    assert "LlamaForCausalLM, int8" in capsys.readouterr().out
    assert str(tmp_path) not in (out / "prior.json").read_text() + (out / "tokenizer_config.json").read_text()
    with pytest.raises(toedit.InputError, match="exists"):
        export_module.main(arguments)
    assert export_module.main([*arguments, "--overwrite", "--name", "other"]) == 0
    assert json.loads((out / "prior.json").read_text())["name"] == "other"
    assert [path.name for path in out.parent.iterdir()] == ["prior"]


# What goes wrong


def test_a_broken_export_leaves_nothing(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    broken = LlamaForCausalLM(model.config)
    with torch.no_grad():
        broken.model.norm.weight[3] = float("nan")
    with pytest.raises(toedit.PriorError, match="not finite"):
        export(broken, tmp_path / "prior", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []

    # a graph that is another model's, and a disk that is full
    monkeypatch.setattr(_export_check, "FP32_TOLERANCE", 0.0)
    with pytest.raises(toedit.PriorError, match="differs from torch"):
        export(model, tmp_path / "prior", tokenizer=tokenizer)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_write_tokenizer", full)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "prior.json").write_text("{}")
    for name in ("prior", "old"):
        with pytest.raises(toedit.InputError, match=r"no space left for the prior in .*make room or choose another folder"):
            export(model, tmp_path / name, tokenizer=tokenizer, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "prior.json").read_text() == "{}"


def test_an_architecture_that_does_not_convert(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("for some reason") from ValueError("this operator is unknown\nand more")

    monkeypatch.setattr(_graph, "trace", broken)
    with pytest.raises(
        toedit.PriorError, match=r"LlamaForCausalLM does not convert to ONNX: this operator is unknown\. Where nothing"
    ):
        export(model, tmp_path / "prior", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []
    assert model.config._attn_implementation == "sdpa"


def test_a_model_without_a_fast_tokenizer(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = tiny

    class Slow:
        is_fast = False

    with pytest.raises(toedit.InputError, match=r"Slow is not a fast tokenizer .*tokenizer\.json"):
        export(model, tmp_path / "prior", tokenizer=Slow())  # type: ignore[arg-type]
    with pytest.raises(toedit.InputError, match="needs its tokenizer"):
        export(model, tmp_path / "prior")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(toedit.InputError, match="tokenizer"):
        export(tmp_path / "model", tmp_path / "prior")
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"k": 0}, "k is 0"),
        ({"k": 5000}, "k is 5000"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 65}, "max_length is 65, but the model has 64 positions"),
        ({"bos": "sometimes"}, "bos is 'sometimes'"),
        ({"card": "no/such/card.md"}, "model card"),
    ],
)
def test_wrong_arguments(tiny: tuple[Any, Any], tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    model, tokenizer = tiny
    with pytest.raises(toedit.InputError, match=message):
        export(model, tmp_path / "prior", tokenizer=tokenizer, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_wrong_models(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = tiny
    with pytest.raises(toedit.InputError, match=r"10 ordinary ids that the model does not have .*first is 40"):
        export(model, tmp_path / "prior", tokenizer=word_tokenizer(50))
    nameless = word_tokenizer(40)
    nameless.bos_token = None
    with pytest.raises(toedit.InputError, match="no beginning-of-sequence token"):
        export(model, tmp_path / "prior", tokenizer=nameless, bos="always")
    with pytest.raises(toedit.InputError, match="must be a transformers causal language model"):
        export(object(), tmp_path / "prior", tokenizer=nameless)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(toedit.InputError, match="cannot be loaded"):
        export(tmp_path / "empty", tmp_path / "prior")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(toedit.InputError, match="no prior folder"):
        export(model, tmp_path / "mine", tokenizer=nameless, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    shutil.rmtree(tmp_path / "mine")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(toedit.MissingDependencyError, match=r"needs the package onnx.*toedit\[export,cpu\]"):
        export(WEIGHTS, tmp_path / "prior")


# What a prior for CUDA is like, as far as that can be seen without a card


@pytest.mark.parametrize(("dtype", "element"), [("bf16", onnx.TensorProto.BFLOAT16), ("fp16", onnx.TensorProto.FLOAT16)])
@pytest.mark.parametrize("tied", [False, True])
def test_a_prior_for_cuda(tiny: tuple[Any, Any], tmp_path: Path, dtype: Any, element: int, tied: bool) -> None:
    model, tokenizer = tiny
    config = LlamaConfig(**(model.config.to_dict() | {"tie_word_embeddings": tied}))
    folder = export(LlamaForCausalLM(config), tmp_path / "prior", tokenizer=tokenizer, dtype=dtype)
    settings = json.loads((folder / "prior.json").read_text())
    assert (settings["device"], settings["dtype"]) == ("cuda", dtype)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "there was no CUDA device" in settings["check"]["not_run"]
    proto = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(proto)
    types = {i.name: i.data_type for i in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    assert settings["graph"]["tf32"] is True  # the head's values are exact in it
    (attention,) = [node for node in proto.graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attention.output) == 3  # what CUDA's kernel insists on writing
    assert "ReduceMax" not in {node.op_type for node in proto.graph.node}  # which it leaves to cuDNN
    head = makers[makers["logprobs"].input[0]]
    while head.op_type == "Identity":
        head = makers[head.input[0]]
    assert head.op_type == "MatMul"
    assert types[head.input[1]] == onnx.TensorProto.FLOAT
    others = [node for node in proto.graph.node if node.op_type == "MatMul" and node is not head and node.input[1] in types]
    assert len(others) == 5  # queries, keys and values in one
    assert {a.name: a.i for a in attention.attribute}["do_rotary"] == 1
    assert {types[node.input[1]] for node in others} == {element}  # the trunk's products are in half precision
    assert [o.type.tensor_type.elem_type for o in proto.graph.output] == [
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
        onnx.TensorProto.FLOAT,
    ]
    with pytest.raises(toedit.Error, match=r"no CUDA provider|cannot use cuda|was exported for CUDA"):
        toedit.Prior(folder, device="cpu").score([[1, 2]])


def test_gelu_is_one_operator_for_a_card_and_the_projections_one_product(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    _, tokenizer = tiny
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config)
    folder = export(model, tmp_path / "prior", tokenizer=tokenizer, dtype="bf16")
    ops = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert (ops.count("Gelu"), "Tanh" in ops, "Pow" in ops, "Split" in ops) == (1, False, False, False)
    assert type(model.transformer.h[0].mlp.act).__name__ == "NewGELUActivation"  # the caller's model is as it was


@pytest.mark.parametrize(("factor", "exact"), [(1.0, True), (1.001, False)])
def test_a_product_in_float32_and_tensorfloat_32(tiny: tuple[Any, Any], tmp_path: Path, factor: float, exact: bool) -> None:
    """A card may compute it there if what it reads was in half precision before, as routers of experts are."""

    class Wide(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.float() if exact else x.float() * factor
            return torch.nn.functional.linear(x, self.weight.float()).to(self.weight.dtype)

    model, tokenizer = tiny
    model = copy.deepcopy(model)
    inner = model.model.layers[0].mlp.gate_proj
    model.model.layers[0].mlp.gate_proj = Wide(inner.in_features, inner.out_features, bias=False)
    folder = export(model, tmp_path / "prior", tokenizer=tokenizer, dtype="bf16")
    assert json.loads((folder / "prior.json").read_text())["graph"].get("tf32", False) == exact
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_norms_in_float32_read_float32(tmp_path: Path, tiny: tuple[Any, Any], dtype: Any) -> None:
    """CUDA's kernel of RMSNormalization wants the vectors and the scale in one type; OLMo 2 and Gemma scale in float32."""
    _, tokenizer = tiny
    config = Olmo2Config(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    folder = export(Olmo2ForCausalLM(config), tmp_path / "prior", tokenizer=tokenizer, dtype=dtype)
    proto = onnx.load(folder / "model.onnx")
    types = {i.name: i.data_type for i in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    norms = [node for node in proto.graph.node if node.op_type == "RMSNormalization"]
    assert len(norms) == 5
    for norm in norms:
        before = makers[norm.input[0]]
        assert (types[norm.input[1]], before.op_type) == (onnx.TensorProto.FLOAT, "Cast")
        assert before.attribute[0].i == onnx.TensorProto.FLOAT


def test_the_head_of_a_large_vocabulary(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU a loop over parts of the logits stands in the one over chunks of rows; on a card chunks are larger."""
    model, tokenizer = tiny
    monkeypatch.setattr(_chunks, "LARGE_VOCAB", 8)
    for dtype, loops, logits in (("fp32", 2, 128 << 20), ("bf16", 1, 2 << 30)):
        folder = export(model, tmp_path / dtype, tokenizer=tokenizer, dtype=dtype)
        nodes = list(_graph._all_nodes(onnx.load(folder / "model.onnx").graph.node))
        assert [node.op_type for node in nodes].count("Loop") == loops
        assert 0 <= json.loads((folder / "prior.json").read_text())["memory"]["fixed"] - logits <= 8 << 20


# Weights beside the graph


def test_external_weights(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    inline = export(model, tmp_path / "inline", tokenizer=tokenizer)
    monkeypatch.setattr(export_module, "_INLINE_LIMIT", 1000)
    folder = export(model, tmp_path / "beside", tokenizer=tokenizer)
    files = json.loads((folder / "prior.json").read_text())["files"]
    assert set(files) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    assert files["model.onnx"]["size"] < 40_000 < files["model.onnx.data"]["size"] + 40_000
    rows = [[3, 5, 7, 9, 11, 2], [8] * 40]
    want, got = (toedit.Prior(path).score(rows, k=4, keep=[(0.0, 1.0)]) for path in (inline, folder))
    assert got.field("logp").equals(want.field("logp"))
    assert got.field("topk_ids").equals(want.field("topk_ids"))
    damaged = bytearray((folder / "model.onnx.data").read_bytes())
    damaged[100] ^= 1
    (folder / "model.onnx.data").write_bytes(damaged)
    with pytest.raises(toedit.PriorError, match=r"model\.onnx\.data has SHA-256"):
        toedit.Prior(folder).score(rows)


@pytest.mark.skipif(
    not os.environ.get("TOEDIT_LARGE"), reason="takes minutes, 10 GB of memory and 5 GB of disk: TOEDIT_LARGE=1"
)
@pytest.mark.timeout(1800)
def test_a_model_over_two_gigabytes(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=131072,
        hidden_size=2048,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=5632,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    assert sum(p.numel() for p in model.parameters()) * 4 > 2 << 30
    folder = export(model, tmp_path / "prior", tokenizer=word_tokenizer(4000))
    assert json.loads((folder / "prior.json").read_text())["files"]["model.onnx.data"]["size"] > 2 << 30
    rows = [np.random.default_rng(n).integers(3, 4000, size=30).tolist() for n in range(3)]
    got = toedit.Prior(folder).score(rows).field("logp").to_pylist()
    for row, logp in zip(rows, got, strict=True):
        np.testing.assert_allclose(logp[1:], of_targets(torch_logprobs(model, row), row), atol=FP32_TOLERANCE, rtol=0)


# Memory that is not there

_SHORT_OF_MEMORY = """
import resource, sys, threading, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import toedit

folder, threads, count, length, room = sys.argv[1], *map(int, sys.argv[2:])
rows = np.random.default_rng(0).integers(3, 50_000, size=(count, length)).tolist()
keep = {"k": 4, "keep": [(0.0, 1.0)]}
prior = toedit.Prior(folder, threads=threads)
with ThreadPoolExecutor(8) as pool:  # more of Go's threads begin than are needed later, when there is no memory for one
    list(pool.map(lambda _: prior.score([rows[0][:9]], **keep), range(400)))
taken = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))

def lift():
    # ONNX Runtime takes for its arena nearly all that is left, and then Go's own runtime can find nothing and end the process.
    while not prior.stats()["halved"] and not done.wait(0.001):
        pass
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

done = threading.Event()
watcher = threading.Thread(target=lift)
watcher.start()
try:
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (room << 20), resource.RLIM_INFINITY))
    with warnings.catch_warnings(record=True) as caught:
        got = prior.score(rows, **keep)
        prior.score(rows, **keep)
finally:
    done.set()
    watcher.join()
assert sum(w.category is toedit.MemoryWarning for w in caught) == 1, caught
want = toedit.Prior(folder).score(rows, **keep)
assert got.equals(want)
print(prior.stats()["halved"], prior.stats()["waited"])
"""


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of which a run takes 200 KB a position, for its logits."""
    config = LlamaConfig(
        vocab_size=50_000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("large_vocabulary") / "prior"
    return export(LlamaForCausalLM(config).eval(), folder, tokenizer=word_tokenizer(4000))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's data is Linux's")
@pytest.mark.parametrize(
    ("threads", "count", "length", "megabytes"),
    [
        pytest.param(1, 64, 33, 80, id="short rows"),  # 512 positions a run, of which there is memory for 400
        pytest.param(2, 8, 480, 140, id="long rows on two threads"),  # memory for one
    ],
)
def test_out_of_memory(large_vocabulary: Path, threads: int, count: int, length: int, megabytes: int) -> None:
    """Runs are made in halves, or one after the other; it is said once, ONNX Runtime is silent and the scores are the same."""
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, *map(str, (large_vocabulary, threads, count, length, megabytes))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    halved, waited = map(int, done.stdout.split())
    assert (halved > 0, waited > 0) == (length < 40, length > 40)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's data is Linux's")
def test_no_memory_for_a_single_row(large_vocabulary: Path) -> None:
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, str(large_vocabulary), "2", "8", "480", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("toedit._errors.ScoringError: there is no memory for a single row of 480 tokens: score shorter rows")


# Which models and disks are refused


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, is_decoder=False
    )
    with pytest.raises(toedit.InputError, match=r"BertLMHeadModel predicts a token from those to its right .*an encoder"):
        export(BertLMHeadModel(config), tmp_path / "prior", tokenizer=word_tokenizer(40))
    assert list(tmp_path.iterdir()) == []


def test_pickled_weights_are_refused_unless_asked_for(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(toedit.InputError, match=r"another form than safetensors.*--allow-pickle"):
        export(tmp_path / "model", tmp_path / "prior")
    export(tmp_path / "model", tmp_path / "prior", allow_pickle=True)


def test_code_that_comes_with_a_model_is_not_run_unasked(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings |= {
        "model_type": "of-its-own",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(toedit.InputError, match="trust_remote_code"):
        export(tmp_path / "model", tmp_path / "prior")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Exception, match=r"code|Config"):  # it defines nothing
        export(tmp_path / "model", tmp_path / "prior", trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_a_model_that_lacks_weights_is_refused(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    model.model.save_pretrained(tmp_path / "model")  # without the output head
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(toedit.InputError, match=r"lacks 1 of the model's weights .*lm_head\.weight"):
        export(tmp_path / "model", tmp_path / "prior")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2)
    with pytest.raises(toedit.InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        export(T5ForConditionalGeneration(config), tmp_path / "prior", tokenizer=word_tokenizer(40))


def test_a_context_that_is_no_multiple_of_eight(tmp_path: Path) -> None:
    """Learned positions end there: nothing may be run beyond."""
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=45, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    folder = export(model, tmp_path / "prior", tokenizer=word_tokenizer(40), bos="never")
    rows = [np.random.default_rng(n).integers(3, 40, size=n).tolist() for n in (45, 44, 9)]
    for row, scores in zip(rows, toedit.Prior(folder).score(rows).to_pylist(), strict=True):
        want = of_targets(torch_logprobs(model, row), row)
        np.testing.assert_allclose(scores["logp"][1:], want, atol=FP32_TOLERANCE, rtol=0)


def test_a_disk_without_room_is_refused_beforehand(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(toedit.InputError, match=r"0 MB of free space, but exporting needs about 0 MB; make room"):
        export(model, tmp_path / "deep" / "prior", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_the_memory_is_named(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    known, said = os.sysconf, list[str]()
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else known(name))
    export(model, tmp_path / "prior", tokenizer=tokenizer, progress=said.append)
    assert said[1] == "this machine has 0 MB of memory: the export may be killed; a larger one may be needed"


@pytest.mark.parametrize("inline", [True, False])
def test_a_disk_that_fills_up_leaves_nothing(tiny: tuple[Any, Any], tmp_path: Path, inline: bool) -> None:
    """With the system's own error, in a process that may write no file larger than a few kilobytes."""
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = (
        "import resource, signal, sys; from toedit.__main__ import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"import toedit.export as e; e._INLINE_LIMIT *= {inline:d}; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["export", str(tmp_path / "model"), "-o", str(tmp_path / "out" / "prior")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "no space left for the prior in" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_said_on_the_way(tiny: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "-o", str(tmp_path / "prior")]
    assert export_module.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "decisions that differ: 0 % at 0.9, 0 % at 0.99, 0 % at 0.999" in out
    assert "about 0 MB as fp32" in err
    assert "of memory on the way" in err
    assert "may be killed" not in err
    assert [line for line in err.splitlines() if "checking against torch" in line]
    assert export_module.main([*arguments, "--overwrite", "--no-graph"]) == 0
    assert "no graph" in capsys.readouterr().out
