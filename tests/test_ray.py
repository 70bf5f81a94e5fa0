"""Ray Data: datasets that are scored and edited on a cluster of two nodes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

import helpers
import toedit

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

from ray.cluster_utils import Cluster  # noqa: E402

import toedit.ray  # noqa: E402
from test_readme import block  # noqa: E402
from toedit.ray import _Edit, _for_actors, edit_dataset, score_dataset  # noqa: E402

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
MEMORY = 80 * 2**20  # of a node's object store


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two CPUs each, the second with what Ray takes for a card."""
    folder = tempfile.mkdtemp(prefix="ray-")  # paths of sockets must be short
    paths = [str(Path(toedit.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_TMPDIR": folder,  # also of the note where a cluster of this machine is found
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        head = {"num_cpus": 2, "object_store_memory": MEMORY, "include_dashboard": False}
        head["_system_config"] = {"idle_worker_killing_time_threshold_ms": 120_000}  # starting them is what takes time
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=MEMORY)
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.use_datasource_v2 = False  # starts ten processes to read a file
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
    try:
        wait_for(lambda: not processes(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def processes(folder: str) -> list[str]:
    """The processes that were started with a folder's name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if folder.encode() in path.read_bytes() else []
    return found


def wait_for(done: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


@pytest.fixture(autouse=True)
def nothing_in_records(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Ray logs exceptions, which pytest keeps, and with them all that the frames refer to."""
    yield
    caplog.get_records("call").clear()


class Actors:
    """The actors that edit or score from here on, as the cluster's table has them."""

    def __init__(self) -> None:
        self._before = set(ray._private.state.actors())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for actor, about in ray._private.state.actors().items():
            if actor not in self._before and any(name in about["ActorClassName"] for name in ("Score", "Edit", "Dying")):
                yield about

    def nodes(self) -> set[str]:
        return {about["Address"]["NodeID"] for about in self}


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """6,000 tokens of real text in rows of up to 64."""
    return helpers.text_rows(tokenizer, 6000, seed=8, longest=64)


@pytest.fixture(scope="module")
def table(prior: toedit.Prior, texts: list[list[int]]) -> pa.Table:
    """The same with scores, and all that rows may have beside."""
    return pa.table(
        {
            "id": pa.array(range(len(texts))),
            "input_ids": pa.array(texts, pa.list_(pa.int32())),
            "labels": pa.array(texts, pa.large_list(pa.int64())),
            "doc": [f"document {n // 3}" for n in range(len(texts))],
            "at": pa.array([64 * (n % 3) for n in range(len(texts))], pa.int32()),
            "scores": prior.score(texts, keep=POLICY),
        }
    )


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3, key="doc", offset="at")
    editor([{"input_ids": [1], "doc": "", "at": 0}])  # its native half lasts as long as the module
    return editor


def blocks(table: pa.Table, rows: int) -> Any:
    """A dataset in blocks of so many rows."""
    return ray.data.from_arrow([table.slice(n, rows) for n in range(0, len(table), rows)])


def table_of(ds: Any) -> pa.Table:
    return pa.concat_tables(ray.get(ds.to_arrow_refs()))


def of_each_row(editor: toedit.Editor, table: pa.Table, epoch: int) -> dict[str, list[Any]]:
    edited = [editor(table.slice(n, 1), epoch) for n in range(len(table))]
    return {
        "candidates": [e.candidates for e in edited],
        "changes": [e.changes for e in edited],
        "expected_changes": [e.expected_changes for e in edited],
    }


def unscored(table: pa.Table) -> pa.Table:
    return table.drop_columns(["scores"])


SETTINGS: dict[str, Any] = {"seed": 3, "key": "doc", "offset": "at"}


def test_the_same_bytes_as_one_process(editor: toedit.Editor, table: pa.Table) -> None:
    actors = Actors()
    ds = blocks(table, 7)
    # Two CPUs an actor, and so one on each node.
    edited = edit_dataset(ds, editor.prior, POLICY, epoch=2, **SETTINGS, concurrency=2, num_cpus=2, batch_size=5)
    result = table_of(edited)
    assert len(actors.nodes()) == 2
    expected = editor(table, epoch=2)
    names = [name for name in table.column_names if name != "scores"]
    assert result.select(names).equals(expected.batch.select(names))
    assert result.column_names == [*names, "candidates", "changes", "expected_changes"]
    of_rows = [editor(table.slice(n, 1), epoch=2) for n in range(len(table))]
    for name in ("candidates", "changes", "expected_changes"):
        assert result.column(name).to_pylist() == [getattr(row, name) for row in of_rows]
    assert pc.sum(result.column("changes")).as_py() == expected.changes > 0


def test_scores(prior: toedit.Prior, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prior.path.parent)  # actors have another working directory
    scored = score_dataset(blocks(table, 40), prior.path.name, POLICY, concurrency=1, batch_size=16)
    assert table_of(scored).equals(table)


def test_a_killed_actor_loses_and_doubles_nothing(
    editor: toedit.Editor, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"

    class DyingEdit(_Edit):
        """Is killed in the middle of a task, once."""

        def __call__(self, table: pa.Table) -> pa.Table:
            edited = super().__call__(table)
            if 50 in table.column("id").to_pylist() and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return edited

    monkeypatch.setattr(toedit.ray, "_Edit", DyingEdit)
    actors = Actors()
    ds = blocks(unscored(table), 20)
    ds.context.target_max_block_size = 1  # each batch is handed on by itself
    result = table_of(edit_dataset(ds, editor.prior, POLICY, epoch=1, **SETTINGS, concurrency=2, batch_size=4))
    assert sorted(int(about["NumRestarts"]) for about in actors) == [0, 1]
    expected = editor(table, epoch=1)
    names = ["id", "input_ids", "labels"]
    assert result.select(names).equals(expected.batch.select(names))
    assert pc.sum(result.column("candidates")).as_py() == expected.candidates


def test_checkpoints_of_ray(editor: toedit.Editor, table: pa.Table, tmp_path: Path) -> None:
    """Stopped half way and started again, each row is written once."""
    checkpoint = pytest.importorskip("ray.data.checkpoint", reason="this version of Ray has no checkpoints")
    given, written, done, goes_on = (tmp_path / name for name in ("given", "written", "done", "goes_on"))
    given.mkdir()
    pq.write_table(table, given / "rows.parquet", row_group_size=10)

    def stop(rows: pa.Table) -> pa.Table:
        if 90 in rows.column("id").to_pylist() and not goes_on.exists():
            while not list(done.glob("*.parquet")):
                time.sleep(0.05)
            raise RuntimeError("the power is cut")
        return rows

    def run() -> None:
        ds = ray.data.read_parquet(str(given))
        ds.context.target_max_block_size = 1
        ds.context.checkpoint_config = checkpoint.CheckpointConfig("id", str(done), delete_checkpoint_on_success=False)
        ds = ds.map_batches(stop, batch_size=10, batch_format="pyarrow")
        edit_dataset(ds, editor.prior, POLICY, epoch=1, **SETTINGS, concurrency=1, batch_size=10).write_parquet(str(written))

    with pytest.raises(ray.exceptions.RayTaskError, match="the power is cut"):
        run()
    assert 0 < len(pq.read_table(written)) < len(table)
    goes_on.touch()
    run()
    expected = editor(table, epoch=1)
    result = pq.read_table(written).sort_by("id")
    assert result.select(["id", "doc"]).equals(table.select(["id", "doc"]))
    assert result.column("input_ids").to_pylist() == expected["input_ids"].to_pylist()
    assert pc.sum(result.column("changes")).as_py() == expected.changes


def test_errors_name_the_row(editor: toedit.Editor, table: pa.Table) -> None:
    ids = table.column("input_ids").to_pylist()
    ids[8] = [7] * len(ids[8])
    bad = table.set_column(1, "input_ids", pa.array(ids)).drop_columns(["labels"])

    def run(original: bool) -> None:
        ds = blocks(bad.slice(0, 12), 6)
        ds.context.raise_original_map_exception = original
        edit_dataset(ds, editor.prior, POLICY, epoch=1, **SETTINGS, concurrency=1).materialize()

    with pytest.raises(ray.exceptions.RayTaskError, match="ScoresError: row 8 of a batch, doc 'document 2'"):
        run(original=False)
    with pytest.raises(toedit.ScoresError, match="row 8 of a batch, doc 'document 2'"):
        run(original=True)


@pytest.fixture
def cuda_prior(small_prior: toedit.Prior, tmp_path: Path) -> toedit.Prior:
    """The same, as if it had been exported for CUDA."""
    folder = tmp_path / "prior"
    shutil.copytree(small_prior.path, folder)
    settings = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps({**settings, "device": "cuda"}))
    return toedit.Prior(folder)


def test_an_actor_gets_a_card(cuda_prior: toedit.Prior, small_columns: dict[str, Any], cluster: Cluster) -> None:
    """Only the second node has what Ray takes for one; editing does not use it."""
    scores = small_columns["scores"]
    fields = [scores.field(f.name) for f in scores.type]
    fields[-1] = pa.array([cuda_prior.fingerprint] * len(scores))
    table = pa.table({**small_columns, "scores": pa.StructArray.from_arrays(fields, fields=list(scores.type))})
    actors = Actors()
    edit_dataset(blocks(table, 2), cuda_prior, epoch=0, num_gpus=1, batch_size=3).materialize()
    assert actors.nodes() == {node.node_id for node in cluster.worker_nodes}


def test_a_tensor_a_row(editor: toedit.Editor, texts: list[list[int]]) -> None:
    """Rows of NumPy arrays, of one length and of many, and blocks without a token."""
    rows = [*texts[:6], *[row for row in texts if len(row) == 64][:4], [], []]
    ds = ray.data.from_items([{"input_ids": np.array(row, np.int64), "doc": str(n)} for n, row in enumerate(rows)])
    ds = edit_dataset(ds, editor.prior, POLICY, epoch=1, seed=3, key="doc", concurrency=1, batch_size=3)
    expected = toedit.Editor(editor.prior, POLICY, seed=3, key="doc")({"input_ids": rows, "doc": list(map(str, range(12)))}, 1)
    result = ds.take_all()
    assert [row["input_ids"].tolist() for row in result] == expected["input_ids"]
    assert sum(row["changes"] for row in result) == expected.changes > 0


def tensors(rows: list[list[int]], kind: str) -> pa.Array:
    """Rows of one length as Ray's or Arrow's tensors, or as lists."""
    from ray.data.extensions import ArrowTensorArray, ArrowTensorType, ArrowTensorTypeV2, ArrowVariableShapedTensorArray

    array = np.array(rows, np.int64)
    lists = pa.array(rows, pa.list_(pa.int64()))
    return {
        "v1": lambda: pa.ExtensionArray.from_storage(ArrowTensorType((64,), pa.int64()), lists),
        "v2": lambda: pa.ExtensionArray.from_storage(
            ArrowTensorTypeV2((64,), pa.int64()), lists.cast(pa.large_list(pa.int64()))
        ),
        "variable": lambda: ArrowVariableShapedTensorArray.from_numpy(np.array([*array, array[0][:1]], object))[:-1],
        "arrow": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(array),
        "large_list": lambda: lists.cast(pa.large_list(pa.int64())),
        "two dimensions": lambda: ArrowTensorArray.from_numpy(array.reshape(-1, 8, 8)),
    }[kind]()


@pytest.mark.parametrize("kind", ["v1", "v2", "variable", "arrow", "large_list"])
@pytest.mark.parametrize("policy", [POLICY, toedit.Policy(bands=(toedit.Band(0.9, action="drop"),))], ids=["draws", "drops"])
def test_columns_keep_their_type(prior: toedit.Prior, texts: list[list[int]], kind: str, policy: toedit.Policy) -> None:
    rows = [row for row in texts if len(row) == 64][:6]
    editor = toedit.Editor(prior, policy)
    columns = {name: tensors(rows, kind) for name in ("input_ids", "labels")}
    table = pa.table({**columns, "more": [list(range(64))] * len(rows), "text": list(map(str, rows))})
    table = pa.concat_tables([table.slice(4), table.slice(0, 4)])
    expected = editor({"input_ids": rows[4:] + rows[:4], "more": table.column("more").to_pylist()})
    assert expected.changes + expected.counts.dropped > 0
    for counts in (True, False):
        result = _Edit(editor, 0, counts, True)(table)
        for name in ("input_ids", "labels"):
            assert [list(row) for row in result.column(name).to_pylist()] == expected["input_ids"]
            if policy is POLICY:
                assert result.column(name).type == table.column(name).type
        assert result.column("more").to_pylist() == expected["more"]
        # What is not edited stays where it lies.
        assert [[b and b.address for b in chunk.buffers()] for chunk in result.column("text").chunks] == [
            [b and b.address for b in chunk.buffers()] for chunk in table.column("text").chunks
        ]


def test_an_iterator_of_ray(editor: toedit.Editor, table: pa.Table) -> None:
    """Each pass over a dataset's batches is another epoch."""
    pytest.importorskip("torch")
    from toedit.torch import EditingLoader

    batches = blocks(table.slice(0, 60), 20).iter_batches(batch_size=16, batch_format="pyarrow")
    loader = EditingLoader(batches, editor)
    for epoch in range(2):
        expected = editor(table.slice(0, 60), epoch)
        assert [ids for batch in loader for ids in batch["input_ids"].to_pylist()] == expected["input_ids"].to_pylist()


def test_what_cannot_be_edited(prior: toedit.Prior, texts: list[list[int]], table: pa.Table, tmp_path: Path) -> None:
    edit = _Edit(toedit.Editor(prior, POLICY), 0, True, True)
    rows = [row for row in texts if len(row) == 64][:3]
    with pytest.raises(toedit.InputError, match="column 'input_ids' holds tensors of 2 dimensions"):
        edit(pa.table({"input_ids": tensors(rows, "two dimensions")}))
    with pytest.raises(toedit.InputError, match="token ids are list"):
        edit(pa.table({"input_ids": [1.5, 2.5]}))
    with pytest.raises(toedit.InputError, match="column 'changes' already; rename or drop it, or give counts=False"):
        edit(pa.table({"input_ids": rows, "changes": [1, 2, 3]}))

    ds = blocks(table.slice(0, 4), 2)
    with pytest.raises(toedit.InputError, match="ds is a list"):
        edit_dataset([], prior, epoch=0)
    with pytest.raises(toedit.InputError, match="no column 'input_ids', only"):
        score_dataset(blocks(table.select(["id"]), 9), prior)
    with pytest.raises(toedit.InputError, match="column 'changes' already"):
        edit_dataset(blocks(table.rename_columns({"at": "changes"}), 99), prior, epoch=0)
    with pytest.raises(toedit.InputError, match="prior is a int"):
        score_dataset(ds, 3)  # type: ignore[arg-type]
    with pytest.raises(toedit.PriorError, match="nowhere"):
        edit_dataset(ds, tmp_path / "nowhere", epoch=0)
    with pytest.raises(toedit.InputError, match="epoch is -1"):
        edit_dataset(ds, prior, epoch=-1)


def test_cards(prior: toedit.Prior, cuda_prior: toedit.Prior, table: pa.Table) -> None:
    ds = blocks(table.slice(0, 4), 2)
    with pytest.raises(toedit.InputError, match=r"num_gpus is 1, but .* was exported for the CPU"):
        edit_dataset(ds, prior, epoch=0, num_gpus=1)
    with pytest.raises(toedit.InputError, match="needs a card for each actor: num_gpus=1"):
        score_dataset(ds, cuda_prior)
    with pytest.raises(toedit.InputError, match="needs a card for each actor: num_gpus=1"):
        _Edit(toedit.Editor(cuda_prior), 0, True, False)(pa.table({"input_ids": [[1, 2]]}))
    with pytest.raises(toedit.InputError, match="device is 'cuda:1'"):
        score_dataset(ds, toedit.Prior(cuda_prior.path, device="cuda:1"), num_gpus=1)
    assert _for_actors(cuda_prior, None, 0.5).device == "cuda"


def test_the_prior_of_actors(prior: toedit.Prior, tmp_path: Path) -> None:
    assert _for_actors(prior, 3, None).threads == 2  # as it was given
    assert [_for_actors(prior.path, cpus, None).threads for cpus in (None, 0.5, 3)] == [1, 1, 3]
    read_as_one = toedit.Prior(prior.path, windows="off", cross_documents=True, memory_limit=10**9)
    assert _for_actors(read_as_one, None, None).fingerprint == read_as_one.fingerprint
    folder = helpers.builtin_copy(tmp_path / "prior")
    pickled = pickle.dumps(_for_actors(folder, None, None))
    shutil.rmtree(folder)
    helpers.builtin_copy(folder, special_ids=[0, 5])
    with pytest.raises(toedit.PriorError, match="holds another prior than when this run began"):
        pickle.loads(pickled).describe()


def test_the_readme(prior: toedit.Prior, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("corpus", "scored", "edited-0"):
        (tmp_path / name).mkdir()
    pq.write_table(table.select(["id", "input_ids"]), tmp_path / "corpus" / "rows.parquet")
    code = block("from toedit.ray import").replace('"my-prior"', repr(str(prior.path)))
    for name in ("corpus", "scored", "checkpoint-0", "edited-0"):  # actors have another working directory
        code = code.replace(f'"{name}"', repr(str(tmp_path / name)))
    names: dict[str, Any] = {"policy": POLICY}
    exec(code, names)
    edited = toedit.Editor(prior, POLICY, key="id")({"input_ids": table.column("input_ids"), "id": table.column("id")})
    assert names["totals"]["sum(changes)"] == edited.changes > 0
    assert names["totals"]["sum(candidates)"] == edited.candidates
