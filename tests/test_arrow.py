"""Batches come back in the container and the dtype that they came in, without copies where memory allows, and nothing
stays behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

import helpers
import oracle
import toedit
from toedit import _arrow, _bridge

polars = pytest.importorskip("polars")

Rows = list[list[int]]
Batch = dict[str, Any]

POLICY = toedit.Policy(threshold=0.5, temperature=2.0)
LIST_TYPES = [
    list_(value) for list_ in (pa.list_, pa.large_list) for value in (pa.int32(), pa.int64(), pa.uint16(), pa.uint32())
]
FIXED_TYPES = [pa.list_(value, 16) for value in (pa.int32(), pa.int64(), pa.uint16(), pa.uint32())]


@pytest.fixture
def editor(small_prior: toedit.Prior) -> toedit.Editor:
    return toedit.Editor(small_prior, POLICY, seed=5)


@pytest.fixture
def expected(editor: toedit.Editor, small_batch: tuple[Rows, list[oracle.Scores]]) -> Rows:
    """What becomes of the rows of `small_batch`."""
    result = helpers.reference(editor, *small_batch)
    assert result["changes"] > 10
    return result["ids"]


@pytest.fixture(scope="module")
def square(small_prior: toedit.Prior) -> tuple[Rows, pa.StructArray]:
    """Six rows of 16 ids, with scores."""
    rng = np.random.default_rng(12)
    ids = rng.integers(0, 512, size=(6, 16)).tolist()
    scores = [oracle.make_scores(rng, row, 512, 8, 0.5, small_prior.fingerprint) for row in ids]
    return ids, oracle.scores_to_arrow(scores)


@pytest.fixture
def square_expected(editor: toedit.Editor, square: tuple[Rows, pa.StructArray]) -> Rows:
    return helpers.reference(editor, square[0], helpers.scores_of(square[1]))["ids"]


class OnlyArray:
    """An object of some other library: it has __arrow_c_array__ and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self._array.__arrow_c_array__(requested_schema)


class OnlyStream:
    """The same with __arrow_c_stream__."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


# pyarrow


def pyarrow_batch(columns: Batch) -> pa.RecordBatch:
    n = len(columns["input_ids"])
    others = {"text": pa.array([f"row {i}" for i in range(n)]), "number": pa.array(range(n), pa.int16())}
    return pa.RecordBatch.from_pydict({"text": others["text"], **columns, "number": others["number"]})


@pytest.mark.parametrize("list_type", LIST_TYPES, ids=str)
def test_record_batch(editor: toedit.Editor, small_columns: Batch, expected: Rows, list_type: pa.DataType) -> None:
    batch = pyarrow_batch(small_columns | {"input_ids": small_columns["input_ids"].cast(list_type)})
    edited = editor(batch)
    assert isinstance(edited.batch, pa.RecordBatch)
    assert edited.batch.schema.equals(batch.schema)
    assert edited["input_ids"].to_pylist() == expected
    edited.batch.validate(full=True)
    assert same_memory(edited.batch, batch, "text", "number", "scores")


@pytest.mark.parametrize("list_type", FIXED_TYPES, ids=str)
def test_fixed_size_lists(
    editor: toedit.Editor,
    square: tuple[Rows, pa.StructArray],
    square_expected: Rows,
    list_type: pa.DataType,
) -> None:
    ids = pa.array(square[0], list_type)
    whole = editor({"input_ids": ids, "scores": square[1]})
    assert whole["input_ids"].type.equals(list_type)
    assert whole["input_ids"].to_pylist() == square_expected
    part = editor({"input_ids": ids[2:5], "scores": square[1][2:5]})
    assert part["input_ids"].type.equals(list_type)
    assert part["input_ids"].to_pylist() == square_expected[2:5]


@pytest.mark.parametrize("list_type", LIST_TYPES, ids=str)
def test_sliced_arrays(editor: toedit.Editor, small_columns: Batch, expected: Rows, list_type: pa.DataType) -> None:
    column = small_columns["input_ids"].cast(list_type)
    for start, stop in ((1, 5), (2, 3), (0, 4), (4, 5), (3, 3)):
        batch = pyarrow_batch({"input_ids": column, "scores": small_columns["scores"]})[start:stop]
        edited = editor(batch)
        assert edited["input_ids"].to_pylist() == expected[start:stop]
        assert edited.batch.schema.equals(batch.schema)
    # A list array whose values are themselves a slice of something longer.
    values = pa.concat_arrays([pa.array([9, 9, 9], list_type.value_type), column.flatten()])[3:]
    lists = type(column).from_arrays(column.offsets, values)
    edited = editor({"input_ids": lists, "scores": small_columns["scores"]})
    assert edited["input_ids"].to_pylist() == expected


def test_table_of_several_chunks(editor: toedit.Editor, small_columns: Batch, expected: Rows) -> None:
    batch = pyarrow_batch(small_columns)
    table = pa.Table.from_batches([batch[:2], batch[2:2], batch[2:4], batch[4:]])
    edited = editor(table)
    assert isinstance(edited.batch, pa.Table)
    assert edited.batch.schema.equals(table.schema)
    assert edited["input_ids"].to_pylist() == expected
    assert [len(c) for c in edited["input_ids"].chunks] == [2, 0, 2, 1]
    assert same_memory(edited.batch, table, "text", "number", "scores")
    assert edited.log["row"].to_pylist() == sorted(edited.log["row"].to_pylist())
    assert editor(table[1:4])["input_ids"].to_pylist() == expected[1:4]


def test_schema_metadata_and_nullability_stay(editor: toedit.Editor, small_columns: Batch) -> None:
    item = pa.field("token", pa.int32(), nullable=False)
    schema = pa.schema(
        [
            pa.field("input_ids", pa.list_(item), nullable=False, metadata={"unit": "token"}),
            pa.field("scores", toedit.SCORES_TYPE),
        ],
        metadata={"source": "a test"},
    )
    ids = pa.array(small_columns["input_ids"].to_pylist(), schema.field("input_ids").type)
    batch = pa.RecordBatch.from_arrays([ids, small_columns["scores"]], schema=schema)
    assert editor(batch).batch.schema.equals(schema, check_metadata=True)


def test_struct_array(editor: toedit.Editor, small_columns: Batch, expected: Rows) -> None:
    array = pyarrow_batch(small_columns).to_struct_array()
    for piece, rows in ((array, expected), (array[1:], expected[1:])):
        edited = editor(piece)
        assert isinstance(edited.batch, pa.StructArray)
        assert edited.batch.type.equals(array.type)
        assert edited["input_ids"].to_pylist() == rows
        assert edited["text"].to_pylist() == piece.field("text").to_pylist()


def test_ids_alone_as_arrays(prior: toedit.Prior, rows: Rows) -> None:
    """Rows without anything beside them are scored here."""
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, exclude_original=True))
    expected = editor(rows[:3])
    assert expected.batch == expected["input_ids"] != rows[:3]
    array = pa.array(rows[:3], pa.large_list(pa.int32()))
    edited = editor(array)
    assert isinstance(edited.batch, pa.LargeListArray)
    assert edited.batch.type.equals(array.type)
    assert edited["input_ids"].to_pylist() == expected.batch
    chunked = pa.chunked_array([array[:1], array[1:]])
    edited = editor(chunked)
    assert isinstance(edited.batch, pa.ChunkedArray)
    assert [len(c) for c in edited.batch.chunks] == [1, 2]
    assert edited.batch.to_pylist() == expected.batch


def same_memory(after: Any, before: Any, *names: str) -> bool:
    """Columns that are not edited are the very buffers that came in."""

    def addresses(column: Any) -> list[int]:
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return [b.address for chunk in chunks for b in chunk.buffers() if b is not None]

    return all(addresses(after[name]) == addresses(before[name]) for name in names)


# Other Arrow libraries


@pytest.mark.parametrize("holder", [OnlyArray, OnlyStream])
def test_a_holder_with_nothing_but_the_dunder(
    editor: toedit.Editor, small_columns: Batch, expected: Rows, holder: Callable[[Any], Any]
) -> None:
    batch = pyarrow_batch(small_columns)
    edited = editor(holder(batch if holder is OnlyArray else pa.Table.from_batches([batch[:2], batch[2:]])))
    assert edited["input_ids"].to_pylist() == expected
    assert edited["text"].to_pylist() == batch["text"].to_pylist()
    assert isinstance(edited.batch, pa.RecordBatch if holder is OnlyArray else pa.Table)
    # The same for columns in a mapping.
    columns = {name: batch[name] for name in ("input_ids", "scores")}
    if holder is OnlyStream:
        columns = {name: pa.chunked_array([column[:2], column[2:]]) for name, column in columns.items()}
    edited = editor({name: holder(column) for name, column in columns.items()})
    assert edited["input_ids"].to_pylist() == expected


@pytest.mark.parametrize("holder", [OnlyArray, OnlyStream])
def test_scoring_a_holder(prior: toedit.Prior, rows: Rows, holder: Callable[[Any], Any]) -> None:
    ids = pa.array(rows[:3], pa.list_(pa.uint16()))
    given = holder(ids if holder is OnlyArray else pa.chunked_array([ids[:1], ids[1:]]))
    assert prior.score(given).equals(prior.score(rows[:3]))


def test_an_edited_batch_is_a_producer_itself(editor: toedit.Editor, small_columns: Batch, expected: Rows) -> None:
    """What comes out lives in C memory and may outlive everything that made it."""
    edited = editor(pyarrow_batch(small_columns))
    ids = pa.array(OnlyArray(edited["input_ids"]))
    log = pa.record_batch(OnlyArray(edited.log))
    before = helpers.usage()
    del edited, editor
    gc.collect()
    assert ids.to_pylist() == expected
    assert log.num_rows > 10
    assert 0 < helpers.usage()[0] <= before[0]


POLARS_LISTS = [polars.List(t) for t in (polars.Int32, polars.Int64, polars.UInt16, polars.UInt32)]


@pytest.mark.parametrize("dtype", POLARS_LISTS, ids=str)
def test_polars_frame(editor: toedit.Editor, small_columns: Batch, expected: Rows, dtype: Any) -> None:
    frame = polars.DataFrame(
        {
            "input_ids": polars.Series(small_columns["input_ids"].to_pylist(), dtype=dtype),
            "scores": polars.Series(small_columns["scores"]),
            "kind": polars.Series(["a", "b", "a", "a", "b"], dtype=polars.Categorical),
            "size": polars.Series(["s", "l", "l", "s", "s"], dtype=polars.Enum(["s", "l"])),
        }
    )
    edited = editor(frame)
    assert isinstance(edited.batch, polars.DataFrame)
    assert edited.batch.schema == frame.schema
    assert edited["input_ids"].to_list() == expected
    assert edited.batch.drop("input_ids").equals(frame.drop("input_ids"))
    several = polars.concat([frame[:2], frame[2:]], rechunk=False)
    assert editor(several)["input_ids"].to_list() == expected


def test_polars_arrays(editor: toedit.Editor, square: tuple[Rows, pa.StructArray], square_expected: Rows) -> None:
    frame = polars.DataFrame({"input_ids": polars.Series(square[0], dtype=polars.Array(polars.Int32, 16)), "scores": square[1]})
    edited = editor(frame)
    assert edited.batch.schema == frame.schema
    assert edited["input_ids"].to_list() == square_expected


def test_polars_series(prior: toedit.Prior, rows: Rows) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, exclude_original=True))
    expected = editor(rows[:4]).batch
    series = polars.Series("tokens", rows[:4], dtype=polars.List(polars.UInt32))
    edited = editor(series)
    assert isinstance(edited.batch, polars.Series)
    assert edited.batch.name == "tokens"
    assert edited.batch.dtype == series.dtype
    assert edited["input_ids"].to_list() == expected
    structs = polars.DataFrame({"input_ids": series, "n": range(4)}).to_struct("rows")
    edited = editor(structs)
    assert isinstance(edited.batch, polars.Series)
    assert edited.batch.name == "rows"
    assert edited.batch.dtype == structs.dtype
    assert edited["input_ids"].to_list() == expected
    # In a mapping, where a column has a container of its own.
    mapping = editor({"input_ids": series, "n": [1, 2, 3, 4]})
    assert isinstance(mapping["input_ids"], polars.Series)
    assert mapping["input_ids"].dtype == series.dtype
    assert mapping["input_ids"].to_list() == expected


def test_polars_scores(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    """Scores that went through polars (large lists) give the same edits."""
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, k=16))
    frame = polars.DataFrame({"input_ids": rows, "scores": polars.Series(scores)})
    assert editor(frame)["input_ids"].to_list() == editor({"input_ids": rows, "scores": scores})["input_ids"]


# Lists, NumPy, torch


def test_lists(editor: toedit.Editor, small_columns: Batch, expected: Rows) -> None:
    other = object()
    ids = small_columns["input_ids"].to_pylist()
    for scores in (small_columns["scores"], small_columns["scores"].to_pylist(), list(small_columns["scores"])):
        edited = editor({"input_ids": ids, "scores": scores, "other": other})
        assert type(edited.batch) is dict
        assert edited["input_ids"] == expected
        assert edited["scores"] is scores
        assert edited["other"] is other
    assert ids == small_columns["input_ids"].to_pylist()  # not edited in place


NO_IMPORT = """
import sys

class Absent:
    looked_for = []
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("pandas", "dateutil"):
            self.looked_for.append(name)
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Absent())
import pyarrow as pa, toedit
from toedit import _arrow
editor = toedit.Editor(toedit.Prior.builtin(), toedit.Policy(threshold=0.1))
rows = [list(range(5, 60)), [], [7] * 30]
batch = {"input_ids": rows, "labels": rows, "scores": editor.prior.score(rows, keep=editor.policy)}
editor(batch)  # pyarrow looks for pandas once
Absent.looked_for.clear()
assert editor(batch)["input_ids"] != rows
assert not Absent.looked_for, Absent.looked_for
pa.array([0.5])  # what this would notice
assert Absent.looked_for
"""


def test_lists_of_integers_need_no_import() -> None:
    """Where pandas is missing, pyarrow tries to import something at every array of Python objects whose type it is not told."""
    helpers.python(NO_IMPORT)


def test_lists_come_back_as_pyarrow_makes_them() -> None:
    halves = np.float32([0.1, 2.5, -1])
    for column in (
        pa.array([[1, 2], [], [3]]),
        pa.array([[1, 2], [3], [4, 5, 6], []])[1:],
        pa.array([[1, 2], [3], [4, 5, 6], []])[1:3],
        pa.array([[1]])[:0],
        pa.array([[1, 2], [3]], pa.large_list(pa.uint16()))[1:],
        pa.array([[2**63]], pa.list_(pa.uint64())),
        pa.array([halves.tolist()], pa.list_(pa.float32())),
        pa.array([[1, None], None, []]),
        pa.array([[True], ["a"]][:1]),
        pa.array([["a"], []]),
        pa.array([[[1]], []]),
        pa.array([1, 2]),
        pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2),
    ):
        got, want = _arrow.to_lists(column), column.to_pylist()
        assert got == want
        assert [type(v) for row in got for v in (row or [] if isinstance(row, list) else [row])] == [
            type(v) for row in want for v in (row or [] if isinstance(row, list) else [row])
        ]


@pytest.mark.parametrize(
    "rows",
    [
        *([[1, 2], []], [[]], [[-(2**63), 2**63 - 1]], [[True]], [[1.0]], [[1, None]], [[1], None]),
        *([[np.int32(3)]], [["a"]], [[[1]]], [[b"a"], []]),
    ],
)
def test_lists_have_the_types_that_pyarrow_finds(rows: list[Any]) -> None:
    array, back = _arrow.to_arrow(rows, "other")
    want = pa.array(rows)
    assert array.type == (pa.list_(pa.int64()) if pa.types.is_null(getattr(want.type, "value_type", None)) else want.type)
    assert back(array) == rows


def test_integers_and_truths_are_no_column() -> None:
    with pytest.raises(toedit.InputError, match=r"row 1: other cannot be read: .*bool"):
        _arrow.to_arrow([[1], [1, True]], "other")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.uint32])
@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "readonly"])
def test_numpy_matrix(
    editor: toedit.Editor, square: tuple[Rows, pa.StructArray], square_expected: Rows, dtype: Any, layout: str
) -> None:
    ids = np.array(square[0], dtype=dtype)
    if layout == "fortran":
        ids = np.asfortranarray(ids)
    elif layout == "strided":
        ids = np.repeat(np.repeat(ids, 2, axis=0), 3, axis=1)[::2, ::3]
    elif layout == "readonly":
        ids.flags.writeable = False
    before = ids.copy()
    edited = editor({"input_ids": ids, "scores": square[1]})["input_ids"]
    assert isinstance(edited, np.ndarray)
    assert edited.dtype == dtype
    assert edited.tolist() == square_expected
    assert edited.flags.writeable
    assert (ids == before).all()


def test_list_of_numpy_rows(editor: toedit.Editor, small_columns: Batch, expected: Rows) -> None:
    for dtype in (np.int32, np.int64, np.uint16, np.uint32):
        ids = [np.array(row, dtype) for row in small_columns["input_ids"].to_pylist()]
        edited = editor({"input_ids": ids, "scores": small_columns["scores"]})["input_ids"]
        assert isinstance(edited, list)
        assert {type(row) for row in edited} == {np.ndarray}
        assert {row.dtype for row in edited} == {np.dtype(dtype)}
        assert [row.tolist() for row in edited] == expected
        edited[0][0] = 1  # each may be written to, and shares nothing with what came in
        assert [row.tolist() for row in ids] == small_columns["input_ids"].to_pylist()


def test_numpy_alone(prior: toedit.Prior) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, exclude_original=True))
    ids = np.random.default_rng(1).integers(1, 4096, (3, 20), dtype=np.uint16)
    edited = editor(ids)
    assert isinstance(edited.batch, np.ndarray)
    assert edited.batch.dtype == np.uint16
    assert edited.batch.tolist() == editor(ids.tolist()).batch
    assert edited["input_ids"] is edited.batch


def test_torch_matrix(editor: toedit.Editor, square: tuple[Rows, pa.StructArray], square_expected: Rows) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.int32, torch.int64, torch.uint16, torch.uint32):
        ids = torch.tensor(square[0]).to(dtype)
        mask, labels = torch.ones(6, 16, dtype=torch.int64), torch.tensor(square[0])
        edited = editor({"input_ids": ids, "attention_mask": mask, "labels": labels, "scores": square[1]})
        assert isinstance(edited["input_ids"], torch.Tensor)
        assert edited["input_ids"].dtype == dtype
        assert edited["input_ids"].tolist() == edited["labels"].tolist() == square_expected
        assert edited["labels"].dtype == torch.int64
        assert edited["attention_mask"] is mask
        assert ids.tolist() == labels.tolist() == square[0]
        edited["input_ids"].fill_(3)
    columns_apart = editor({"input_ids": torch.tensor(square[0]).T.contiguous().T, "scores": square[1]})
    assert columns_apart["input_ids"].tolist() == square_expected


def test_list_of_torch_rows(editor: toedit.Editor, small_columns: Batch, expected: Rows) -> None:
    torch = pytest.importorskip("torch")
    ids = [torch.tensor(row, dtype=torch.int64) for row in small_columns["input_ids"].to_pylist()]
    edited = editor({"input_ids": ids, "scores": small_columns["scores"]})["input_ids"]
    assert all(isinstance(row, torch.Tensor) and row.dtype == torch.int64 for row in edited)
    assert [row.tolist() for row in edited] == expected
    edited[0].zero_()
    assert edited[-1].tolist() == expected[-1]


# Rows as mappings


def row_forms() -> dict[str, Callable[[list[int]], Any]]:
    return {"list": list, "numpy": np.array, "torch": lambda row: pytest.importorskip("torch").tensor(row).long()}


@pytest.mark.parametrize("form", ["list", "numpy", "torch"])
@pytest.mark.parametrize("scores_as", ["dicts", "scalars", "numpy dicts"])
def test_list_of_mappings(editor: toedit.Editor, small_columns: Batch, expected: Rows, form: str, scores_as: str) -> None:
    make = row_forms()[form]
    scores = list(small_columns["scores"]) if scores_as == "scalars" else small_columns["scores"].to_pylist()
    if scores_as == "numpy dicts":  # as datasets gives them with its numpy format
        scores = [
            {name: np.array(v, dtype=np.float32) if name == "logp" and None not in v else v for name, v in row.items()}
            for row in scores
        ]
    rows = [
        {"n": n, "input_ids": make(ids), "labels": make([-100, *ids[1:]][: len(ids)]), "scores": s}
        for n, (ids, s) in enumerate(zip(small_columns["input_ids"].to_pylist(), scores, strict=True))
    ]
    edited = editor(rows)
    assert isinstance(edited.batch, list)
    assert helpers.as_lists(edited["input_ids"]) == expected  # the first token is unscored anyway
    for before, after, ids in zip(rows, edited.batch, expected, strict=True):
        assert list(after) == list(before)
        assert after["n"] == before["n"]
        assert after["scores"] is before["scores"]
        assert type(after["input_ids"]) is type(before["input_ids"])
        assert type(after["labels"]) is type(before["labels"])
        assert list(after["labels"]) == [-100, *ids[1:]][: len(ids)]
    assert [row["n"] for row in edited.batch] == list(edited["n"]) == [0, 1, 2, 3, 4]


def test_batch_encoding(prior: toedit.Prior) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(prior.path)
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["the following table lists the names of the", "a class is a class is a class"]
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.2, exclude_original=True), tokenizer=tokenizer)
    plain = tokenizer(texts)
    expected = editor(plain)
    assert type(expected.batch) is type(plain)
    assert expected.changes > 0
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        edited = editor(batch)
        assert type(edited.batch) is type(batch)
        assert edited["input_ids"].dtype == torch.int64
        assert edited["attention_mask"] is batch["attention_mask"]
        real = batch["attention_mask"].bool()
        rows = [ids[keep].tolist() for ids, keep in zip(edited["input_ids"], real, strict=True)]
        assert rows == expected["input_ids"]
        assert batch["input_ids"][real].tolist() != edited["input_ids"][real].tolist()


def test_other_columns_are_what_they_were(editor: toedit.Editor, small_columns: Batch) -> None:
    """Not looked at, not copied: any object may stand there."""
    other = object()
    edited = editor(small_columns | {"other": other})
    assert edited["other"] is other
    assert list(edited) == ["input_ids", "scores", "other"]


# Batches without rows or tokens


@pytest.mark.parametrize("list_type", [*LIST_TYPES, *FIXED_TYPES], ids=str)
def test_no_rows(editor: toedit.Editor, small_columns: Batch, list_type: pa.DataType) -> None:
    ids = pa.array([], list_type)
    scores = small_columns["scores"][:0]
    for batch in (
        pa.RecordBatch.from_pydict({"input_ids": ids, "scores": scores, "labels": ids.cast(pa.list_(pa.int64()))})
        if pa.types.is_list(list_type) else pa.RecordBatch.from_pydict({"input_ids": ids, "scores": scores}),
        pa.table({"input_ids": pa.chunked_array([], list_type), "scores": pa.chunked_array([], toedit.SCORES_TYPE)}),
    ):  # fmt: skip
        edited = editor(batch)
        assert edited.batch.schema.equals(batch.schema)
        assert edited.batch.num_rows == edited.counts.rows == edited.log.num_rows == 0


def test_no_rows_in_other_containers(small_prior: toedit.Prior, prior: toedit.Prior) -> None:
    torch = pytest.importorskip("torch")
    editor = toedit.Editor(small_prior, key="doc", offset="at")
    edited = editor({"input_ids": [], "scores": [], "doc": [], "at": [], "labels": [], "attention_mask": []})
    assert edited.batch == {"input_ids": [], "scores": [], "doc": [], "at": [], "labels": [], "attention_mask": []}
    assert len(prior.score([])) == 0
    assert prior.score([]).type.equals(toedit.SCORES_TYPE)
    plain = toedit.Editor(prior)
    assert plain([]).batch == []
    for empty in (np.zeros((0, 5), np.int32), np.zeros((3, 0), np.uint16), np.zeros((0, 0), np.int64)):
        edited = plain(empty)
        assert edited.batch.shape == empty.shape
        assert edited.batch.dtype == empty.dtype
        assert edited.counts.empty_rows == len(empty)
        assert plain({"input_ids": torch.from_numpy(empty.astype(np.int64))})["input_ids"].shape == empty.shape
    assert plain({"input_ids": [[], []]})["input_ids"] == [[], []]
    assert [row.dtype for row in plain([np.zeros(0, np.int32)]).batch] == [np.int32]


# Copies and counters


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The columns of every call into the native library."""
    calls: list[Batch] = []
    init = _bridge.ArrowIn.__init__

    def spy(self: Any, columns: Batch) -> None:
        calls.append(columns)
        init(self, columns)

    monkeypatch.setattr(_bridge.ArrowIn, "__init__", spy)
    return calls


def test_memory_goes_in_without_a_copy(editor: toedit.Editor, square: tuple[Rows, pa.StructArray], sent: list[Batch]) -> None:
    torch = pytest.importorskip("torch")
    scores = square[1]
    matrix = np.array(square[0], np.int64)
    tensor = torch.tensor(square[0], dtype=torch.int32)
    array = pa.array(square[0], pa.large_list(pa.uint32()))
    frame = polars.DataFrame({"input_ids": polars.Series(square[0], dtype=polars.List(polars.Int64)), "scores": scores})
    exported = pa.chunked_array(frame["input_ids"]).chunk(0)
    for batch, address in (
        ({"input_ids": matrix, "scores": scores}, matrix.ctypes.data),
        ({"input_ids": tensor, "scores": scores}, tensor.data_ptr()),
        ({"input_ids": array, "scores": scores}, values_address(array)),
        (pa.table({"input_ids": array, "scores": scores}), values_address(array)),
        (OnlyArray(pa.record_batch({"input_ids": array, "scores": scores})), values_address(array)),
        (frame, values_address(exported)),
    ):
        editor(batch)
        column = sent[-1]["input_ids"]
        assert values_address(column) == address
        if not isinstance(batch, polars.DataFrame):
            assert sent[-1]["scores"].field("logp").values.buffers()[1].address == (
                scores.field("logp").values.buffers()[1].address
            )
    sent.clear()


def values_address(lists: Any) -> int:
    return int(lists.values.buffers()[1].address)


def test_counters_show_what_is_held_and_go_back(editor: toedit.Editor, small_columns: Batch) -> None:
    editor(small_columns)
    gc.collect()
    before, pool = helpers.usage(), pa.total_allocated_bytes()
    edited = editor(small_columns)
    size, exports, handles = helpers.usage()
    ids = small_columns["input_ids"].values.nbytes
    assert size - before[0] >= ids  # the edited ids live on the C heap
    assert exports > before[1]
    assert handles == before[2]
    ids_only = edited["input_ids"]
    del edited
    gc.collect()
    assert ids_only.to_pylist()
    assert helpers.usage()[1] > before[1]
    del ids_only
    gc.collect()
    assert helpers.usage() == before
    assert pa.total_allocated_bytes() == pool


def test_counters_go_back_after_errors(editor: toedit.Editor, small_columns: Batch) -> None:
    editor(small_columns)
    gc.collect()
    before, pool = helpers.usage(), pa.total_allocated_bytes()
    for batch in (
        small_columns | {"scores": small_columns["scores"].take(pa.array([0, 2, 1, 3, 4]))},
        small_columns | {"attention_mask": [[1]] * 5},
        {"input_ids": [[1], [-1]], "scores": small_columns["scores"][:2]},
    ):
        with pytest.raises(toedit.Error):
            editor(batch)
    del batch
    gc.collect()
    assert helpers.usage() == before
    assert pa.total_allocated_bytes() == pool


def test_scores_hold_memory_until_they_go(prior: toedit.Prior) -> None:
    before = helpers.usage()
    scores = prior.score([[5, 6, 7, 8]] * 3)
    part = scores.field("logp").slice(1, 1)
    assert helpers.usage()[0] > before[0]
    del scores
    gc.collect()
    assert part.to_pylist()[0]
    assert helpers.usage()[0] > before[0]
    del part
    gc.collect()
    assert helpers.usage() == before


# Scores on their way through files and frameworks


def same_edits(prior: toedit.Prior, rows: Rows, scores: pa.StructArray, batch: Any) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, k=16, temperature=1.5), seed=8)
    expected = editor({"input_ids": rows, "scores": scores})
    edited = editor(batch)
    assert helpers.as_lists(edited["input_ids"]) == expected["input_ids"]
    assert edited.expected_changes == expected.expected_changes
    assert edited.changes > 100


def test_parquet(prior: toedit.Prior, rows: Rows, scores: pa.StructArray, tmp_path: Path) -> None:
    table = pa.table({"input_ids": rows, "scores": scores})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=20)
    read = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert read["scores"].combine_chunks().equals(scores)
    same_edits(prior, rows, scores, read)
    same_edits(prior, rows, scores, polars.read_parquet(tmp_path / "a.parquet"))


def test_feather(prior: toedit.Prior, rows: Rows, scores: pa.StructArray, tmp_path: Path) -> None:
    table = pa.table({"input_ids": rows, "scores": scores})
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow", compression="zstd")
    read = pyarrow.feather.read_table(tmp_path / "a.arrow")
    assert read["scores"].combine_chunks().equals(scores)
    same_edits(prior, rows, scores, read)


def test_half_floats_lose_nothing_of_the_draws(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    names = [f.name for f in toedit.SCORES_TYPE]
    columns = [scores.field(name) for name in names]
    half = columns[3].cast(pa.large_list(pa.float16()))
    assert half.cast(columns[3].type).equals(columns[3])
    columns[3] = half
    smaller = pa.StructArray.from_arrays(columns, names=names)
    same_edits(prior, rows, scores, {"input_ids": rows, "scores": smaller})


def test_large_lists_and_another_order_of_fields(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    fields = list(toedit.SCORES_TYPE)[::-1]
    wide = [scores.field(f.name).cast(pa.large_list(f.type.value_type)) if pa.types.is_list(f.type)
            else scores.field(f.name) for f in fields]  # fmt: skip
    wide[0] = scores.field("prior").dictionary_encode()
    moved = pa.StructArray.from_arrays(wide, names=[f.name for f in fields])
    same_edits(prior, rows, scores, {"input_ids": rows, "scores": moved})
    same_edits(prior, rows, scores, {"input_ids": rows, "scores": pa.chunked_array([scores[:3], scores[3:]])})


def test_python_objects(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    same_edits(prior, rows, scores, {"input_ids": rows, "scores": scores.to_pylist()})


def test_datasets(prior: toedit.Prior, rows: Rows, scores: pa.StructArray, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_dict({"input_ids": rows, "text": ["x"] * len(rows)})
    policy = toedit.Policy(threshold=0.3, k=16)

    def add_scores(table: pa.Table) -> pa.Table:
        return table.append_column("scores", prior.score(table, keep=policy))

    scored = dataset.with_format("arrow").map(add_scores, batched=True, batch_size=30, new_fingerprint="scored")
    scored.save_to_disk(str(tmp_path / "data"))
    loaded = datasets.load_from_disk(str(tmp_path / "data"))
    same_edits(prior, rows, scores, loaded.with_format("arrow")[:])
    same_edits(prior, rows, scores, loaded.with_format(None)[:])
    same_edits(prior, rows, scores, loaded.with_format("numpy", columns=["input_ids"], output_all_columns=True)[:])
    same_edits(prior, rows, scores, list(loaded.with_format(None)))
    same_edits(prior, rows, scores, loaded.with_format("polars")[:])
    # And editing inside of map, on Arrow tables and on Python lists. datasets cannot write a Python integer above int64,
    # as ids_hash may be, so lists leave the scores behind.
    editor = toedit.Editor(prior, policy, seed=8)
    expected = editor({"input_ids": rows, "scores": scores})["input_ids"]
    tables = loaded.with_format("arrow").map(lambda table: editor(table).batch, batched=True, new_fingerprint="tables")
    lists = loaded.with_format(None).map(
        lambda batch: {"input_ids": editor(batch)["input_ids"]},
        batched=True,
        batch_size=30,
        remove_columns=["scores"],
        new_fingerprint="lists",
    )
    for edited in (tables.with_format(None), lists):
        assert list(edited["input_ids"]) == expected
        assert list(edited["text"]) == ["x"] * len(rows)
