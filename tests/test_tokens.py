"""Token streams: whatever crop a token is read in, it gets the edits that it has in the whole stream."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import xxhash
from tokenizers import Tokenizer

import helpers
import toedit
from toedit import _token_scores, tokens
from toedit.__main__ import main
from toedit._scores import read_rows
from toedit._store_files import locked
from toedit.tokens import EditedStream, TokenStream, score

Ints = npt.NDArray[np.int64]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
EOS = 0  # the bundled prior's, which no text row has
EPOCH = 5


@pytest.fixture(scope="module")
def documents(tokenizer: Tokenizer) -> list[list[int]]:
    """4,000 tokens of real text in documents that end with EOS; one is longer than the prior's context, one is EOS alone."""
    texts = helpers.text_rows(tokenizer, 4000, seed=11, longest=300)
    long = [token for row in texts[:8] for token in row][:900]
    return [[*row, EOS] for row in (*texts[8:12], long, [], *texts[12:])]


@pytest.fixture(scope="module")
def folder(documents: list[list[int]], prior: toedit.Prior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored stream, as nanoGPT writes them. Not to be changed."""
    folder = tmp_path_factory.mktemp("stream")
    np.array([token for document in documents for token in document], np.uint16).tofile(folder / "train.bin")
    score(flat(folder), folder / "train.scores", prior=prior, keep=POLICY)
    return folder


@pytest.fixture
def changeable(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "stream")


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3, key="stream", offset="start")
    editor([{"input_ids": [1], "stream": "", "start": 0}])  # its native half lasts as long as the module
    return editor


@pytest.fixture
def edited(folder: Path, editor: toedit.Editor) -> EditedStream:
    return EditedStream(flat(folder), editor, folder / "train.scores")


def flat(folder: Path) -> TokenStream:
    return TokenStream(folder / "train.bin", np.uint16, split_after=EOS)


@pytest.fixture(scope="module")
def whole(folder: Path, documents: list[list[int]], prior: toedit.Prior, editor: toedit.Editor) -> dict[int, Ints]:
    """What all crops must come to, by epoch: the stream as one row, made by hand of its documents' scores."""
    parts = prior.score(documents, keep=POLICY)
    starts = np.cumsum([0, *map(len, documents)]).tolist()
    ids = [token for document in documents for token in document]
    row = {
        name: [value for part in parts.field(name).to_pylist() for value in part] for name in ("logp", "topk_ids", "topk_logp")
    }
    positions = parts.field("topk_pos").to_pylist()
    row["topk_pos"] = [at + start for start, part in zip(starts, positions, strict=False) for at in part]
    low = xxhash.xxh3_128_intdigest(np.array(ids, np.uint32).tobytes()) % 2**64
    scores = pa.array([{**row, "k": 8, "ids_hash": low, "prior": prior.fingerprint}], toedit.SCORES_TYPE)
    batch = {"input_ids": [ids], "scores": scores, "stream": ["train.bin"], "start": [0]}
    return {epoch: np.array(editor(batch, epoch)["input_ids"][0]) for epoch in (0, EPOCH)}


def crops_of(stream: Ints, starts: Any, length: int) -> Ints:
    return np.stack([stream[at : at + length] for at in np.asarray(starts).tolist()])


# Crops


def test_crops_have_the_edits_of_the_whole_stream(edited: EditedStream, whole: dict[int, Ints], documents: Any) -> None:
    """Random ones that overlap, in batches of any size; within blocks, across many, and up to the last token."""
    ids = np.concatenate(documents)
    assert len(edited) == len(ids)
    assert (edited.edit([0], len(ids), EPOCH)["input_ids"][0] == whole[EPOCH]).all()
    assert (whole[EPOCH] != ids).sum() > 200
    rng = np.random.default_rng(0)
    for length, count in ((1, 50), (7, 64), (129, 64), (1025, 12), (len(ids) - 3, 3)):
        starts = rng.integers(0, len(ids) - length, count, endpoint=True)
        starts[-1] = len(ids) - length
        result = edited.edit(starts, length, EPOCH)
        assert result["input_ids"].dtype == np.int64
        assert (result["input_ids"] == crops_of(whole[EPOCH], starts, length)).all()
        assert result.counts.tokens == count * length
    assert not (whole[0] == whole[EPOCH]).all()
    assert (edited.edit([40], 100, 0)["input_ids"][0] == whole[0][40:140]).all()


def test_the_batch_that_an_editor_takes(edited: EditedStream, editor: toedit.Editor, whole: dict[int, Ints]) -> None:
    batch = edited.crops([5, 1000], 64)
    assert batch["start"].tolist() == [5, 1000]
    assert batch["stream"].to_pylist() == ["train.bin"] * 2
    assert (editor(batch, EPOCH)["input_ids"] == crops_of(whole[EPOCH], [5, 1000], 64)).all()
    assert editor.statistics(batch).rows == 2
    torch = pytest.importorskip("torch")
    assert (edited.crops(torch.tensor([5, 1000]), 64)["input_ids"] == batch["input_ids"]).all()


def test_a_key_of_its_own(folder: Path, edited: EditedStream, editor: toedit.Editor) -> None:
    numbered = [EditedStream(flat(folder), editor, folder / "train.scores", key=key) for key in ("other", 7, 7)]
    found = [stream.edit([0], 500, 0)["input_ids"] for stream in (edited, *numbered)]
    assert not (found[0] == found[1]).all()
    assert not (found[1] == found[2]).all()
    assert (found[2] == found[3]).all()


def test_labels_where_the_policy_makes_its_own(folder: Path, prior: toedit.Prior, documents: Any) -> None:
    policy = toedit.Policy(
        bands=(toedit.Band(0.0, 0.001, action="mask_loss"), toedit.Band(0.5)), labels="original", exclude_original=True
    )
    stream = EditedStream(flat(folder), toedit.Editor(prior, policy, key="k", offset="o"), folder / "train.scores")
    result = stream.edit([3, 900], 300, 0)
    originals = crops_of(np.concatenate(documents), [3, 900], 300)
    labels = result["labels"]
    assert result.counts.masked == (labels == -100).sum() > 5
    assert ((labels == originals) | (labels == -100)).all()
    assert (result["input_ids"] != originals).sum() == result.changes > 20


def test_a_tokens_first_score_of_a_document_may_be_missing(
    documents: list[list[int]], tmp_path: Path, prior: toedit.Prior
) -> None:
    """A prior that puts nothing in front of a document: its first token has no score, and passes through."""
    bare = toedit.Prior(helpers.builtin_copy(tmp_path / "prior", bos={"rule": "never"}), threads=2)
    np.array([token for document in documents[:8] for token in document], np.int32).tofile(tmp_path / "s.bin")
    stream = TokenStream(tmp_path / "s.bin", np.int32, split_after=EOS)
    done = score(stream, tmp_path / "scores", prior=bare, keep=POLICY)
    assert (done.tokens, done.documents, done.unscored) == (len(stream), 8, 8)
    edits = EditedStream(stream, toedit.Editor(bare, POLICY, key="k", offset="o"), tmp_path / "scores")
    counts = edits.edit([0], len(stream), 0).counts
    assert counts.unscored == 8
    assert counts.changes > 10
    missing = np.flatnonzero(np.isnan(np.load(tmp_path / "scores" / "logp.npy")))
    assert missing.tolist() == np.cumsum([0, *map(len, documents[:7])]).tolist()


@pytest.mark.parametrize(
    ("starts", "length", "text"),
    [
        ([-1], 10, "a crop of 10 tokens at -1 reaches beyond"),
        ([0, 10**9], 10, "a crop of 10 tokens at 1000000000 reaches beyond"),
        ([0], 10**9, "length is 1000000000"),
        ([0], 0, "length is 0"),
        ([], 5, "starts is an array of float64"),
        (3, 5, "it must be a row of integers"),
        ([0.5], 5, "starts is an array of float64"),
    ],
)
def test_crops_that_are_none(edited: EditedStream, starts: Any, length: int, text: str) -> None:
    with pytest.raises(toedit.InputError, match=text):
        edited.crops(starts, length)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"key": None}, r"key=None.*Editor\(…, key=\"stream\", offset=\"start\"\)"),
        ({"offset": None}, "offset=None"),
        ({"generations": 2}, "makes 2 generations"),
        ({"policy": toedit.Policy(threshold=0.9, max_edit_rate=0.1)}, "max_edit_rate=0.1, which is a share of a row"),
        ({"policy": toedit.Policy(threshold=0.9, protect_code=True)}, "protect_code=True"),
        ({"policy": toedit.Policy(threshold=0.9, protected_words=("a",))}, "protected_words"),
        ({"policy": toedit.Policy(threshold=0.9, protect_subwords=True)}, "protect_subwords"),
        ({"policy": toedit.Policy(threshold=0.9, protect_first=2)}, "protect_first=2, which is about the beginnings"),
        ({"policy": toedit.Policy(threshold=0.9, protect_prompt=True)}, "protect_prompt"),
        ({"policy": toedit.Policy.preset("reference-code-filter")}, "drops tokens"),
    ],
)
def test_editors_whose_edits_would_depend_on_the_crop(
    folder: Path, prior: toedit.Prior, settings: dict[str, Any], text: str
) -> None:
    editor = toedit.Editor(prior, **{"policy": POLICY, "key": "stream", "offset": "start", **settings})
    with pytest.raises(toedit.InputError, match=text):
        EditedStream(flat(folder), editor, folder / "train.scores")


# What is refused


def test_scores_of_another_stream_prior_or_policy(
    changeable: Path, editor: toedit.Editor, prior: toedit.Prior, tmp_path: Path
) -> None:
    scores = changeable / "train.scores"
    with pytest.raises(toedit.ScoresError, match=r"read as uint32, has \d+: it is another file, or has another dtype"):
        EditedStream(TokenStream(changeable / "train.bin", np.uint32), editor, scores)
    other = toedit.Editor(toedit.Prior(prior.path, min_context=100), POLICY, key="stream", offset="start")
    with pytest.raises(
        toedit.ScoresError, match=r"of prior \w{32}, but the editor's prior is \w{32}; score the stream with that"
    ):
        EditedStream(flat(changeable), other, scores)
    wide = toedit.Editor(prior, toedit.Policy(threshold=0.1), key="stream", offset="start")
    with pytest.raises(toedit.ScoresError, match=r"top-8 where P lies in \[0.3, 1\], but the policy needs .*\[0.1, 1\]; score"):
        EditedStream(flat(changeable), wide, scores)
    with pytest.raises(toedit.ScoresError, match="has no scores of a token stream"):
        EditedStream(flat(changeable), editor, tmp_path / "nothing")


def test_a_token_file_that_was_changed(changeable: Path, editor: toedit.Editor) -> None:
    """Where it was: crops elsewhere have the same ids and scores as ever. `verify` reads all."""
    stream = EditedStream(flat(changeable), editor, changeable / "train.scores")
    assert stream.verify() == []
    ids = np.memmap(changeable / "train.bin", np.uint16, "r+")
    for value in (ids[1100] + 1, 60_000):  # another id, and one that the prior does not have
        ids[1100] = value
        with pytest.raises(toedit.ScoresError, match=r"train\.bin: tokens 1024 to 2047 are not those"):
            stream.edit([3, 1500], 64, 0)  # the same block, not the same token
        assert stream.edit([0, 2048], 64, 0).counts.rows == 2
        assert [("1024 to 2047 are not" in text) for text in stream.verify()] == [True]


@pytest.mark.parametrize("name", ["logp", "topk_pos", "topk_ids", "topk_logp", "ids_hash"])
def test_files_of_scores_that_were_cut_off_or_changed(changeable: Path, editor: toedit.Editor, name: str) -> None:
    path = changeable / "train.scores" / f"{name}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(toedit.ScoresError, match=rf"{name}\.npy cannot be read"):
        EditedStream(flat(changeable), editor, path.parent)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (wrong, *_) = EditedStream(flat(changeable), editor, path.parent).verify()
    assert f"{name}.npy is not what was written" in wrong
    np.save(path, np.load(path)[:-1])
    with pytest.raises(toedit.ScoresError, match="its manifest speaks of"):
        EditedStream(flat(changeable), editor, path.parent)


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "cannot be read"), ("{}", "is damaged: KeyError"), ('{"format": 2}', "is of format 2, but this toedit reads 1")],
)
def test_manifests_that_cannot_be_read(changeable: Path, editor: toedit.Editor, content: str, text: str) -> None:
    (changeable / "train.scores" / "scores.json").write_text(content)
    with pytest.raises(toedit.ScoresError, match=text):
        EditedStream(flat(changeable), editor, changeable / "train.scores")


# Files of tokens


def test_files_that_are_no_stream(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(toedit.InputError, match=r"x\.bin cannot be read"):
        TokenStream(path, np.uint16)
    path.write_bytes(b"")
    with pytest.raises(toedit.InputError, match="has 0 bytes of ids"):
        TokenStream(path, np.uint16)
    path.write_bytes(bytes(7))
    with pytest.raises(toedit.InputError, match="has 7 bytes of ids, which is no number of uint16: it was cut off"):
        TokenStream(path, np.uint16)
    with pytest.raises(toedit.InputError, match=r"has no x\.idx beside it, so its dtype must be given"):
        TokenStream(path)
    with pytest.raises(toedit.InputError, match="dtype is float32"):
        TokenStream(path, np.float32)
    with pytest.raises(toedit.InputError, match="header is -2"):
        TokenStream(path, np.uint16, header=-2)
    np.arange(1, 4, dtype=np.uint16).tofile(path)
    assert TokenStream(path, "uint16", header=2).tokens.tolist() == [2, 3]
    with pytest.raises(toedit.InputError, match="split_after is 65536; it must be 0 to 65535"):
        TokenStream(path, np.uint16, split_after=2**16)
    assert TokenStream(path, "uint8").tokens.tolist() == [1, 0, 2, 0, 3, 0]


def test_documents_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_READ", 4)
    np.array([5, 6, 0, 0, 7, 8, 9, 0, 1, 2, 3], np.uint32).tofile(tmp_path / "x.bin")
    stream = TokenStream(tmp_path / "x.bin", np.uint32, split_after=0)
    assert list(stream.documents()) == [(0, 3), (3, 4), (4, 8), (8, 11)]
    assert list(stream.documents(4)) == [(4, 8), (8, 11)]
    assert list(TokenStream(tmp_path / "x.bin", np.uint32).documents()) == [(0, 11)]


def write_pair(prefix: Path, sequences: list[list[list[int]]], dtype: Any, code: int, modes: bool = False) -> None:
    """Documents of sequences as a pair of Megatron-LM's files."""
    flat = [sequence for document in sequences for sequence in document]
    values = np.array([token for sequence in flat for token in sequence], dtype)
    values.tofile(f"{prefix}.bin")
    lengths = np.array([len(sequence) for sequence in flat], np.int32)
    pointers = (np.cumsum([0, *lengths])[:-1] * values.itemsize).astype(np.int64)
    ends = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(flat), len(ends))
    more = bytes(len(flat)) if modes else b""
    Path(f"{prefix}.idx").write_bytes(head + lengths.tobytes() + pointers.tobytes() + ends.tobytes() + more)


@pytest.mark.parametrize(("dtype", "code"), [(np.uint16, 8), (np.int32, 4), (np.int64, 5)])
def test_a_pair_of_megatron(
    folder: Path,
    documents: list[list[int]],
    whole: dict[int, Ints],
    editor: toedit.Editor,
    tmp_path: Path,
    dtype: Any,
    code: int,
) -> None:
    """Its scores are those of the same documents in a flat file, and so are the edits under the same key."""
    sequences = [[d[: len(d) // 2], d[len(d) // 2 :]] if n % 3 else [d] for n, d in enumerate(documents)]
    sequences.insert(4, [])  # a document without a sequence, and one whose sequence is empty
    sequences.insert(7, [[]])
    write_pair(tmp_path / "corpus.v1_text_document", sequences, dtype, code, modes=code == 4)
    for ending in ("", ".bin", ".idx"):  # the first as Megatron's --data-path has it
        stream = TokenStream(tmp_path / f"corpus.v1_text_document{ending}")
        assert stream.tokens.dtype == dtype
        assert [stream.tokens[a:b].tolist() for a, b in stream.documents()] == documents
    moved = EditedStream(stream, editor, folder / "train.scores", key="train.bin")
    assert (moved.edit([9, 1030], 600, EPOCH)["input_ids"] == crops_of(whole[EPOCH], [9, 1030], 600)).all()
    if code == 8:
        score(stream, tmp_path / "scores", prior=editor.prior, keep=POLICY)
        assert files(tmp_path / "scores") == files(folder / "train.scores")


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.npy")}


def test_indices_that_cannot_be_read(tmp_path: Path) -> None:
    path, index = tmp_path / "x.bin", tmp_path / "x.idx"
    write_pair(tmp_path / "x", [[[1, 2]], [[3]]], np.uint16, 8)
    good, ids = index.read_bytes(), path.read_bytes()
    assert len(TokenStream(path, np.uint16)) == 3
    for content, text in (
        (good[:20], "is no index of Megatron-LM's"),
        (b"x" + good[1:], "is no index of Megatron-LM's"),
        (good[:9] + b"\x02" + good[10:], "has version 2"),
        (good[:17] + b"\x07" + good[18:], "dtype 7"),
        (good[:-4], "was cut off"),
    ):
        index.write_bytes(content)
        with pytest.raises(toedit.InputError, match=text):
            TokenStream(path)
    index.write_bytes(good)
    path.write_bytes(ids[:4])
    with pytest.raises(toedit.InputError, match=r"has 4 bytes, but .* is of a file of 6"):
        TokenStream(path)
    for settings in ({"dtype": np.int32}, {"split_after": 0}, {"header": 2}):
        path.write_bytes(ids)
        with pytest.raises(toedit.InputError, match="says that the ids are uint16, and where documents begin"):
            TokenStream(path, **settings)


# Scoring


def test_scoring_in_parts_and_after_interruptions(
    folder: Path, documents: list[list[int]], prior: toedit.Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every part in turn, also inside of a document: the same files. What was not committed is made again."""
    monkeypatch.setattr(tokens, "_TOKENS", 700)  # less than the longest document
    out, committed, reported = tmp_path / "out", [0], []

    def progress(done: int, share: float) -> None:
        reported.append((done, share))
        found = tmp_path / "out.partial" / "progress.json"
        if found.exists() and (tokens := json.loads(found.read_text())["done"]["tokens"]) > committed[-1]:
            committed.append(tokens)
            raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            score(flat(folder), out, prior=prior, keep=POLICY, progress=progress)
        assert not out.exists()
        with (tmp_path / "out.partial" / "logp.npy").open("ab") as file:
            file.write(b"lost")
    ends = np.cumsum([len(document) for document in documents])
    assert not set(committed[1:]) <= set(ends.tolist())
    with pytest.raises(toedit.ScoresError, match="were begun and not finished"):
        EditedStream(flat(folder), toedit.Editor(prior, POLICY, key="k", offset="o"), out)
    with monkeypatch.context() as at_the_end:
        at_the_end.setattr("toedit._token_scores._sha256", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(flat(folder), out, prior=prior, keep=POLICY, progress=lambda *done: reported.append(done))
    done = score(flat(folder), out, prior=prior, keep=POLICY)
    assert files(out) == files(folder / "train.scores")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in out.iterdir()} == {*files(out), "scores.json"}
    assert (done.tokens, done.documents) == (sum(map(len, documents)), len(documents))
    assert reported[-1] == (done.tokens, 1)


def interrupt(*_: object) -> str:
    raise KeyboardInterrupt


def test_across_documents(folder: Path, prior: toedit.Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior that reads a packed row as one document reads a stream as one. One process at a time writes it."""
    monkeypatch.setattr(tokens, "_TOKENS", 700)
    np.fromfile(folder / "train.bin", np.uint16)[:1600].tofile(tmp_path / "x.bin")
    stream = TokenStream(tmp_path / "x.bin", np.uint16, split_after=EOS)
    packed = toedit.Prior(prior.path, cross_documents=True, threads=2)
    with monkeypatch.context() as at_the_end:
        at_the_end.setattr("toedit._token_scores._sha256", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(stream, tmp_path / "out", prior=packed)
    with (
        locked(str(tmp_path / "out.partial"), 0),
        pytest.raises(toedit.InputError, match="another process does not let go of its lock"),
    ):
        score(stream, tmp_path / "out", prior=packed)
    done = score(stream, tmp_path / "out", prior=packed)
    assert (done.tokens, done.documents) == (1600, 1)
    found = np.load(tmp_path / "out" / "logp.npy")
    assert found.tolist() == packed.score([stream.tokens]).field("logp")[0].as_py()


def test_an_interrupted_run_goes_on_with_the_same_only(
    changeable: Path, prior: toedit.Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_TOKENS", 700)

    def stop(done: int, share: float) -> None:
        if done > 2500:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        score(flat(changeable), out, prior=prior, keep=POLICY, progress=stop)
    with pytest.raises(toedit.InputError, match=r"begun with other settings \(k was 8, is 4\)"):
        score(flat(changeable), out, prior=prior, k=4, keep=POLICY)
    with pytest.raises(toedit.InputError, match=r"split_after was 0, is None"):
        score(TokenStream(changeable / "train.bin", np.uint16), out, prior=prior, keep=POLICY)
    np.memmap(changeable / "train.bin", np.uint16, "r+")[100] += 1
    with pytest.raises(toedit.InputError, match="has changed since its first"):
        score(flat(changeable), out, prior=prior, keep=POLICY)
    with (tmp_path / "out.partial" / "topk_ids.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(toedit.InputError, match="has 1000 bytes, but"):
        score(flat(changeable), out, prior=prior, keep=POLICY)


def test_pieces_of_long_documents_have_the_windows_of_the_whole(
    prior: toedit.Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the BOS id is anywhere, and in front of the document."""
    monkeypatch.setattr(tokens, "_TOKENS", 1700)
    rng = np.random.default_rng(5)
    for n, rule in enumerate(({"rule": "always", "id": 0}, {"rule": "never"})):
        path = helpers.builtin_copy(tmp_path / f"prior {n}", bos=rule)
        for min_context in (1, 256, 400):
            prior = toedit.Prior(path, min_context=min_context)
            for first in (0, 1):
                ids = rng.integers(0, 3, 9000)  # every third the BOS id
                ids[0] = first
                expected = read_rows(prior, {"input_ids": pa.array([ids])}).windows
                pieces = list(tokens._cut(ids, prior.describe(), 0, 0, len(ids)))
                assert len(pieces) > 4
                assert [p.first for p in pieces] == [0, *(p.end for p in pieces[:-1])]
                assert all(p.end - p.begin <= 1700 for p in pieces)
                found = set()
                for p in pieces:
                    rows = read_rows(prior, {"input_ids": pa.array([ids[p.begin : p.end]])})
                    for _, start, scored, end, prefix in rows.windows.tolist():
                        if p.begin + end > p.first:
                            found.add((p.begin + start, max(p.begin + scored, p.first), p.begin + end, prefix))
                assert found == {tuple(window[1:]) for window in expected.tolist()}


def test_a_stream_of_one_document(
    folder: Path, documents: list[list[int]], prior: toedit.Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.concatenate(documents)[:1600].astype(np.uint16)
    ids.tofile(tmp_path / "x.bin")
    expected = prior.score([ids.astype(np.int64)], keep=POLICY)[0]
    monkeypatch.setattr(tokens, "_TOKENS", 700)
    done = score(TokenStream(tmp_path / "x.bin", np.uint16), tmp_path / "x.scores", prior=prior, keep=POLICY)
    assert done.documents == 1
    found = _token_scores.TokenScores(tmp_path / "x.scores")
    assert found.logp.tolist() == expected["logp"].as_py()
    assert found.topk_pos.tolist() == expected["topk_pos"].as_py()
    assert found.topk_ids.reshape(-1).tolist() == expected["topk_ids"].as_py()
    assert found.topk_logp.reshape(-1).tolist() == expected["topk_logp"].as_py()


def test_ids_that_the_prior_does_not_have(folder: Path, prior: toedit.Prior, tmp_path: Path) -> None:
    ids = np.fromfile(folder / "train.bin", np.uint16)[:600]
    ids[517] = 5000
    ids.tofile(tmp_path / "x.bin")
    stream = TokenStream(tmp_path / "x.bin", np.uint16, split_after=EOS)
    with pytest.raises(toedit.InputError, match=r"x\.bin: token 517 is 5000, but the prior's vocabulary is 0 to 4095"):
        score(stream, tmp_path / "out", prior=prior)
    with pytest.raises(toedit.InputError, match="k is 65; this prior stores 1 to 64"):
        score(stream, tmp_path / "out", prior=prior, k=65)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.fromfile(folder / "train.bin", np.uint16)[:600].tofile(tmp_path / "x.bin")
    arguments = ["score", str(tmp_path / "x.bin"), "-o", str(tmp_path / "x.scores"), "--prior", "builtin", "--keep", "0.3"]
    flags = ["--dtype", "uint16", "--split-after", "0"]
    assert main([*arguments, *flags]) == 0
    assert "documents, 600 tokens (0 without a score), top-8 at" in capsys.readouterr().out
    blocks = [np.load(path / "logp.npy")[:600] for path in (tmp_path / "x.scores", folder / "train.scores")]
    assert (blocks[0] == blocks[1]).all()
    manifest = json.loads((tmp_path / "x.scores" / "scores.json").read_text())
    assert {"toedit", "cpu", "onnxruntime"} < set(manifest)
    assert manifest["split_after"] == 0
    for more, text in (
        (flags, "exists; give another name, or overwrite it"),
        ([], "its dtype must be given"),
        (["--dtype", "int17"], "dtype is 'int17'"),
        (["--lines"], "--lines is not for token streams"),
    ):
        assert main([*arguments, *more]) == 1
        assert text in capsys.readouterr().err
    assert main(["score", "y.bin", *arguments[1:], *flags]) == 1
    assert "2 files are given" in capsys.readouterr().err
    assert main([*arguments, *flags, "--overwrite"]) == 0
    arguments[1] = "x.parquet"
    assert main([*arguments, "--dtype", "uint16"]) == 1
    assert "--dtype is not for files of rows" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    arguments[1:4] = [str(tmp_path / "x.bin"), "-o", str(tmp_path / "mine")]
    assert main([*arguments, *flags, "--overwrite"]) == 1
    assert "exists and has no scores" in capsys.readouterr().err


def test_a_file_far_larger_than_memory(small_prior: toedit.Prior, tmp_path: Path) -> None:
    """Positions beyond 2**31, and nothing is read but what the crop has. The folder is written by hand, from the format."""
    n, start, length, k = 3 * 2**31, 2**32 + 12_345, 200, 2
    ids = np.random.default_rng(3).integers(3, 500, 2048).astype(np.uint16)
    base = (start // 1024) * 1024
    with (tmp_path / "huge.bin").open("wb") as file:
        file.seek(2 * base)
        file.write(ids.tobytes())
        file.truncate(2 * n)
    out = tmp_path / "scores"
    out.mkdir()
    at = base + np.arange(0, 2048, 2)
    top = np.stack([ids[::2], ids[::2] ^ 1], 1).astype(np.int32)
    np.save(out / "topk_pos.npy", at)
    np.save(out / "topk_ids.npy", top)
    np.save(out / "topk_logp.npy", np.full(top.shape, np.log(0.5), np.float16))
    logp = np.lib.format.open_memmap(out / "logp.npy", "w+", np.float32, (n,))
    logp[base : base + 2048] = np.where(np.arange(2048) % 2, np.nan, np.log(0.5))
    hashes = np.lib.format.open_memmap(out / "ids_hash.npy", "w+", np.uint64, (n // 1024,))
    for block in range(2):
        part = ids[1024 * block : 1024 * (block + 1)].astype(np.uint32)
        hashes[base // 1024 + block] = xxhash.xxh3_128_intdigest(part.tobytes()) % 2**64
    manifest = {"format": 1, "prior": {"fingerprint": small_prior.fingerprint}, "k": k, "keep": [[0.4, 1]], "sha256": {}}
    counts = {"tokens": n, "documents": 1, "unscored": 0, "positions": len(at)}
    (out / "scores.json").write_text(json.dumps(manifest | counts))
    del logp, hashes
    editor = toedit.Editor(small_prior, toedit.Policy(threshold=0.4, k=2), key="k", offset="o")
    tracemalloc.start()
    try:
        stream = EditedStream(TokenStream(tmp_path / "huge.bin", np.uint16), editor, out)
        result = stream.edit([start, start + 50], length, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert result.candidates == length
    assert result.changes > 20
    first, second = result["input_ids"]
    assert (first[50:] == second[:-50]).all()
    originals = ids[start - base : start - base + length]
    changed = first != originals
    assert (first[changed] == originals[changed] ^ 1).all()
    log = result.log.to_pylist()
    assert log[0]["position"] == start + int(np.argmax(changed))


# PyTorch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_over_crops(edited: EditedStream, whole: dict[int, Ints], workers: int) -> None:
    torch = pytest.importorskip("torch")
    dataset = edited.dataset(100)
    assert len(dataset) == len(edited) // 100
    loader = torch.utils.data.DataLoader(
        dataset, 7, shuffle=True, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    for epoch in (0, EPOCH):
        dataset.set_epoch(epoch)
        expected = sorted(crops_of(whole[epoch], range(0, len(edited) - 99, 100), 100).tolist())
        assert sorted(torch.cat([batch["input_ids"] for batch in loader]).tolist()) == expected
    assert dataset.stats().tokens == 2 * 100 * len(dataset)
    assert dataset.stats().changes > 200


def test_inputs_and_targets(edited: EditedStream, whole: dict[int, Ints]) -> None:
    torch = pytest.importorskip("torch")
    dataset = pickle.loads(pickle.dumps(edited.dataset(64, targets="shifted", starts=[7, 500, 33])))
    dataset.set_epoch(EPOCH)
    x, y = next(iter(torch.utils.data.DataLoader(dataset, 3)))
    assert (x.numpy() == crops_of(whole[EPOCH], [7, 500, 33], 64)).all()
    assert (y.numpy() == crops_of(whole[EPOCH], [8, 501, 34], 64)).all()
    every = edited.dataset(64, stride=1, targets="shifted")
    assert len(every) == len(edited) - 64
    assert every[len(every) - 1][1].tolist() == whole[0][-64:].tolist()


def test_targets_that_the_policy_makes(folder: Path, prior: toedit.Prior, documents: Any) -> None:
    pytest.importorskip("torch")
    policy = toedit.Policy(threshold=0.3, labels="original", exclude_original=True)
    stream = EditedStream(flat(folder), toedit.Editor(prior, policy, key="k", offset="o"), folder / "train.scores")
    ids = np.concatenate(documents)
    x, y = stream.dataset(200, targets="shifted")[0]
    assert y.tolist() == ids[1:201].tolist()
    assert x.tolist() != ids[:200].tolist()
    row = stream.dataset(200)[0]
    assert row["labels"].tolist() == ids[:200].tolist()
    assert row["input_ids"].tolist() == x.tolist()


def test_an_epoch_that_nobody_sets_is_noticed(edited: EditedStream) -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(edited.dataset(100), 8)
    list(loader)
    with pytest.warns(toedit.EpochWarning):
        list(loader)


def test_datasets_that_are_none(edited: EditedStream) -> None:
    pytest.importorskip("torch")
    for arguments, text in (
        ({"length": 0}, "length is 0"),
        ({"length": len(edited), "targets": "shifted"}, "length is"),
        ({"length": 5, "stride": 0}, "stride is 0"),
        ({"length": 5, "starts": [len(edited)]}, "reaches beyond"),
        ({"length": 5, "starts": [1], "stride": 5}, "exclude each other"),
        ({"length": 5, "targets": "next"}, "targets is 'next'"),
    ):
        with pytest.raises(toedit.InputError, match=text):
            edited.dataset(**arguments)


def test_resumed_in_the_middle(edited: EditedStream) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    torch = pytest.importorskip("torch")

    def loader() -> Any:
        dataset = edited.dataset(64)
        dataset.set_epoch(EPOCH)
        return stateful.StatefulDataLoader(dataset, 8, shuffle=True, generator=torch.Generator().manual_seed(1))

    batches = [batch["input_ids"].tolist() for batch in loader()]
    stopped = loader()
    running = iter(stopped)
    for done in range(4):
        state = copy.deepcopy(stopped.state_dict())
        resumed = loader()
        resumed.load_state_dict(state)
        assert [batch["input_ids"].tolist() for batch in resumed] == batches[done:]
        next(running)


def test_a_loop_like_nanogpts(edited: EditedStream, whole: dict[int, Ints], folder: Path) -> None:
    """Its get_batch, its offsets; the model learns."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    block_size, batch_size, seen = 32, 4, []

    def get_batch(step: int) -> tuple[Any, Any]:
        ix = torch.randint(len(edited) - block_size, (batch_size,))
        epoch = EPOCH * (step % 2)
        seen.append((ix.tolist(), epoch))
        ids = torch.from_numpy(edited.edit(ix, block_size + 1, epoch)["input_ids"])
        return ids[:, :-1], ids[:, 1:]

    model = torch.nn.Sequential(torch.nn.Embedding(4096, 16), torch.nn.Linear(16, 4096))
    losses = []
    for step in range(12):
        x, y = get_batch(step)
        (starts, epoch) = seen[-1]
        assert (x.numpy() == crops_of(whole[epoch], starts, block_size)).all()
        assert (y.numpy() == crops_of(whole[epoch][1:], starts, block_size)).all()
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 10 * weight.grad
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < losses[0] - 0.2
