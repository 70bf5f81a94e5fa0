"""The edit log: which tokens were edited and how, and batches with a log's edits made or taken back.

``Edited.log`` has a row for each edit of one batch. It is Arrow, and may be kept in any file that keeps Arrow's types:

    edited = editor(batch)
    pyarrow.parquet.write_table(pa.table(edited.log), "log.parquet")
    log = pyarrow.parquet.read_table("log.parquet")
    toedit.revert_log(edited.batch, log)  # the batch as it was
    toedit.apply_log(batch, log)  # the edits again, without scores, policy or prior

Rows are counted within a batch. The log of a corpus is that of its batches with rows that go on: :func:`shift` by the rows
before the batch; :func:`select` takes the log of some of its rows.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toedit import _arrow, _bridge
from toedit._arrow import IDS
from toedit._drop import follow, refuse_places
from toedit._errors import ClosedError, InputError
from toedit._packed import unpack
from toedit.prior import Prior

__all__ = ["SCHEMA", "apply_log", "revert_log", "select", "shift"]

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("position", pa.int64()),
        ("old", pa.int64()),
        ("new", pa.int64()),
        ("key", pa.string()),
        ("generation", pa.int32()),
        ("byte_offset", pa.int64()),
        ("old_text", pa.binary()),
        ("new_text", pa.binary()),
        ("p", pa.float64()),
        ("logp", pa.float32()),
        ("band", pa.int32()),
        ("action", pa.string()),
        ("context", pa.bool_()),
        ("ids_hash", pa.uint64()),
        ("edited_hash", pa.uint64()),
        ("edits_hash", pa.uint64()),
    ]
)
"""The columns of a log, a row for each edit:

row: of the batch; of packed rows the document, all of the batch counted through.
position: index among the row's real tokens before its generation's edits, plus the row's offset.
old, new: ids; new is null where the token was dropped.
key: the row's key as text, or its document hash as 32 hexadecimal digits.
generation: 0 for the first.
byte_offset: where the old token begins in the bytes of the row's tokens before the generation's edits, those of special tokens
    included. Null where it is not known which bytes the tokenizer's tokens stand for.
old_text, new_text: the bytes of the tokens; null where there are none or they are not known.
p, logp: P of the old token and its logarithm.
band: index in the policy's bands.
action: "resample", "drop" or "mask_loss".
context: whether the token's label was -100 before; null where there were no labels.
ids_hash, edited_hash: low half of the document hash of the row's ids before and after the generation's edits.
edits_hash: low half of the XXH3-128 of the row's edits in the generation; tells whether one is missing or was changed.
"""

# What decides ids and labels; the other columns are for people.
_NEEDED = ("row", "position", "old", "new", "key", "generation", "action", "context", "ids_hash", "edited_hash", "edits_hash")
# The columns of a batch that a log speaks of.
_COLUMNS = (IDS, "attention_mask", "labels", "key", "offset")


def apply_log(batch: Any, log: Any, *, labels: str = "edited", key: str | None = None, offset: str | None = None) -> Any:
    """Make a log's edits in the batch that was edited.

    Args:
        batch: as for :class:`toedit.Editor`, as it was before it was edited. It needs no scores.
        log: Arrow data with the columns of :data:`SCHEMA`, in any order of rows; all generations in it are applied, in order.
        labels: whether labels follow the ids (``"edited"``), or keep the originals (``"original"``), as the policy's.
        key: the name of the batch's key column; where it is given, each row's key must be the log's.
        offset: the name of its offset column, if the editor had one.

    Returns:
        The batch as the editor gave it, in the container and dtypes that came in.

    Raises:
        InputError: the log is damaged or is not of these ids; the message names the row and what differs.
    """
    return _replay("ApplyLog", batch, log, key, offset, labels)


def revert_log(batch: Any, log: Any, *, key: str | None = None, offset: str | None = None) -> Any:
    """Take a log's edits back in the batch that the editor gave.

    Dropped tokens come back, with 1 in ``attention_mask`` and 0 in ``special_tokens_mask`` and ``protected_mask``. In padded
    rows they stand behind the token before them, or before the one behind where they are the first.

    Args:
        batch: the edited batch.
        log: as for :func:`apply_log`; all generations in it are taken back, the last one first.
        key: the name of the batch's key column, as for :func:`apply_log`.
        offset: the name of its offset column, if the editor had one.

    Returns:
        The batch with the ids and labels that it had before, in the container and dtypes that came in.

    Raises:
        InputError: the log is damaged or is not of these ids, or tokens come back and a column has a value for each token
            that the log does not know.
    """
    return _replay("RevertLog", batch, log, key, offset)


def shift(log: Any, rows: int) -> pa.Table:
    """The log with other rows: each larger by a number, which may be negative."""
    table = _table(log)
    at = table.schema.get_field_index("row")
    return table.set_column(at, table.schema.field(at), pc.add(table.column(at), pa.scalar(rows, pa.int64())))


def select(log: Any, start: int, stop: int) -> pa.Table:
    """The part of a log that is of the rows from start up to stop, which it leaves out, with rows counted from start."""
    table = _table(log)
    row = table["row"]
    return shift(table.filter(pc.and_(pc.greater_equal(row, start), pc.less(row, stop))), -start)


class PendingLog:
    """The log of one generation of one batch. Editing itself logs little; the rest is found out when somebody reads it.

    Args:
        prior: whose tokens they are.
        columns: what was edited, as the native library got it; they are kept.
        log: what it logged.
        generation: 0 for the first.
    """

    __slots__ = ("_columns", "_generation", "_log", "_prior")

    def __init__(
        self, prior: Prior, columns: dict[str, pa.Array], log: _bridge.ArrowOut | pa.RecordBatch, generation: int
    ) -> None:
        self._prior = prior
        self._columns = columns
        self._log = log
        self._generation = generation

    def small(self) -> pa.RecordBatch:
        """row, position, old, new (-1: dropped), logp and band of each edit."""
        # Of several threads one takes it over, under a lock that forks wait for.
        with _bridge.no_fork:
            if isinstance(self._log, _bridge.ArrowOut):
                self._log = self._log.take()
            return self._log

    def without(self, withheld: pa.Array) -> PendingLog:
        """The log without edits that were not made after all: true for each of them."""
        return PendingLog(self._prior, self._columns, self.small().filter(pc.invert(withheld)), self._generation)

    def whole(self) -> pa.RecordBatch:
        """The columns of :data:`SCHEMA`.

        Raises:
            InputError: the batch was changed after it was edited.
        """
        try:
            return self._completed(self._prior.handle)
        except ClosedError:
            # The edits are made, and what their ids mean has not changed.
            with Prior(self._prior.path) as again:
                return self._completed(again.handle)

    def _completed(self, prior: int) -> pa.RecordBatch:
        columns = {name: self._columns[name] for name in _COLUMNS if name in self._columns}
        columns["ids_hash"] = self._columns["scores"].field("ids_hash")
        return _call("CompleteLog", (prior, self._generation), columns, _arrays(self.small()))


def joined(logs: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Logs of generations, one behind the other."""
    if len(logs) == 1:
        return logs[0]
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays(parts) for parts in zip(*(log.columns for log in logs), strict=True)], schema=SCHEMA
    )


def _call(name: str, args: tuple[Any, ...], columns: dict[str, pa.Array], log: dict[str, pa.Array]) -> pa.RecordBatch:
    given, given_log, out = _bridge.ArrowIn(columns), _bridge.ArrowIn(log), _bridge.ArrowOut()
    _bridge.call(
        name, *args, given.array, given.schema, given_log.array, given_log.schema, out.array, out.schema
    )  # fmt: skip
    return out.take()


def _arrays(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _replay(function: str, batch: Any, log: Any, key: str | None, offset: str | None, *args: Any) -> Any:
    opened = unpack(_arrow.open_batch(batch))
    names = opened.names
    if IDS not in names:
        raise InputError(f"the batch has no column {IDS!r}, only {names}")
    columns, backs = {}, {}
    columns[IDS], backs[IDS] = opened.column(IDS)
    if "attention_mask" in names:
        columns["attention_mask"] = opened.column("attention_mask")[0]
    if "labels" in names:
        columns["labels"], backs["labels"] = opened.column("labels")
    columns |= _arrow.key_columns(opened, key, offset)
    result = _call(function, args, columns, _needed(log))
    changed = {name: back(result.column(name)) for name, back in backs.items()}
    if "source" in result.schema.names:
        others = [name for name in names if name not in changed]
        refuse_places(others)
        changed |= follow(opened, batch, columns[IDS], result.column("source"), others)
    return opened.rebuild(changed)


def _table(log: Any) -> pa.Table:
    """A log of any kind as a table."""
    try:
        table = pa.table(log) if not isinstance(log, pa.RecordBatch) else pa.Table.from_batches([log])
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"the log is a {type(log).__name__}; it must be Arrow data with the columns of toedit.log.SCHEMA: {error}"
        ) from None
    for name in _NEEDED:
        if name not in table.schema.names:
            raise InputError(f"the log has no column {name!r}, only {table.schema.names}; toedit.log.SCHEMA has all of them")
    return table


def _needed(log: Any) -> dict[str, pa.Array]:
    """The columns that decide, in the types of the schema: files and frameworks change some."""
    table = _table(log)
    columns = {}
    for name in _NEEDED:
        try:
            column = table[name].cast(SCHEMA.field(name).type).combine_chunks()
        except pa.ArrowException as error:
            raise InputError(
                f"the log's column {name!r} is {table[name].type}; it must be {SCHEMA.field(name).type}: {error}"
            ) from None
        columns[name] = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return columns
