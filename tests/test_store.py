"""The score store: what the first epoch scores, later ones read, whatever happens to its writers."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

import helpers
import toedit
from toedit import _native, _store_files
from toedit.__main__ import main as command
from toedit.store import _FAN

pytestmark = [
    pytest.mark.timeout(120),
    # CPython 3.12 and later find it a bad idea in general.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

Rows = list[list[int]]

POLICY = toedit.Policy(threshold=0.3, k=16, exclude_original=True)
FORK = multiprocessing.get_context("fork")
CHILD_SECONDS = 60


@pytest.fixture(scope="module")
def documents(rows: Rows) -> Rows:
    """The session's rows, each once."""
    return [list(row) for row in dict.fromkeys(map(tuple, rows))]


@pytest.fixture(scope="module")
def precomputed(rows: Rows, scores: pa.StructArray) -> Callable[..., pa.StructArray]:
    """What stands in for Prior.score_columns and answers at once, for these documents."""
    place = {tuple(row): i for i, row in enumerate(rows)}

    def score_columns(self: toedit.Prior, columns: dict[str, pa.Array], k: int, *_: Any) -> pa.StructArray:
        return scores.take(pa.array([place[tuple(row)] for row in columns["input_ids"].to_pylist()], pa.int64()))

    return score_columns


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, precomputed: Callable[..., pa.StructArray]) -> None:
    """Scoring costs nothing."""
    monkeypatch.setattr(toedit.Prior, "score_columns", precomputed)


@pytest.fixture
def no_scoring(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, scoring is a failure."""

    def score_columns(*_: Any) -> None:
        raise AssertionError("a document was scored that is in the store")

    return lambda: monkeypatch.setattr(toedit.Prior, "score_columns", score_columns)


@pytest.fixture(scope="module")
def expected(prior: toedit.Prior, rows: Rows, scores: pa.StructArray, documents: Rows) -> Rows:
    """The documents as they are edited from a column."""
    edited = toedit.Editor(prior, POLICY)({"input_ids": rows, "scores": scores})["input_ids"]
    by_ids = {tuple(row): ids for row, ids in zip(rows, edited, strict=True)}
    return [by_ids[tuple(row)] for row in documents]


def editing(prior: toedit.Prior, path: Path, **settings: Any) -> toedit.Editor:
    return toedit.Editor(prior, POLICY, store=toedit.ScoreStore(path, **settings))


def held(editor: toedit.Editor) -> dict[str, int]:
    assert editor.store is not None
    return editor.store.stats()


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*.arrow") if not p.name.startswith("."))


def leftovers(path: Path) -> list[str]:
    """What lies in the folder beside the files and the lock."""
    return [p.name for p in path.iterdir() if p not in files(path) and p.name != ".lock"]


def assert_whole(path: Path) -> None:
    """Every value is what was written, and nothing else is there once somebody has looked."""
    assert toedit.ScoreStore(path).verify() == []
    assert leftovers(path) == []


@contextlib.contextmanager
def children(n: int, body: Callable[[int], None]) -> Iterator[list[Any]]:
    """Forked processes that run body(number)."""

    def run(number: int) -> None:
        try:
            body(number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    started = [FORK.Process(target=run, args=(number,)) for number in range(n)]
    for child in started:
        child.start()
    try:
        yield started
    finally:
        for child in started:
            child.kill()
            child.join()


def finish(started: list[Any]) -> None:
    for child in started:
        child.join(CHILD_SECONDS)
        assert child.exitcode == 0


# ---------------------------------------------------------------------------------------------------------------------
# editing


def test_edits_are_those_of_a_column(prior: toedit.Prior, rows: Rows, scores: pa.StructArray, tmp_path: Path) -> None:
    column = toedit.Editor(prior, POLICY)({"input_ids": rows, "scores": scores}, epoch=2)
    editor = editing(prior, tmp_path / "store")
    for edited in (editor({"input_ids": rows}, epoch=2), editor({"input_ids": rows}, epoch=2)):
        assert edited["input_ids"] == column["input_ids"]
        assert edited.log.equals(column.log)
        assert edited.counts == column.counts
    different = {tuple(row) for row in rows}
    assert held(editor) == {
        "files": 1,
        "bytes": files(tmp_path / "store")[0].stat().st_size,
        "documents": len(different),
        "tokens": sum(map(len, different)),
        "hits": len(rows),
        "misses": len(rows),
        "unstored": 0,
    }


def test_the_second_epoch_costs_no_prior(documents: Rows, expected: Rows, tmp_path: Path) -> None:
    """Nor does it in other batches, padded, by another store object."""
    with toedit.Prior.builtin() as prior:
        first = editing(prior, tmp_path)
        for start in range(0, len(documents), 16):
            first(documents[start : start + 16])
        runs = prior.stats()["runs"]
        assert runs > 0
        again = editing(prior, tmp_path)
        ids, mask = helpers.pad(documents[::-1], 600, left=True, value=-1)
        edited = again({"input_ids": ids, "attention_mask": mask})
        assert prior.stats()["runs"] == runs
    real = [[i for i, m in zip(row, of_row, strict=True) if m] for row, of_row in zip(edited["input_ids"], mask, strict=True)]
    assert real == expected[::-1]
    assert held(again)["misses"] == 0


@pytest.mark.usefixtures("quick")
def test_a_batch_that_is_there_in_part(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    editor = editing(prior, tmp_path)
    editor(documents[10:20])
    chosen = [12, 3, 19, 3, 10, 35, 3]  # one of those that are not there comes three times
    assert editor([documents[i] for i in chosen])["input_ids"] == [expected[i] for i in chosen]
    assert held(editor)["documents"] == 12
    assert (held(editor)["hits"], held(editor)["misses"]) == (3, 14)
    assert editor({"input_ids": pa.array([], pa.list_(pa.int64()))}).counts.rows == 0


@pytest.mark.usefixtures("quick")
def test_statistics_and_a_scores_column(
    prior: toedit.Prior, rows: Rows, scores: pa.StructArray, tmp_path: Path, no_scoring: Callable[[], None]
) -> None:
    """What a column says comes before what is stored, and is not stored. Statistics read the store, too."""
    editor = editing(prior, tmp_path)
    counts = editor({"input_ids": rows, "scores": scores}).counts
    assert files(tmp_path) == []
    editor(rows)
    no_scoring()
    assert editor.statistics(rows).candidates == counts.candidates


def test_generations(prior: toedit.Prior, documents: Rows, tmp_path: Path) -> None:
    """What a generation made is of one epoch, and is not stored."""
    store = toedit.ScoreStore(tmp_path)
    edited = [
        toedit.Editor(prior, POLICY, generations=2, store=given)(documents[:5])["input_ids"] for given in (None, store, store)
    ]
    assert edited[0] == edited[1] == edited[2]
    assert store.stats()["documents"] == 5


def _edit_elsewhere(editor: toedit.Editor, documents: Rows, answer: Any) -> None:
    edited = editor(documents)["input_ids"]
    answer.put((edited, held(editor)["misses"], editor.prior.stats()["runs"]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_however_they_start(
    prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path, method: str
) -> None:
    editor = editing(prior, tmp_path)
    editor(documents)
    context = multiprocessing.get_context(method)
    answer = context.SimpleQueue()
    child = context.Process(target=_edit_elsewhere, args=(editor, documents, answer))
    child.start()
    try:
        assert answer.get() == (expected, 0, 0)
    finally:
        child.join(CHILD_SECONDS)
        child.kill()


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_data_loader_workers(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path, persistent: bool) -> None:
    torch = pytest.importorskip("torch")
    from toedit.torch import EditCollator

    editor = editing(prior, tmp_path)

    def collate(rows: list[Any]) -> Any:
        return [row["input_ids"] for row in rows], (os.getpid(), editor.prior.stats()["runs"])

    loader = torch.utils.data.DataLoader(
        [{"input_ids": row} for row in documents],
        batch_size=8,
        num_workers=2,
        collate_fn=(collator := EditCollator(editor, collate)),
        persistent_workers=persistent,
        multiprocessing_context="fork",
        timeout=CHILD_SECONDS,
    )
    runs: list[dict[int, int]] = []
    counted = []
    for _ in range(2):
        batches = list(loader)
        assert [row for ids, _ in batches for row in ids] == expected
        runs.append(dict(of_batch for _, of_batch in batches))  # of each worker, at its last batch
        counted.append(collator.store_stats())
    rows = len(documents)
    assert counted == [{"hits": n * rows, "misses": rows, "unstored": 0} for n in (0, 1)]
    assert min(runs[0].values()) > 0
    assert runs[1] == (runs[0] if persistent else dict.fromkeys(runs[1], 0))
    assert held(editor)["documents"] == len(documents)


def test_pickling(prior: toedit.Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = toedit.ScoreStore("here", keep=[(0.5, 1)], max_bytes=10**9)
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(toedit.Editor(prior, POLICY, store=store))).store
    assert repr(again) == repr(store) == f"ScoreStore('{tmp_path}/here', k=8, keep=[(0.5, 1.0)], max_bytes=1000000000)"


# ---------------------------------------------------------------------------------------------------------------------
# many writers, killed writers


@pytest.mark.usefixtures("quick")
def test_many_writers(
    prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path, no_scoring: Callable[[], None]
) -> None:
    """Eight processes, each with all documents in an order of its own, while another one compacts all the time."""

    def write(number: int) -> None:
        if number == 8:
            for _ in range(20):
                toedit.ScoreStore(tmp_path).compact()
                time.sleep(0.02)
            return
        editor = editing(prior, tmp_path)
        for i in random.Random(number).sample(range(len(documents)), len(documents)):
            assert editor([documents[i]])["input_ids"] == [expected[i]]
        assert held(editor)["documents"] == len(documents)

    with children(9, write) as writers:
        finish(writers)
    no_scoring()
    assert editing(prior, tmp_path)(documents)["input_ids"] == expected
    assert_whole(tmp_path)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before_the_footer(patch: pytest.MonkeyPatch) -> None:
    """Killed with the documents in the file, and no end."""

    class Writer:
        def __init__(self, file: Any, schema: pa.Schema) -> None:
            self.file, self.writer = file, pa.ipc.RecordBatchFileWriter(file, schema)

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write_batch(self, batch: pa.RecordBatch) -> None:
            self.writer.write_batch(batch)
            self.file.flush()
            _kill()

    patch.setattr(pa.ipc, "new_file", Writer)


def _before_the_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "rename", lambda *_: _kill())


def _after_the_name(patch: pytest.MonkeyPatch) -> None:
    rename = os.rename
    patch.setattr(os, "rename", lambda *paths: (rename(*paths), _kill()))


def _when_joined(patch: pytest.MonkeyPatch) -> None:
    """Killed when a file is there that takes the place of others, and they are, too."""
    joined = _store_files.joined

    def joined_before_the_end(*arguments: Any) -> Any:
        _after_the_name(patch)
        return joined(*arguments)

    patch.setattr(_store_files, "joined", joined_before_the_end)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("at", "unfinished", "new", "new_files"),
    [(_before_the_footer, 1, 0, 0), (_before_the_name, 1, 0, 0), (_after_the_name, 0, 1, 1), (_when_joined, 0, _FAN, _FAN + 1)],
)
def test_killed_at_the_worst_moment(
    prior: toedit.Prior,
    documents: Rows,
    expected: Rows,
    tmp_path: Path,
    at: Callable[[pytest.MonkeyPatch], None],
    unfinished: int,
    new: int,
    new_files: int,
) -> None:
    editing(prior, tmp_path)(documents[:4])

    def write(_: int) -> None:
        at(pytest.MonkeyPatch())
        editor = editing(prior, tmp_path)
        for row in documents[4:]:
            editor([row])

    with children(1, write) as (child,):
        child.join(CHILD_SECONDS)
        assert child.exitcode == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == unfinished
    assert len(files(tmp_path)) == 1 + new_files
    editor = editing(prior, tmp_path)
    assert held(editor)["documents"] == 4 + new
    assert editor(documents)["input_ids"] == expected
    assert held(editor)["misses"] == len(documents) - 4 - new
    assert_whole(tmp_path)
    toedit.ScoreStore(tmp_path).compact()
    assert len(files(tmp_path)) == 1
    assert held(editor)["documents"] == len(documents)


@pytest.mark.usefixtures("quick")
def test_killed_at_any_moment(
    prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path, no_scoring: Callable[[], None]
) -> None:
    """Eighteen writers, six at a time, each killed somewhere in its work; nothing that was there is ever gone."""
    chance = random.Random(1)

    def write(_: int) -> None:
        editor = editing(prior, tmp_path)
        for i in random.Random(os.getpid()).sample(range(len(documents)), len(documents)):
            assert editor([documents[i]])["input_ids"] == [expected[i]]

    stored = 0
    for _ in range(3):
        with children(6, write) as writers:
            for child in writers:
                time.sleep(chance.uniform(0.02, 0.15))
                child.kill()
                assert (stored := max(stored, now := toedit.ScoreStore(tmp_path).stats()["documents"])) == now
    assert stored > 0
    assert editing(prior, tmp_path)(documents)["input_ids"] == expected
    no_scoring()
    assert editing(prior, tmp_path)(documents)["input_ids"] == expected
    assert_whole(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# no room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.getuid() != 0 or mount is None:
        pytest.skip("only root may mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def assert_goes_on(editor: toedit.Editor, documents: Rows, expected: Rows, match: str, verify: bool = True) -> None:
    """Everything is edited, though not everything could be stored, with one warning; what was stored is whole."""
    starts = range(0, len(documents), 4)
    with pytest.warns(toedit.StoreWarning, match=match) as caught:
        edited = [row for i in [*starts, *starts] for row in editor(documents[i : i + 4])["input_ids"]]
    assert edited == 2 * expected
    assert [Path(w.filename) for w in caught if w.category is toedit.StoreWarning] == [Path(__file__)]
    stats = held(editor)
    assert stats["unstored"] == stats["misses"] - stats["documents"] > 0
    assert editor.store is not None
    if verify and editor.store.path.exists():
        assert_whole(editor.store.path)


@pytest.mark.usefixtures("quick")
def test_a_full_disk(prior: toedit.Prior, documents: Rows, expected: Rows, small_disk: Path) -> None:
    editor = editing(prior, small_disk / "store")
    assert_goes_on(editor, documents, expected, r"cannot be stored in .*store: \[Errno 28\]")
    assert min(held(editor)["documents"], held(editor)["hits"]) > 0


@pytest.mark.usefixtures("quick")
def test_files_that_may_not_grow(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    """The same for whoever may not mount a disk: beyond some size the system refuses to write."""

    def write(_: int) -> None:
        _native.load()  # a forked process does so from a copy
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
        assert_goes_on(editing(prior, tmp_path), documents, expected, "cannot be stored.*too large")

    with children(1, write) as child:
        finish(child)


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_made(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_goes_on(editing(prior, tmp_path / "file" / "store"), documents, expected, "cannot be stored")
    with pytest.raises(toedit.InputError, match=r"file is no folder"):
        toedit.ScoreStore(tmp_path / "file")


@pytest.mark.usefixtures("quick")
def test_bounded_size(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    limit = 60_000
    editor = editing(prior, tmp_path, max_bytes=limit)
    assert_goes_on(editor, documents, expected, rf"is full \(max_bytes={limit}\)")
    assert limit / 2 < sum(path.stat().st_size for path in files(tmp_path)) <= limit
    assert held(editor)["hits"] > 0
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(toedit.InputError, match="max_bytes"):
            toedit.ScoreStore(tmp_path, max_bytes=wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_bounded_size_with_many_writers(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    limit = 60_000

    def write(number: int) -> None:
        warnings.simplefilter("ignore", toedit.StoreWarning)
        editor = editing(prior, tmp_path, max_bytes=limit)
        for i in random.Random(number).sample(range(len(documents)), len(documents)):
            assert editor([documents[i]])["input_ids"] == [expected[i]]

    with children(4, write) as writers:
        finish(writers)
    assert limit / 2 < sum(path.stat().st_size for path in files(tmp_path)) <= limit


@pytest.mark.usefixtures("quick")
def test_a_lock_that_is_not_let_go(
    prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch waits for it, those behind do not."""
    monkeypatch.setattr("toedit.store._PATIENCE", 0.5)
    editor = editing(prior, tmp_path)
    with _store_files.locked(str(tmp_path), 0):
        begun = time.monotonic()
        assert_goes_on(editor, documents, expected, "another process does not let go of its lock", verify=False)
        assert time.monotonic() - begun >= 0.5
    assert held(editor)["unstored"] == 2 * len(documents)
    editor(documents)
    assert held(editor)["documents"] == len(documents)


def test_a_child_that_was_forked_under_the_lock(tmp_path: Path) -> None:
    """It does not hold it when its parent has let go."""
    with contextlib.ExitStack() as stack:
        with _store_files.locked(str(tmp_path), 0):
            stack.enter_context(children(1, lambda _: time.sleep(CHILD_SECONDS)))
        with _store_files.locked(str(tmp_path), 0):
            pass


# ---------------------------------------------------------------------------------------------------------------------
# files


@pytest.fixture
def full(prior: toedit.Prior, documents: Rows, tmp_path: Path, quick: None) -> Path:
    """A store with all documents, in several files."""
    editor = editing(prior, tmp_path / "full")
    for i in range(0, len(documents), 20):
        editor(documents[i : i + 20])
    return tmp_path / "full"


def test_compaction_keeps_every_document(
    prior: toedit.Prior,
    documents: Rows,
    expected: Rows,
    full: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_scoring: Callable[[], None],
) -> None:
    """Each once, also for those who had the store open."""
    editing(prior, tmp_path / "twice")(documents[:30])
    for path in files(tmp_path / "twice"):
        shutil.copy(path, full)
    store, reading = toedit.ScoreStore(full), editing(prior, full)
    assert reading(documents)["input_ids"] == expected
    before = store.stats()
    monkeypatch.setattr("toedit.store._COMPACTED", before["bytes"] // 2)
    store.compact()
    after = store.stats()
    assert after["files"] in (2, 3)
    assert after["bytes"] < before["bytes"]
    assert [after[name] for name in ("documents", "tokens")] == [len(documents), sum(map(len, documents))]
    assert len(pyarrow.dataset.dataset(full, format="ipc").to_table()) == len(documents)
    assert_whole(full)
    monkeypatch.undo()
    store.compact()
    left = files(full)
    assert len(left) == 1
    store.compact()
    assert files(full) == left
    no_scoring()
    for editor in (reading, editing(prior, full)):
        assert editor(documents)["input_ids"] == expected


@pytest.mark.usefixtures("quick")
def test_there_are_never_many_small_files(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    """Also where another process has joined some of them."""
    editor = editing(prior, tmp_path)
    most = 0
    for n, row in enumerate(documents):
        editor([row])
        most = max(most, len(files(tmp_path)))
        if n == 40:
            toedit.ScoreStore(tmp_path).compact()
    assert len(documents) > 3 * _FAN
    assert most <= len(documents) // _FAN + _FAN
    assert editor(documents)["input_ids"] == expected
    assert held(editor)["misses"] == held(editor)["documents"] == len(documents)


def test_pyarrow_and_polars_open_the_files(full: Path, documents: Rows) -> None:
    table = pyarrow.dataset.dataset(full, format="ipc").to_table()
    assert table.schema.names == ["hash_high", "checksum", "scores"]
    assert table.schema.field("scores").type == toedit.SCORES_TYPE
    polars = pytest.importorskip("polars")
    frame = polars.read_ipc(full / "*.arrow")
    assert frame.select(polars.col("scores").struct.field("logp").list.len()).sum().item() == sum(map(len, documents))


def test_duckdb_opens_the_files(full: Path, documents: Rows) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    with duckdb.connect() as connection:
        connection.register("stored", pyarrow.dataset.dataset(full, format="ipc"))
        found = connection.execute("SELECT count(*), sum(len(scores.logp)) FROM stored").fetchone()
    assert found == (len(documents), sum(map(len, documents)))


def test_the_checksum_is_the_one_that_is_documented(full: Path) -> None:
    for row in pyarrow.dataset.dataset(full, format="ipc").to_table().to_pylist():
        scores = row["scores"]
        data = scores["ids_hash"].to_bytes(8, "little") + row["hash_high"].to_bytes(8, "little")
        data += scores["k"].to_bytes(4, "little")
        for name in ("logp", "topk_pos", "topk_ids", "topk_logp"):
            kind = toedit.SCORES_TYPE.field(name).type.value_type
            data += pa.array([value or 0 for value in scores[name]], kind).to_numpy().tobytes()
        assert zlib.crc32(data + scores["prior"].encode()) == row["checksum"]


# ---------------------------------------------------------------------------------------------------------------------
# mismatches


def test_another_prior(full: Path, documents: Rows) -> None:
    with toedit.Prior.builtin(min_context=100) as other:
        editor = editing(other, full)
        with pytest.raises(
            toedit.ScoresError, match=rf"holds scores of prior .* this prior is {other.fingerprint}; use another"
        ):
            editor(documents[:3])


def test_priors_and_stores_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(toedit.InputError, match="cross_documents"):
        toedit.Editor(toedit.Prior.builtin(cross_documents=True), store=toedit.ScoreStore(tmp_path))
    with pytest.raises(toedit.InputError, match=r"store is a str; it must be a toedit\.ScoreStore"):
        toedit.Editor(toedit.Prior.builtin(), store="scores")  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_packed_rows(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    """Documents are stored by themselves, and a row that holds several without their lengths is refused; columns that say it
    holds one do not matter."""
    editor = editing(prior, tmp_path)
    ids = documents[0]
    one = {"seq_lengths": [[len(ids)]], "position_ids": [list(range(len(ids)))], "document_ids": [[7] * len(ids)]}
    assert editor({"input_ids": [ids], **one})["input_ids"] == expected[:1]
    with pytest.raises(toedit.InputError, match=r"row 0 holds several documents .*token 3.*a column"):
        editor({"input_ids": [ids], "document_ids": [[7] * 3 + [8] * (len(ids) - 3)]})
    both = {"input_ids": [ids + documents[1]], "seq_lengths": [[len(ids), len(documents[1])]]}
    assert editor(both)["input_ids"] == [expected[0] + expected[1]]
    assert editor.store is not None
    assert editor.store.stats()["misses"] == 2


def test_what_a_policy_needs(prior: toedit.Prior, documents: Rows, tmp_path: Path) -> None:
    wide = toedit.ScoreStore(tmp_path / "wide", k=16, keep=[(0.0, 0.5), (0.5, 1.0)])
    for policy in (toedit.Policy(threshold=0.9, k=4), POLICY, toedit.Policy.preset("paper-low-0.1")):
        editor = toedit.Editor(prior, policy, store=wide)
        assert editor(documents[:4])["input_ids"] == toedit.Editor(prior, policy)(documents[:4])["input_ids"]
    assert wide.stats()["misses"] == 4
    narrow = toedit.ScoreStore(tmp_path / "narrow")
    for policy in (
        toedit.Policy(threshold=0.9),
        toedit.Policy(threshold=0.99, k=2),
        toedit.Policy.preset("reference-code-filter"),  # draws nothing
    ):
        toedit.Editor(prior, policy, store=narrow)(documents[:4])
    assert narrow.stats()["misses"] == 4
    for policy, needed in (
        (toedit.Policy(threshold=0.8), r"top-8 where P lies in \[0\.8, 1\]"),
        (toedit.Policy(threshold=0.9, k=9), r"top-9"),
    ):
        editor = toedit.Editor(prior, policy, store=narrow)
        with pytest.raises(
            toedit.ScoresError, match=rf"holds top-8 where P lies in \[0\.9, 1\], but the policy needs {needed}"
        ):
            editor(documents[:1])
    asked = toedit.ScoreStore(tmp_path / "narrow", keep=[(0.5, 1.0)])
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.95), store=asked)
    with pytest.raises(toedit.ScoresError, match=r"but top-8 where P lies in \[0\.5, 1\] was asked for"):
        editor(documents[:1])


def test_files_of_another_store(prior: toedit.Prior, documents: Rows, full: Path, tmp_path: Path) -> None:
    editing(prior, tmp_path / "other", k=16, keep=[(0.2, 1.0)])(documents[:1])
    shutil.copy(files(tmp_path / "other")[0], full)
    with pytest.raises(toedit.ScoresError, match="does not belong to this score store"):
        editing(prior, full)(documents[:1])
    assert any("unlike those before it" in sentence for sentence in toedit.ScoreStore(full).verify())


@pytest.mark.usefixtures("quick")
def test_scores_of_other_ids(prior: toedit.Prior, documents: Rows, tmp_path: Path) -> None:
    """Rows with each other's hash, whose number of tokens tells."""
    long, short = documents[0], next(row for row in documents if 0 < len(row) < len(documents[0]))
    editing(prior, tmp_path)([long, short])
    (path,) = files(tmp_path)
    file = _store_files.StoreFile(str(path))
    columns = {field.name: file.scores.field(field.name) for field in toedit.SCORES_TYPE}
    columns["ids_hash"] = columns["ids_hash"].take(pa.array([1, 0]))
    scores = pa.StructArray.from_arrays(list(columns.values()), fields=list(toedit.SCORES_TYPE))
    path.unlink()
    _store_files.write(str(tmp_path), _store_files.to_batch(scores, file.high[[1, 0]]), file.manifest)
    with pytest.raises(toedit.ScoresError, match=rf"has scores of {len(short)} tokens, but the document .* has {len(long)}"):
        editing(prior, tmp_path)([long])


@pytest.mark.usefixtures("quick")
def test_any_damage_is_found(prior: toedit.Prior, documents: Rows, expected: Rows, tmp_path: Path) -> None:
    """Wherever a bit of a file changes, the edits are the same, or there is an error that names the file."""
    chance = random.Random(2)
    editing(prior, tmp_path / "good")(documents[:6])
    (good,) = files(tmp_path / "good")
    data = good.read_bytes()
    found = 0
    for n in range(160):
        # Everywhere, and as often where offsets and lengths are.
        at = chance.randrange(len(data)) if n % 2 else chance.choice([chance.randrange(3000), -1 - chance.randrange(5000)])
        changed = bytearray(data)
        changed[at] ^= 1 << chance.randrange(8)
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / good.name).write_bytes(changed)
        edited, error = None, ""
        try:
            edited = editing(prior, folder)(documents[:6])["input_ids"]
        except toedit.ScoresError as raised:
            error = str(raised)
        assert edited == expected[:6] or str(folder) in error
        found += bool(error)
    assert found > 50


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_files_that_end_too_early(
    prior: toedit.Prior, documents: Rows, full: Path, kept: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files(full)[1]
    data = path.read_bytes()
    path.write_bytes(data[: int(kept if kept >= 1 else len(data) * kept)])
    editor = editing(prior, full)
    with pytest.raises(
        toedit.ScoresError, match=rf"{path.name} is damaged: .*Delete the file; its documents will be scored again"
    ):
        editor(documents)
    with pytest.raises(toedit.ScoresError, match=path.name):
        toedit.ScoreStore(full).compact()
    assert command(["store", "verify", str(full)]) == 1
    assert path.name in capsys.readouterr().out
    path.unlink()
    editor(documents)
    assert held(editor)["documents"] == len(documents)


def test_files_of_others(prior: toedit.Prior, documents: Rows, full: Path) -> None:
    (full / "notes.txt").touch()
    with pa.OSFile(str(full / "mine.arrow"), "wb") as file, pa.ipc.new_file(file, pa.schema([("x", pa.int64())])):
        pass
    with pytest.raises(toedit.ScoresError, match=r"mine\.arrow is not a file of a score store; move it"):
        editing(prior, full)(documents[:1])
    (full / "mine.arrow").unlink()
    path = files(full)[0]
    with pa.ipc.open_file(path.read_bytes()) as reader:
        schema, batch = reader.schema, reader.get_batch(0)
    manifest = json.loads(schema.metadata[b"toedit"])
    for changed in ({**manifest, "format": 2}, {"format": 1}, []):
        metadata = {b"toedit": json.dumps(changed).encode()}
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema.with_metadata(metadata)) as writer:
            writer.write_batch(batch)
        with pytest.raises(toedit.ScoresError, match=path.name):
            editing(prior, full)(documents[:1])


# ---------------------------------------------------------------------------------------------------------------------
# the command line


def test_commands(prior: toedit.Prior, documents: Rows, full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (full / ".unfinished-1.arrow").touch()
    for name, n in (("stats", len(files(full))), ("compact", 1), ("stats", 1)):
        assert command(["store", name, str(full)]) == 0
        out = capsys.readouterr().out
        assert f"{len(documents):,} documents, {sum(map(len, documents)):,} tokens" in out
        assert f"in {n} files" in out
        assert prior.fingerprint in out
        assert "top-16 where P lies in [0.3, 1]" in out
    assert leftovers(full) == []
    assert command(["store", "verify", str(full)]) == 0
    assert "every value of 1 files" in capsys.readouterr().out
    assert command(["store", "stats", str(full / "nothing")]) == 1
    assert "there is no score store" in capsys.readouterr().err
    done = subprocess.run([sys.executable, "-m", "toedit", "store", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("stats", "verify", "compact"))
