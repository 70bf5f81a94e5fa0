"""`toedit score`: every row and column of the files comes back in order, the prior's scores beside, or nothing is written."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

import helpers
import toedit
from toedit import _sources
from toedit.__main__ import main
from toedit._progress import Progress
from toedit.score_files import score_files

Rows = list[list[int]]
KEEP = [(0.3, 1.0)]


@pytest.fixture(scope="module")
def table(rows: Rows) -> pa.Table:
    """40 rows of ids with columns of other kinds beside them, of which nothing may change."""
    some = rows[4:44]
    return pa.table(
        {
            "id": pa.array([f"doc {i}" if i % 7 else None for i in range(len(some))]),
            "input_ids": pa.array(some, pa.large_list(pa.int64())),
            "score": pa.array([i / 3 for i in range(len(some))], pa.float32()),
            "tags": pa.array([{"a": [i], "b": None} for i in range(len(some))]),
            "when": pa.array(range(len(some)), pa.timestamp("us", "UTC")),
        }
    ).replace_schema_metadata({"about": "text"})


def read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.OSFile(str(path)) as file:
        return (pa.ipc.open_file if path.suffix == ".arrow" else pa.ipc.open_stream)(file).read_all()


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=9)
    else:
        with (pa.ipc.new_stream if path.suffix in (".arrows", ".feather") else pa.ipc.new_file)(str(path), table.schema) as out:
            out.write_table(table, max_chunksize=11)
    return path


def run(*arguments: object, prior: str = "builtin") -> int:
    return main(["score", *map(str, arguments), "--prior", prior, "--keep", "0.3"])


def plain(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Values without the names that file formats give to the elements of lists."""
    return list(column.to_pylist())


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".arrows", ".feather"])
@pytest.mark.parametrize("out", ["out.parquet", "out.arrow", "out.arrows"])
def test_tables_keep_all_columns_and_get_scores(
    table: pa.Table, prior: toedit.Prior, tmp_path: Path, ending: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(table, tmp_path / f"in{ending}")
    assert run(source, "-o", tmp_path / out) == 0
    scored = read(tmp_path / out)
    assert scored.drop_columns("scores").cast(table.schema).equals(table)
    assert scored.schema.metadata[b"about"] == b"text"
    expected = prior.score(table["input_ids"], keep=KEEP)
    assert plain(scored["scores"]) == plain(expected)
    assert left(tmp_path) == {source.name, out}
    tokens = sum(len(row) for row in table["input_ids"].to_pylist())
    assert f"{out}: 40 rows, {tokens:,} tokens (" in capsys.readouterr().out
    # It is what an editor takes.
    edited = toedit.Editor(prior, toedit.Policy(threshold=0.3, temperature=2.0)).edit(scored)
    assert edited.changes > 0


def test_several_files_become_one_in_their_order(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where batches, pieces and parts are many times smaller than the files."""
    whole = [write(table.slice(0, 15), tmp_path / "x.parquet"), write(table.slice(15), tmp_path / "y.parquet")]
    assert run(*whole, "-o", tmp_path / "one.parquet") == 0
    monkeypatch.setattr("toedit._sources.ROWS", 4)
    monkeypatch.setattr("toedit.score_files._TOKENS", 150)
    monkeypatch.setattr("toedit.score_files._BYTES", 20_000)
    assert run(*whole, "-o", tmp_path / "two.parquet") == 0
    assert read(tmp_path / "two.parquet").equals(read(tmp_path / "one.parquet"))
    assert 3 < pq.ParquetFile(tmp_path / "two.parquet").num_row_groups < 15
    assert pq.ParquetFile(tmp_path / "one.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:]),
    ".zst": lambda data: bytes(pa.compress(data[:300], "zstd", asbytes=True) + pa.compress(data[300:], "zstd", asbytes=True)),
}


@pytest.mark.parametrize("compression", COMPRESSED)
def test_lines_of_json(
    prior: toedit.Prior, tokenizer: Tokenizer, tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toedit._sources.ROWS", 3)
    texts = ["To be, or not to be: that is the question.", "", "naïve — “quoted” 😀", "2001-01-01", "Once upon a time."]
    objects: list[dict[str, Any]] = [{"text": text, "n": i} for i, text in enumerate(texts)]
    objects[1]["n"] = None
    objects[3]["n"] = 2.5  # after three whole numbers
    objects[4] |= {"extra": {"deep": [1, None]}}  # which the others do not have
    lines = "\n".join(json.dumps(o, ensure_ascii=False) for o in objects[:3]) + "\n\n  \n"
    lines += "\n".join(json.dumps(o) for o in objects[3:])
    path = tmp_path / f"in.jsonl{compression}"
    path.write_bytes(COMPRESSED[compression](lines.encode()))
    assert run(path, "-o", tmp_path / "out.parquet") == 0
    scored = read(tmp_path / "out.parquet")
    assert scored["text"].to_pylist() == texts
    assert scored["n"].to_pylist() == [0, None, 2, 2.5, 4]
    assert scored["extra"].to_pylist() == [None, None, None, None, {"deep": [1, None]}]
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert scored["input_ids"].to_pylist() == ids
    assert plain(scored["scores"]) == plain(prior.score(ids, keep=KEEP))


def test_fields_without_values_in_one_file_have_the_type_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": null}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "two", "n": 3}\n')
    assert run(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "-o", tmp_path / "out.arrow") == 0
    assert read(tmp_path / "out.arrow").select(["text", "n"]).to_pylist() == [
        {"text": "one", "n": None},
        {"text": "two", "n": 3},
    ]


@pytest.mark.parametrize("compression", COMPRESSED)
def test_plain_text_is_a_document_a_file_or_a_line(tokenizer: Tokenizer, tmp_path: Path, compression: str) -> None:
    text = "A first line.\n\nAnother,\r\nwith a carriage return; " + "and so on, " * 40 + "\nthe end\n"
    path = tmp_path / f"in.txt{compression}"
    path.write_bytes(COMPRESSED[compression](text.encode()))
    (tmp_path / "empty.txt").write_bytes(b"")
    assert run(path, tmp_path / "empty.txt", "-o", tmp_path / "files.parquet") == 0
    assert run(path, "--lines", "-o", tmp_path / "lines.parquet") == 0
    files, lines = read(tmp_path / "files.parquet"), read(tmp_path / "lines.parquet")
    assert files["text"].to_pylist() == [text, ""]
    assert lines["text"].to_pylist() == text.split("\n")[:-1]
    for scored in (files, lines):
        ids = [tokenizer.encode(row, add_special_tokens=False).ids for row in scored["text"].to_pylist()]
        assert scored["input_ids"].to_pylist() == ids
        assert [len(row["logp"]) for row in scored["scores"].to_pylist()] == list(map(len, ids))


def test_columns_by_other_names(prior: toedit.Prior, table: pa.Table, tmp_path: Path) -> None:
    renamed = table.rename_columns(["text", "tokens", "score", "tags", "when"])
    source = write(renamed, tmp_path / "in.parquet")
    assert run(source, "--ids-column", "tokens", "-o", tmp_path / "ids.parquet") == 0
    assert plain(read(tmp_path / "ids.parquet")["scores"]) == plain(prior.score(table["input_ids"], keep=KEEP))
    named = pa.table({"body": ["Some words.", "More of them."], "text": [1, 2]})
    source = write(named, tmp_path / "body.parquet")
    assert run(source, "--text-column", "body", "-o", tmp_path / "text.parquet") == 0
    assert read(tmp_path / "text.parquet").column_names == ["body", "text", "input_ids", "scores"]


def test_padding_and_packed_rows_are_understood(prior: toedit.Prior, tmp_path: Path) -> None:
    columns = {
        "input_ids": [[5, 6, 7, 0], [8, 9, 5, 6]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
        "document_ids": [[0, 0, 0, 0], [0, 0, 1, 1]],
    }
    source = write(pa.table(columns), tmp_path / "in.parquet")
    assert run(source, "-o", tmp_path / "out.parquet") == 0
    assert plain(read(tmp_path / "out.parquet")["scores"]) == plain(prior.score(columns, keep=KEEP))


def test_k_and_keep(prior: toedit.Prior, table: pa.Table, tmp_path: Path) -> None:
    source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.parquet"
    arguments = ["score", str(source), "-o", str(out), "--prior", str(prior.path), "--threads", "1", "--k", "3"]
    assert main([*arguments, "--keep", "0.95", "--keep", "0.1:0.2"]) == 0
    assert plain(read(out)["scores"]) == plain(prior.score(table["input_ids"], k=3, keep=[(0.95, 1.0), (0.1, 0.2)]))
    assert main([*arguments, "--overwrite"]) == 0
    assert plain(read(out)["scores"]) == plain(prior.score(table["input_ids"], k=3))


def test_files_without_rows(tmp_path: Path) -> None:
    empty = pa.table({"input_ids": pa.array([], pa.list_(pa.int32()))})
    source = write(empty, tmp_path / "in.parquet")
    assert run(source, "-o", tmp_path / "out.parquet") == 0
    assert read(tmp_path / "out.parquet").column_names == ["input_ids", "scores"]
    assert len(read(tmp_path / "out.parquet")) == 0


def test_json_of_empty_rows_only(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"input_ids": []}\n' * 3)
    assert run(tmp_path / "in.jsonl", "-o", tmp_path / "out.parquet") == 0
    assert [row["logp"] for row in read(tmp_path / "out.parquet")["scores"].to_pylist()] == [[]] * 3


def test_dictionaries_that_differ_need_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for i, words in enumerate((["a", "b"], ["c", "a"])):
        table = pa.table({"input_ids": [[1], [2]], "word": pa.array(words).dictionary_encode()})
        paths.append(write(table, tmp_path / f"{i}.arrow"))
    for out in ("out.parquet", "out.arrows"):
        assert run(*paths, "-o", tmp_path / out) == 0
        assert read(tmp_path / out)["word"].to_pylist() == ["a", "b", "c", "a"]
    before = left(tmp_path)
    capsys.readouterr()
    assert run(*paths, "-o", tmp_path / "out.arrow") == 1
    assert "out.arrow cannot be written: Dictionary" in (error := capsys.readouterr().err)
    assert error.endswith("; write .parquet or .arrows instead\n")
    assert left(tmp_path) == before


# Refused before anything is scored, or ended without a trace


def bad_files(folder: Path) -> dict[str, Path]:
    """Files of which each can be scored, or looks as if it could."""
    tables = {
        "ids": pa.table({"input_ids": [[1, 2], [3]]}),
        "more": pa.table({"input_ids": [[1]], "n": [1]}),
        "strings": pa.table({"input_ids": [["a"]]}),
        "numbers": pa.table({"input_ids": [1, 2]}),
        "scored": pa.table({"input_ids": [[1]], "scores": [1]}),
        "other": pa.table({"words": [[1]], "n": ["text"]}),
        "both": pa.table({"input_ids": [[1]], "text": ["a"]}),
        "outside": pa.table({"input_ids": [[1]] * 5 + [[1, 4096]]}),
        "null": pa.table({"text": ["a", "b", None]}),
    }
    paths = {name: write(table, folder / f"{name}.parquet") for name, table in tables.items()}
    contents = {
        "broken.parquet": b"PAR1 and no more",
        "broken.arrow": b"ARROW1 and no more",
        "broken.jsonl.gz": b"no gzip at all",
        "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 100)[:-20],
        "cut.jsonl.zst": bytes(pa.compress(b'{"text": "a"}\n' * 100, "zstd", asbytes=True)[:-3]),
        "latin.txt": "naïve".encode("latin-1"),
        "words.jsonl": b'{"text": "a"}\nhello\n',
        "list.jsonl": b'{"text": "a"}\n[1]\n',
        "types.jsonl": b'{"text": "a", "n": 1}\n{"text": "b", "n": "x"}\n',
        "table.csv": b"text\na\n",
    }
    for name, data in contents.items():
        paths[name] = folder / name
        paths[name].write_bytes(data)
    return paths


REFUSED = [
    (["missing.parquet"], [], r"missing\.parquet does not exist"),
    (["ids", "more"], [], r"more\.parquet does not have the columns of .*ids\.parquet: it has 'n' besides; score it by itself"),
    (["more", "ids"], [], r"ids\.parquet does not have the columns of .*more\.parquet: it lacks 'n'"),
    (
        ["ids", "strings"],
        [],
        r"strings\.parquet does not have .*: 'input_ids' is list<element: string>, not list<element: int64>",
    ),
    (["strings"], [], r"strings\.parquet: batch\.input_ids: it is a list of utf8"),
    (["numbers"], [], r"numbers\.parquet: the column of ids is int64; it must be a list of integers"),
    (["scored"], [], r"scored\.parquet has a column 'scores' already; drop it first"),
    (["other"], [], r"has no column 'input_ids' and none 'text', only \['words', 'n'\]; name one with --ids-column"),
    (["other"], ["--ids-column", "ids"], r"other\.parquet has no column 'ids', only \['words', 'n'\]"),
    (["other"], ["--text-column", "n", "--ids-column", "words"], "exclude each other"),
    (["other"], ["--text-column", "words"], r"column 'words' is list<element: int64>; it must be text"),
    (["both"], ["--text-column", "text"], "has a column 'input_ids' already, where the ids of 'text' would go"),
    (["outside"], [], r"outside\.parquet, row 5: input_ids\[1\] is 4096, but the prior's vocabulary is 0 to 4095"),
    (["null"], [], r"null\.parquet, row 2: text is null; drop the row or make it empty"),
    (["broken.parquet"], [], r"broken\.parquet cannot be read: "),
    (["broken.arrow"], [], r"broken\.arrow cannot be read: "),
    (["broken.jsonl.gz"], [], r"broken\.jsonl\.gz cannot be read: "),
    (["cut.jsonl.gz"], [], r"cut\.jsonl\.gz cannot be read: "),
    (["cut.jsonl.zst"], [], r"cut\.jsonl\.zst cannot be read: "),
    (["latin.txt"], [], r"latin\.txt cannot be read to its end: .*utf-8"),
    (["words.jsonl"], [], r"words\.jsonl, line 2: not JSON \("),
    (["list.jsonl"], [], r"list\.jsonl, line 2: a list, not an object"),
    (["types.jsonl"], [], r"types\.jsonl, from line 1: the values of 'n' have no common type"),
    (["table.csv"], [], r"table\.csv is of no kind that is known by its name; known are \.parquet"),
    (["ids"], ["--k", "65"], "k is 65; this prior stores 1 to 64"),
    (["ids"], ["--out", "out.jsonl"], r"out\.jsonl cannot be written: scores go into \.parquet, \.arrow, \.arrows"),
    (["ids"], ["--out", "nowhere/out.parquet"], "nowhere is no folder"),
    (["ids"], ["--out", "ids.parquet"], r"ids\.parquet exists; give another name or --overwrite"),
]


@pytest.mark.parametrize(("names", "arguments", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_cannot_be_scored_is_one_clear_error(
    tmp_path: Path,
    names: list[str],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toedit._sources.ROWS", 4)
    before = left(tmp_path)
    assert run(*(paths.get(name, name) for name in names), "-o", "out.parquet", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("toedit score: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert left(tmp_path) == before


@pytest.mark.parametrize("keep", ["high", "0.9:0.1", "-1", "0.5:2"])
def test_ranges_that_are_none(tmp_path: Path, keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "x.parquet", "-o", "y.parquet", "--prior", "builtin", f"--keep={keep}"])
    assert "is not a range of P" in capsys.readouterr().err


def test_an_existing_file_stays_until_the_new_one_is_whole(tmp_path: Path, prior: toedit.Prior) -> None:
    paths = bad_files(tmp_path)
    out = tmp_path / "out.parquet"
    out.write_bytes(b"precious")
    assert run(paths["ids"], "-o", out) == 1
    assert run(paths["outside"], "-o", out, "--overwrite") == 1
    assert out.read_bytes() == b"precious"
    assert run(paths["ids"], "-o", out, "--overwrite") == 0
    assert len(read(out)) == 2
    os.umask(umask := os.umask(0))
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask  # readable as any other file
    # A file may be scored into itself.
    assert run(paths["more"], "-o", paths["more"], "--overwrite") == 0
    assert read(paths["more"]).column_names == ["input_ids", "n", "scores"]


def test_a_file_that_comes_meanwhile_is_not_replaced(tmp_path: Path, prior: toedit.Prior) -> None:
    paths = bad_files(tmp_path)
    out = tmp_path / "out.parquet"
    with pytest.raises(toedit.InputError, match="has come to exist meanwhile"):
        score_files([paths["ids"]], out, prior=prior, progress=lambda tokens, share: out.write_bytes(b"theirs") and None)
    assert out.read_bytes() == b"theirs"
    assert left(tmp_path) == {path.name for path in paths.values()} | {"out.parquet"}


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"input_ids": list(range(1 + n, 401 + n))}) + "\n" for n in range(1500)))
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "toedit", "score", str(source), "-o", str(out), "--prior", "builtin"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while len(left(tmp_path)) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)  # until its temporary file is there
        assert any(name.startswith(".out.parquet.") for name in left(tmp_path))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "toedit score: interrupted"
    assert output == ""
    assert left(tmp_path) == {"in.jsonl"}


def test_a_ctrl_c_that_python_drops_is_not_lost(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"input_ids": list(range(1 + n, 401 + n))}) + "\n" for n in range(300)))
    code = f"""
import os, signal, sys
from toedit import score_files
from toedit.__main__ import main
prepare = score_files._parts
class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
def parts(prepared):
    Dropping()  # what is raised in its destructor goes nowhere
    return prepare(prepared)
score_files._parts = parts
sys.exit(main(["score", {str(source)!r}, "-o", {str(tmp_path / "out.parquet")!r}, "--prior", "builtin"]))
"""
    done = helpers.python(code, check=False)
    assert "Exception ignored" in done.stderr
    assert done.returncode == 130, done.stderr
    assert left(tmp_path) == {"in.jsonl"}


# How far it is


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_share_rises_to_one_over_all_files(table: pa.Table, prior: toedit.Prior, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("toedit._sources.ROWS", 6)
    monkeypatch.setattr("toedit.score_files._TOKENS", 200)
    paths = [write(table.slice(0, 30), tmp_path / "a.parquet"), write(table.slice(30), tmp_path / "b.parquet")]
    seen: list[tuple[int, float]] = []
    totals = score_files(paths, tmp_path / "out.parquet", prior=prior, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (totals.tokens, pytest.approx(1.0))
    assert totals.rows == 40
    assert totals.tokens == sum(len(row) for row in table["input_ids"].to_pylist())


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".arrows"])
def test_every_kind_of_file_tells_how_far_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in{kind}"
    if kind == ".arrows":
        write(pa.table({"text": ["some words"] * 2000}), path)
    else:
        line = "some words\n" if kind == ".txt" else '{"text": "some words"}\n'
        path.write_bytes(COMPRESSED[path.suffix if path.suffix in COMPRESSED else ""](line.encode() * 2000))
    (source,) = _sources.open_sources([path], lines=True)
    shares = [share for _, share in source.batches()]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=0.01)
    assert sum(len(batch) for batch, _ in source.batches()) == 2000


def test_progress_on_a_terminal_and_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("toedit._progress.time.perf_counter", lambda: now)
    terminal, log = Terminal(), io.StringIO()
    moving, logged = Progress(terminal), Progress(log)
    for seconds, tokens, share in (
        (0.05, 1, 0.001),
        (10.0, 20_000, 0.25),
        (25.0, 50_000, 0.5),
        (31.0, 60_000, 0.6),
        (40.0, 80_000, 1.0),
    ):
        now = seconds
        moving(tokens, share)
        logged(tokens, share)
    moving.close()
    logged.close()
    first = "[#######.......................]  25%  20,000 tokens, 2,000 tokens/s, 0:30 left"
    assert terminal.getvalue().startswith("\r" + first + "\r[###############")
    assert terminal.getvalue().endswith("100%  80,000 tokens, 2,000 tokens/s, 0:00 left\n")
    assert log.getvalue() == " 60%  60,000 tokens, 1,935 tokens/s, 0:21 left\n"


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_the_file_says_where_its_scores_come_from(prior: toedit.Prior, tmp_path: Path, ending: str) -> None:
    (tmp_path / "in.txt").write_text("Some text to be scored.")
    out = tmp_path / f"out.{ending}"
    assert main(["score", str(tmp_path / "in.txt"), "-o", str(out), "--prior", "builtin", "--keep", "0.5"]) == 0
    schema = pq.read_schema(out) if ending == "parquet" else pa.ipc.open_file(out).schema
    manifest = json.loads(schema.metadata[b"toedit"])
    assert manifest["prior"]["fingerprint"] == prior.fingerprint
    assert manifest["prior"]["check"]["decisions_that_differ"].keys() == {"0.9", "0.99", "0.999"}
    assert (manifest["k"], manifest["keep"]) == (8, [[0.5, 1.0]])
    assert manifest["cpu"]
    assert manifest["optimization"] == "all"
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["onnxruntime"])
