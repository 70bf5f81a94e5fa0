"""Ray Data: datasets that are scored and edited on a cluster of two nodes."""

from __future__ import annotations

import contextlib
import os
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

from toedit.ray import edit_dataset, score_dataset  # noqa: E402

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("cluster")]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
MEMORY = 80 * 2**20  # of a node's object store


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two CPUs each, the second with what Ray takes for a card."""
    folder = tempfile.mkdtemp(prefix="ray-")  # paths of sockets must be short
    paths = [str(Path(toedit.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        head = {"num_cpus": 2, "object_store_memory": MEMORY, "include_dashboard": False, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=MEMORY, temp_dir=folder)
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            ray.data.DataContext.get_current().enable_progress_bars = False
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


def actors(known: set[str] = frozenset(), name: str = "_Edit") -> dict[str, dict[str, Any]]:  # type: ignore[assignment]
    """The cluster's actors of toedit, without those that are known."""
    return {
        actor: about
        for actor, about in ray._private.state.actors().items()
        if actor not in known and name in about["Name"] + about["ActorClassName"]
    }


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


def test_the_same_bytes_as_one_process(editor: toedit.Editor, table: pa.Table) -> None:
    known = set(actors())
    ds = edit_dataset(
        blocks(table, 7),
        editor.prior,
        POLICY,
        epoch=2,
        seed=3,
        key="doc",
        offset="at",
        concurrency=2,
        num_cpus=2,
        batch_size=5,
    )
    result = table_of(ds)
    expected = editor(table, epoch=2)
    assert expected.changes > 0
    names = ["id", "input_ids", "labels", "doc", "at"]
    assert result.select(names).equals(expected.batch.select(names))
    assert {name: result.column(name).to_pylist() for name in result.column_names[5:]} == of_each_row(editor, table, 2)
    assert pc.sum(result.column("changes")).as_py() == expected.changes
    assert len({about["Address"]["NodeID"] for about in actors(known).values()}) == 2
