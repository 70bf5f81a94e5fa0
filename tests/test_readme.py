"""The README's Python runs as it stands there."""

from __future__ import annotations

import functools
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import toedit

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(120)
def test_the_training_loop_and_the_calls_without_torch() -> None:
    torch = pytest.importorskip("torch", reason="the README's loop needs torch")
    from pydoc_data.topics import topics

    tokenizer = Tokenizer.from_file(str(toedit.Prior.builtin().tokenizer_file))
    corpus = [tokenizer.encode(text).ids[:256] for text in list(topics.values())[:24]]
    seen: list[Any] = []

    def pad_and_stack(rows: list[dict[str, Any]]) -> Any:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(r["input_ids"]) for r in rows], batch_first=True)

    names: dict[str, Any] = {"corpus": corpus, "pad_and_stack": pad_and_stack, "epochs": 2, "step": seen.append}
    loop, calls = blocks()[:2]
    exec(loop, names)
    assert names["collator"].stats().tokens == 2 * sum(map(len, corpus))
    assert len(seen) == 2
    names["batch"] = {"input_ids": corpus}
    exec(calls, names)
    for part in ("pairs = [(", "EditingLoader"):
        exec(block(part), names)
    assert names["x"][1:].tolist() == names["y"][:-1].tolist()
    assert names["loader"].stats().tokens > 0
    assert names["edited"]["input_ids"] == names["edited"].batch["input_ids"]
    assert names["edited"].counts.rows == len(corpus)


def test_every_cell_of_the_table_names_a_test() -> None:
    table = README.read_text(encoding="utf-8").split("### Which test shows what\n")[1].split("###")[0]
    rows = [line.strip("|").split("|") for line in table.split("\n") if line.startswith("| ")]
    assert len(rows) > 12
    assert {len(row) for row in rows} == {6}
    files = {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")}
    tests = set(re.findall(r"^def (test_\w+)\(", "\n".join(files.values()), flags=re.MULTILINE))
    for name, *cells in rows[1:]:
        assert all(cell.strip() for cell in cells), name
        named = re.findall(r"`(test_\w+(?:\.py)?)(?:\[.*?\])?`", "".join(cells))
        assert len(named) >= 2, name
        assert set(named) <= {*files, *tests}, set(named) - {*files, *tests}


def block(part: str) -> str:
    (found,) = (text for text in blocks() if part in text)
    return found


def test_long_documents_and_packed_rows(prior: toedit.Prior, rows: list[list[int]], tokenizer: Tokenizer) -> None:
    class Trainers:
        eos_token_id = 0

    text = [token for row in rows for token in row if token != 0]
    names: dict[str, Any] = {
        "toedit": toedit,
        "packed": text[:512],
        "batch": {"input_ids": [text[:700]]},
        "tokenizer": Trainers,
    }
    # The context of the bundled prior is half of what the example asks for.
    code = block("min_context").replace('"my-prior"', repr(str(prior.path))).replace("min_context=1024", "min_context=300")
    exec(code, names)
    assert names["scores"].field("logp").flatten().null_count == 0


def test_scores_from_elsewhere(fp32_prior: toedit.Prior, rows: list[list[int]]) -> None:
    class Logprob:
        def __init__(self, logprob: float, rank: int) -> None:
            self.logprob, self.rank = logprob, rank

    transformers = pytest.importorskip("transformers")
    ids = [[0, *(token for token in row if token != 0)][:40] for row in rows[:3]]
    stored = fp32_prior.score(ids, k=2, keep=[(0.0, 1.0)]).to_pylist()
    names: dict[str, Any] = {"toedit": toedit, "prior": fp32_prior, "batch": {"input_ids": ids}, "input_ids": ids}
    names |= {name: [row[name] for row in stored] for name in ("logp", "topk_pos", "topk_ids", "topk_logp")}
    names["model"] = transformers.AutoModelForCausalLM.from_pretrained(README.parent / "python" / "prior", dtype="float32")
    names["outputs"] = []
    for row, of_row in zip(ids, stored, strict=True):
        top = {
            at: list(zip(of_row["topk_ids"][2 * n : 2 * n + 2], of_row["topk_logp"][2 * n : 2 * n + 2], strict=True))
            for n, at in enumerate(of_row["topk_pos"])
        }
        entries: list[Any] = [None]
        for at in range(1, len(row)):
            entries.append(
                {row[at]: Logprob(of_row["logp"][at], 9)} | {i: Logprob(v, r + 1) for r, (i, v) in enumerate(top[at])}
            )
        names["outputs"].append(entries)
    code = block("toedit.vllm.scores").replace("outputs, input_ids, prior=prior", "outputs, input_ids, prior=prior, k=2")
    exec(code, names)
    assert names["scores"].field("ids_hash").to_pylist() == [row["ids_hash"] for row in stored]


def test_policies() -> None:
    names: dict[str, Any] = {}
    code = block("edit_probability=0.5")
    exec(code, names)
    for line in code.splitlines():
        if line.startswith("Policy"):
            assert isinstance(eval(line, names), toedit.Policy)


def test_what_is_never_edited(prior: toedit.Prior, tokenizer: Tokenizer) -> None:
    def encode(texts: list[str], return_offsets_mapping: bool) -> dict[str, Any]:
        encoded = [tokenizer.encode(text) for text in texts]
        return {"input_ids": [e.ids for e in encoded], "offset_mapping": [e.offsets for e in encoded]}

    names: dict[str, Any] = {
        "toedit": toedit,
        "prior": prior,
        "tokenizer": encode,
        "texts": ["In New York, 1999.\n```\nx = 1\n```\n" * 9] * 2,
        "ranges": [[(0, 40)], []],
    }
    exec(block("protected_ranges"), names)
    assert names["edited"].counts.rows == 2


def test_generations(prior: toedit.Prior, rows: list[list[int]]) -> None:
    names: dict[str, Any] = {"toedit": toedit, "prior": prior, "corpus": rows[:3]}
    exec(block("generations=3"), names)
    assert len(names["edited"].generations) == 3
    assert names["edited"]["labels"] == rows[:3]


def test_texts() -> None:
    names: dict[str, Any] = {"toedit": toedit}
    exec(block("result.withheld"), names)
    assert len(names["result"].text) == 2
    exec(block("import Projection"), names)
    assert len(names["result"].input_ids) == 2


def test_the_edit_log(prior: toedit.Prior, rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5), seed=1)
    ids = (rows * 20)[:200]
    table = [
        {"input_ids": row, "scores": s} for row, s in zip(ids, prior.score(ids, keep=editor.policy).to_pylist(), strict=True)
    ]
    names: dict[str, Any] = {"toedit": toedit, "pyarrow": pyarrow, "editor": editor, "batch": table[:8], "rows": table}
    exec(block("revert_log"), names)
    exec(block("toedit.log.shift"), names)
    assert names["edited"].changes == len(names["edited"].log) > 0


def test_statistics(prior: toedit.Prior, rows: list[list[int]], scores: pa.StructArray) -> None:
    batch = {"input_ids": rows, "scores": scores}
    parts = [{"input_ids": rows[i::3], "scores": scores.take(pa.array(range(len(rows))[i::3]))} for i in range(3)]
    names: dict[str, Any] = {"toedit": toedit, "editor": toedit.Editor(prior), "batch": batch, "parts": parts}
    exec(block("editor.statistics"), names)
    assert names["total"] == names["statistics"]


def test_test_your_pipeline(prior: toedit.Prior, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the loader is torch's")
    from toedit import testing
    from toedit.torch import EditCollator

    module = types.ModuleType("my_training")
    module.read = lambda: [{"input_ids": row} for row in rows[:8]]
    module.score = lambda rows, editor: [
        {**row, "scores": of_row}
        for row, of_row in zip(rows, editor.prior.score(rows, keep=editor.policy).to_pylist(), strict=True)
    ]
    module.loader = lambda rows, editor, workers=0: torch.utils.data.DataLoader(
        rows, batch_size=4, shuffle=True, num_workers=workers, collate_fn=EditCollator(editor, list)
    )
    monkeypatch.setitem(sys.modules, "my_training", module)
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, exclude_original=True))
    names: dict[str, Any] = {}
    exec(block("import my_training"), names)
    names["test_batches_repeat"](editor, testing.assert_deterministic)
    names["test_only_candidates_change"](editor, functools.partial(testing.assert_only_candidates_changed, editor=editor))


def test_the_store(prior: toedit.Prior, rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"toedit": toedit, "prior": prior, "policy": toedit.Policy(threshold=0.9), "batch": rows[:6]}
    exec(block("ScoreStore"), names)
    assert names["store"].stats()["misses"] == 6


def test_hugging_face(prior: toedit.Prior, rows: list[list[int]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    torch = pytest.importorskip("torch")

    def collator(batch: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"][:32]) for row in batch], batch_first=True)
        return {"input_ids": ids, "labels": ids}

    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    policy = toedit.Policy(threshold=0.9, exclude_original=True)
    documents = datasets.Dataset.from_dict({"input_ids": rows[:12], "id": [f"doc {i}" for i in range(12)]})
    names: dict[str, Any] = {
        "toedit": toedit,
        "prior": prior,
        "policy": policy,
        "editor": toedit.Editor(prior, policy, key="id"),
        "dataset": documents,
        "evaluation": datasets.Dataset.from_dict({"input_ids": rows[12:16]}),
        "collator": collator,
        "model": transformers.LlamaForCausalLM(config),
        "args": transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True
        ),
    }
    exec(block("from transformers import Trainer"), names)
    assert names["train"].stats().tokens > 0
    exec(block("hf.chunk("), names)
    assert names["train"][0]["seq_lengths"]


def test_trl(prior: toedit.Prior, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("trl")
    from pydoc_data.topics import topics

    from toedit import hf
    from toedit.torch import EditedDataset

    monkeypatch.chdir(tmp_path)
    texts = [text[:400] for text in list(topics.values())[:12]]
    end = tokenizer.id_to_token(0)
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    ids = [tokenizer.encode(text).ids for text in texts]
    names: dict[str, Any] = {
        "toedit": toedit,
        "hf": hf,
        "EditedDataset": EditedDataset,
        "prior": prior,
        "policy": toedit.Policy(threshold=0.9, exclude_original=True),
        "dataset": datasets.Dataset.from_dict({"text": texts}),
        "evaluation": datasets.Dataset.from_dict({"text": texts[:3]}),
        "documents": datasets.Dataset.from_dict({"input_ids": ids, "id": [f"doc {i}" for i in range(12)]}),
        "tokenizer": transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end),
        "model": transformers.LlamaForCausalLM(config),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two wait for each other over a model of this size
    for part in ("trainer.train_dataset, prior", "skip_prepare_dataset"):
        exec(block(part).replace("packing=True", "packing=True, max_steps=2, report_to=[], use_cpu=True"), names)
        assert names["train"].stats().tokens > 0
    torch.set_num_threads(threads)


def test_token_streams(prior: toedit.Prior, rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from toedit.tokens import TokenStream, score

    monkeypatch.chdir(tmp_path)
    np.array([token for row in rows[:8] for token in (*row, 0)], np.uint16).tofile("train.bin")
    policy = toedit.Policy(threshold=0.5)
    score(TokenStream("train.bin", np.uint16, split_after=0), "train.scores", prior=prior, keep=policy)
    names: dict[str, Any] = {"toedit": toedit, "numpy": np, "torch": torch, "prior": prior, "policy": policy}
    names |= {"block_size": 32, "batch_size": 4}
    exec(block("import EditedStream"), names)
    x, y = names["get_batch"](0)
    assert x.shape == y.shape == (4, 32)
    assert (x[:, 1:] == y[:, :-1]).all()
    assert names["dataset"][0][0].tolist() == names["stream"].edit([0], 32, 0)["input_ids"][0].tolist()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_streamed_shards(prior: toedit.Prior, rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    util = pytest.importorskip("streaming.base.util")
    webdataset = pytest.importorskip("webdataset")
    from toedit.torch import EditCollator

    monkeypatch.chdir(tmp_path)
    policy = toedit.Policy(threshold=0.3)
    data = [{"id": str(n), "input_ids": np.array(ids, np.int32)} for n, ids in enumerate(rows[:8])]
    with webdataset.TarWriter("shard.tar") as out:
        for row, of_row in zip(data, toedit.scores_to_bytes(prior.score(data, keep=policy)), strict=True):
            out.write({"__key__": row["id"], "ids.npy": row["input_ids"], "scores": of_row})
    seen: list[Any] = []
    names: dict[str, Any] = {"toedit": toedit, "EditCollator": EditCollator, "prior": prior, "policy": policy, "rows": data}
    names |= {"editor": toedit.Editor(prior, policy, key="id"), "epochs": 2, "step": seen.append, "urls": ["shard.tar"]}
    names["collate"] = lambda rows: {"rows": [row.get("input_ids", row.get("ids.npy")).tolist() for row in rows]}
    expected = [names["editor"](data, epoch)["input_ids"] for epoch in range(2)]
    for part in ("import MDSWriter", "import webdataset"):
        seen.clear()
        exec(block(part).replace("num_workers=4", "num_workers=0"), names)
        for batch, edited in zip(seen, expected, strict=True):
            assert sorted(batch["rows"]) == sorted(ids.tolist() for ids in edited)
    del names
    util.clean_stale_shared_memory()


def test_lightning(prior: toedit.Prior, rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    lightning = pytest.importorskip("lightning.pytorch")
    from toedit.torch import EditCollator

    class Model(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Embedding(4096, 2)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.weight(batch).square().sum()

        def validation_step(self, batch: Any, index: int) -> None:
            assert batch.tolist() == [row["input_ids"] for row in data]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def collate(rows: list[dict[str, Any]]) -> Any:
        return torch.tensor([row["input_ids"] for row in rows])

    monkeypatch.chdir(tmp_path)
    policy = toedit.Policy(threshold=0.3)
    data = [{"input_ids": ids[:16]} for ids in rows if len(ids) >= 16]
    for row, scores in zip(data, prior.score(data, keep=policy).to_pylist(), strict=True):
        row["scores"] = scores
    names: dict[str, Any] = {"torch": torch, "EditCollator": EditCollator, "editor": toedit.Editor(prior, policy), "rows": data}
    names |= {"collate": collate, "model": Model(), "epochs": 2}
    names["evaluation"] = torch.utils.data.DataLoader(data, len(data), collate_fn=collate)
    exec(block("toedit.lightning").replace("num_workers=4", "num_workers=0"), names)
    assert names["collator"].stats().rows == 2 * len(data)
