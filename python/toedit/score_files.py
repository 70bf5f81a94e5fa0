"""Score files of documents (``toedit score FILE... -o OUT``): their columns and rows as they are, and ``scores`` beside."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toedit import _arrow, _runtime
from toedit._arrow import IDS, SCORES, SCORES_TYPE
from toedit._errors import Error, InputError
from toedit._progress import Progress
from toedit._sources import TEXT, Source, open_sources
from toedit._version import __version__
from toedit.prior import DEFAULT_K, DEFAULT_KEEP, WINDOWS, Prior

__all__ = ["main", "score_files"]

# Tokens that are scored at a time, and bytes that are written at a time: what is held in memory.
_TOKENS, _BYTES = 1 << 18, 1 << 26

_ROW = re.compile(r"row (\d+): ")


@dataclass
class Totals:
    """What was scored: rows, their tokens, how many of these have no score, and positions whose top-k is stored."""

    rows: int = 0
    tokens: int = 0
    unscored: int = 0
    kept: int = 0


def score_files(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    prior: Prior,
    k: int = DEFAULT_K,
    keep: list[tuple[float, float]] | None = None,
    ids_column: str | None = None,
    text_column: str | None = None,
    lines: bool = False,
    split_after: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Totals:
    """Score files into one, in their order: every row and column stays, and ``scores`` is added.

    Args:
        files: Parquet, Arrow, JSON lines or plain text, by their endings.
        out: .parquet, or Arrow's file (.arrow) or stream (.arrows). It appears whole or not at all.
        prior: the prior.
        k, keep: as for :meth:`Prior.score`.
        ids_column: the column of token ids; by default ``input_ids`` where there is one.
        text_column: a column of text to be tokenised with the prior's tokenizer into ``input_ids``, which is added too; by
            default ``text`` where there are no ids.
        lines: plain text holds a document a line; by default a file is a document.
        split_after: as for :meth:`Prior.score`.
        overwrite: replace *out*.
        progress: called with the tokens scored so far and the share of the input that is done.

    Raises:
        InputError: a file cannot be read, files do not have the same columns, a row cannot be scored (named by file and
            number, from 0), or *out* cannot be written.
    """
    target = Path(out)
    opener = _writer(target)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; give another name or --overwrite")
    sources = open_sources([Path(file) for file in files], lines=lines)
    if not sources:
        raise InputError("there are no files to score")
    if not 1 <= k <= (limit := prior.describe()["k"]):
        raise InputError(f"k is {k}; this prior stores 1 to {limit}")
    prepare = _preparation(sources[0], prior, ids_column, text_column)
    schema = prepare(_empty(sources[0].schema)).batch.schema
    schema = schema.append(pa.field(SCORES, SCORES_TYPE)).with_metadata((schema.metadata or {}) | _manifest(prior, k, keep))
    progress = _rising(progress)
    whole, behind, totals = sum(source.size for source in sources) or 1, 0, Totals()
    with _whole(target, overwrite) as temporary, opener(temporary, schema) as writer:
        for source in sources:
            row, share = 0, 0.0  # of this file, done so far
            for batch, after in _read(source):
                with _located(source.path, row):
                    prepared = prepare(batch)
                    parts = list(_parts(prepared))
                of_batch = after - share
                for part in parts:
                    span = of_batch * len(part.batch) / len(batch)
                    job = ((behind + source.size * share) / whole, source.size * span / whole)
                    with _located(source.path, row):
                        scores = prior.score(
                            part.columns,
                            k=k,
                            keep=keep,
                            split_after=split_after,
                            progress=_report(progress, totals.tokens, *job),
                        )
                    writer.write(pa.RecordBatch.from_arrays([*part.batch.columns, scores], schema=schema))
                    _count(totals, scores)
                    row, share = row + len(part.batch), share + span
                share = after
            behind += source.size
    return totals


def _manifest(prior: Prior, k: int, keep: list[tuple[float, float]] | None) -> dict[bytes, bytes]:
    """Where the scores come from, for whoever reads the file; nothing that editing needs."""
    kept = [(DEFAULT_KEEP, 1.0)] if keep is None else keep
    manifest = {"toedit": __version__, "prior": prior.describe(), "k": k, "keep": kept, **_runtime.where()}
    return {b"toedit": json.dumps(manifest).encode()}


def _report(
    progress: Callable[[int, float], None] | None, tokens: int, share: float, span: float
) -> Callable[[int, int], None] | None:
    """What :meth:`Prior.score` reports of one batch as the progress of the whole job, of which the batch is *span*."""
    if progress is None:
        return None
    return lambda done, total: progress(tokens + done, share + span * done / max(total, 1))


def _rising(progress: Callable[[int, float], None] | None) -> Callable[[int, float], None] | None:
    """Shares are sums; what rounding takes from one of them is not reported."""
    if progress is None:
        return None
    reached = 0.0

    def report(tokens: int, share: float) -> None:
        nonlocal reached
        reached = max(reached, min(share, 1.0))
        progress(tokens, reached)

    return report


def _count(totals: Totals, scores: pa.StructArray) -> None:
    logp = scores.field("logp").flatten()
    totals.rows += len(scores)
    totals.tokens += len(logp)
    totals.unscored += logp.null_count
    totals.kept += len(scores.field("topk_pos").flatten())


@contextlib.contextmanager
def _located(path: Path, first: int) -> Iterator[None]:
    """Errors that name a row of a batch name the file and its row instead."""
    try:
        yield
    except InputError as error:
        found = _ROW.match(str(error))
        if found is None:
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path}, row {first + int(found[1])}: {str(error)[found.end() :]}") from None


def _read(source: Source) -> Iterator[tuple[pa.RecordBatch, float]]:
    try:
        yield from ((batch, share) for batch, share in source.batches() if len(batch))
    except Error:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise InputError(f"{source.path} cannot be read to its end: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# what is scored of a batch


@dataclass(frozen=True)
class _Prepared:
    """A batch with its ids, and the columns that decide its scores."""

    batch: pa.RecordBatch
    columns: dict[str, pa.Array]


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _preparation(
    source: Source, prior: Prior, ids_column: str | None, text_column: str | None
) -> Callable[[pa.RecordBatch], _Prepared]:
    names = source.schema.names
    if SCORES in names:
        raise InputError(f"{source.path} has a column {SCORES!r} already; drop it first")
    if ids_column is not None and text_column is not None:
        raise InputError("--ids-column and --text-column exclude each other: a row is scored by its ids or by its text")
    for name in (ids_column, text_column):
        if name is not None and name not in names:
            raise InputError(f"{source.path} has no column {name!r}, only {names}")
    if ids_column is None and text_column is None:
        if IDS in names:
            ids_column = IDS
        elif TEXT in names:
            text_column = TEXT
        else:
            raise InputError(
                f"{source.path} has no column {IDS!r} and none {TEXT!r}, only {names}; name one with --ids-column or "
                "--text-column"
            )
    if text_column is not None:
        return _tokenizing(source, prior, text_column)
    others = [name for name in _arrow.SCORING_COLUMNS if name in names and name != IDS]

    def prepare(batch: pa.RecordBatch) -> _Prepared:
        ids = batch.column(ids_column)
        if ids.type.equals(pa.list_(pa.null())):  # JSON of empty rows only: nothing there tells the type
            ids = ids.cast(pa.list_(pa.int64()))
        return _Prepared(batch, {IDS: ids, **{name: batch.column(name) for name in others}})

    return prepare


def _tokenizing(source: Source, prior: Prior, column: str) -> Callable[[pa.RecordBatch], _Prepared]:
    from tokenizers import Tokenizer

    if IDS in source.schema.names:
        raise InputError(f"{source.path} has a column {IDS!r} already, where the ids of {column!r} would go; drop it first")
    kind = source.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"{source.path}: column {column!r} is {kind}; it must be text")
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def prepare(batch: pa.RecordBatch) -> _Prepared:
        texts = batch.column(column)
        if texts.null_count:
            raise InputError(f"row {texts.is_null().to_pylist().index(True)}: {column} is null; drop the row or make it empty")
        # The BOS id is the prior's business, so no special tokens here.
        encoded = tokenizer.encode_batch(texts.to_pylist(), add_special_tokens=False)
        ids = pa.array([e.ids for e in encoded], pa.list_(pa.int32()))
        return _Prepared(batch.append_column(IDS, ids), {IDS: ids})

    return prepare


def _parts(prepared: _Prepared) -> Iterator[_Prepared]:
    """The batch in parts of not too many tokens; a row is never cut."""
    ids = prepared.columns[IDS]
    if not (pa.types.is_list(ids.type) or pa.types.is_large_list(ids.type) or pa.types.is_fixed_size_list(ids.type)):
        raise InputError(f"the column of ids is {ids.type}; it must be a list of integers")
    ends = np.cumsum(pc.list_value_length(ids).fill_null(0).to_numpy(zero_copy_only=False))
    start = 0
    while start < len(ids):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _TOKENS, side="right")))
        columns = {name: column.slice(start, stop - start) for name, column in prepared.columns.items()}
        yield _Prepared(prepared.batch.slice(start, stop - start), columns)
        start = stop


# ---------------------------------------------------------------------------------------------------------------------
# what is written


class _Writer:
    """Collects batches and writes them in large pieces: a Parquet row group for every few rows would be slow to read."""

    def __init__(self, write: Callable[[pa.Table], Any], schema: pa.Schema) -> None:
        self._write, self._schema = write, schema
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        if self._batches:
            self._write(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._bytes = [], 0


def _writer(out: Path) -> Callable[[Path, pa.Schema], contextlib.AbstractContextManager[_Writer]]:
    ending = out.suffix.lower()
    makers: dict[str, Callable[[Path, pa.Schema], Any]] = {
        ".parquet": _parquet,
        ".arrow": lambda path, schema: pa.ipc.new_file(str(path), schema),
        ".arrows": lambda path, schema: pa.ipc.new_stream(str(path), schema),
    }
    if ending not in makers:
        raise InputError(f"{out} cannot be written: scores go into {', '.join(makers)}, by the name's ending")

    @contextlib.contextmanager
    def opened(path: Path, schema: pa.Schema) -> Iterator[_Writer]:
        try:
            with makers[ending](path, schema) as file:
                writer = _Writer(file.write_table, schema)
                yield writer
                writer.flush()
        except Error:
            raise
        except (pa.ArrowException, OSError) as error:
            way_out = "; write .parquet or .arrows instead" if "ictionary" in str(error) and ending == ".arrow" else ""
            raise InputError(f"{out} cannot be written: {error}{way_out}") from None

    return opened


def _parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Dictionaries make scores larger than their values are; split into their bytes, ln P compresses best."""
    with io.BytesIO() as empty:
        pq.write_table(schema.empty_table(), empty)
        leaves = pq.ParquetFile(empty).schema
        paths = [leaves.column(i).path for i in range(len(leaves))]
    others = [path for path in paths if not path.startswith(f"{SCORES}.")]
    encodings = {path: "BYTE_STREAM_SPLIT" for path in paths if path.startswith(f"{SCORES}.logp.")}
    encodings |= {path: "DELTA_BINARY_PACKED" for path in paths if path.startswith(f"{SCORES}.topk_pos.")}
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=others, column_encoding=encodings)


@contextlib.contextmanager
def _whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """A file beside *out* that takes its place at the end of the block and is removed if the block fails."""
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: {out.parent} is no folder")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
        if out.exists() and not overwrite:
            raise InputError(f"{out} has come to exist meanwhile; give another name or --overwrite")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# the command line


def main(argv: Sequence[str] | None = None) -> int:
    """``toedit score``; returns the exit status. Raises what :func:`score_files` raises."""
    parser = argparse.ArgumentParser(
        prog="toedit score",
        description="Score documents with a prior, once, so that they can be edited anew in every epoch. All rows and columns "
        f"stay as they are and in order; {SCORES!r} is added (and {IDS!r} where there was only text). A token stream (.bin, of "
        "nanoGPT's or Megatron-LM's form) gets a folder of scores.",
        epilog="FILE is .parquet, .arrow, .arrows, .feather, .ipc, or .jsonl, .ndjson, .txt, these also with .gz or .zst. All "
        "must have the same columns. A plain text file is one document; with --lines each of its lines is one (an empty line "
        "an empty document). Text is tokenised with the prior's tokenizer.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="what to score")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="the file to make: .parquet (zstd), .arrow or .arrows; of a stream a folder",
    )
    parser.add_argument(
        "--prior", required=True, metavar="DIR", help="a prior folder, or 'builtin' for the bundled one (for trying)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        type=_range,
        metavar="LOW[:HIGH]",
        help=f"store the top-k where LOW <= P <= HIGH (default: {DEFAULT_KEEP}:1); may be given several times. Policies can "
        "edit only there",
    )
    parser.add_argument("--k", type=int, default=DEFAULT_K, help="how many tokens are stored there (default: %(default)s)")
    parser.add_argument("--ids-column", metavar="NAME", help=f"the column of token ids (default: {IDS!r}, if there is one)")
    parser.add_argument("--text-column", metavar="NAME", help=f"a column of text to tokenise (default: {TEXT!r}, without ids)")
    parser.add_argument("--lines", action="store_true", help="plain text files hold a document a line")
    parser.add_argument("--split-after", type=int, metavar="ID", help="the id that ends a document inside a row or a stream")
    parser.add_argument("--dtype", metavar="NAME", help="of a stream without an index (.idx): uint16, say")
    parser.add_argument("--header", type=int, metavar="BYTES", help="in front of a stream's first id (default: none)")
    parser.add_argument("--windows", choices=WINDOWS, default="rolling", help="for long documents (default: %(default)s)")
    parser.add_argument("--min-context", type=int, metavar="N", help="tokens before each, in rolling windows (default: half)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the prior's own)")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="for runs of the model (default: none)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    args = parser.parse_args(argv)
    streamed = any(Path(file).suffix == ".bin" for file in args.files)
    _check_arguments(args, streamed)
    progress, begun = Progress(sys.stderr), time.perf_counter()
    names = ("device", "threads", "memory_limit", "windows", "min_context")
    settings: dict[str, Any] = {name: getattr(args, name) for name in names}
    with Prior.builtin(**settings) if args.prior == "builtin" else Prior(args.prior, **settings) as prior:
        common: dict[str, Any] = {"prior": prior, "k": args.k, "keep": args.keep, "overwrite": args.overwrite}
        try:
            if streamed:
                totals = _score_stream(args, progress=progress, **common)
            else:
                totals = score_files(
                    args.files,
                    args.out,
                    ids_column=args.ids_column,
                    text_column=args.text_column,
                    lines=args.lines,
                    split_after=args.split_after,
                    progress=progress,
                    **common,
                )
        finally:
            progress.close()
        done = prior.stats()
        padding = 1 - done["positions"] / max(done["padded"], 1)
    seconds, what = time.perf_counter() - begun, "documents" if streamed else "rows"
    print(
        f"{args.out}: {totals.rows:,} {what}, {totals.tokens:,} tokens ({totals.unscored:,} without a score), top-{args.k} at "
        f"{totals.kept:,} positions; {seconds:,.1f} s, {totals.tokens / seconds:,.0f} tokens/s, {padding:.1%} padding"
    )
    return 0


def _check_arguments(args: argparse.Namespace, streamed: bool) -> None:
    """Refuse what would be ignored."""
    given = [name for name in ("ids_column", "text_column", "lines") if getattr(args, name)]
    if not streamed:
        given = [name for name in ("dtype", "header") if getattr(args, name) is not None]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} is not for {'token streams' if streamed else 'files of rows'}")
    if streamed and len(args.files) > 1:
        raise InputError(f"{len(args.files)} files are given, but token streams are scored one at a time, each into its folder")


def _score_stream(args: argparse.Namespace, **options: Any) -> Totals:
    from toedit import tokens

    stream = tokens.TokenStream(args.files[0], args.dtype, header=args.header or 0, split_after=args.split_after)
    done = tokens.score(stream, args.out, **options)
    return Totals(done.documents, done.tokens, done.unscored, done.positions)


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        found = float(low), float(high or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of P such as 0.9 or 0.5:0.9") from None
    if not 0 <= found[0] <= found[1] <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of P; it must have 0 <= LOW <= HIGH <= 1")
    return found
