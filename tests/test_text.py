"""Text mode: texts in, edited texts out, whose other bytes are those that came in; and the ids of another tokenizer."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import oracle
import text_families
import toedit
from toedit.projection import Projection
from toedit.text import EditedText

ODD = [
    "",
    " ",
    "\n",
    "a",
    " leading and trailing ",
    "Windows line ends\r\nand more of them\r\n\r\n",
    "tabs\tand\t\tmore\ttabs",
    "emoji 😀😀 and 👩‍👩‍👧 in the middle 🏳️‍🌈 of the text",
    "combining e\u0301 and a\u0308, precomposed é and ä, ﬁ and ½",
    "日本語のテキスト と한국어 텍스트",
    "Two  spaces,   three   spaces,\u00a0a hard one and a \u200b zero-width one.",
    "UPPER case, Mixed Case and ÀÉÎ accents; a NUL\x00 and a BEL\x07.",
    "<unk> [UNK] <|endoftext|> ##x <0x0A> ▁",
]
TEXTS = [*ODD, *["\n".join(text_families.LINES[i : i + 5]) for i in range(0, 400, 5)]]


@dataclass
class Family:
    """A tokenizer, an editor whose prior has it, and texts with their scores."""

    name: str
    tokenizer: Tokenizer
    editor: toedit.Editor
    scores: pa.StructArray

    def edit(self, **settings: Any) -> EditedText:
        return self.editor.edit_text(TEXTS, scores=self.scores, **settings)


def scores_of(prior: toedit.Prior, rows: list[list[int]], vocabulary: int) -> pa.StructArray:
    rng = np.random.default_rng(5)
    return oracle.scores_to_arrow([oracle.make_scores(rng, row, vocabulary, 8, 0.5, prior.fingerprint) for row in rows])


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


@pytest.fixture(scope="module", params=text_families.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    tokenizer = text_families.FAMILIES[request.param]()
    prior = text_families.prior_of(tokenizer, tmp_path_factory.mktemp("priors") / request.param)
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, k=8, exclude_original=True), seed=3)
    scores = scores_of(prior, ids_of(tokenizer, TEXTS), tokenizer.get_vocab_size())
    editor.edit_text(["a"], scores=scores[3:4], check=False)  # opens the native half
    return Family(request.param, tokenizer, editor, scores)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Family:
    tokenizer = text_families.byte_level()
    prior = text_families.prior_of(tokenizer, tmp_path_factory.mktemp("priors") / "byte-level")
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, k=8, exclude_original=True), seed=3)
    scores = scores_of(prior, ids_of(tokenizer, TEXTS), tokenizer.get_vocab_size())
    editor.edit_text(["a"], scores=scores[3:4], check=False)
    return Family("byte-level", tokenizer, editor, scores)


def spelling(tokenizer: Tokenizer) -> list[bytes]:
    """What each token of any of the families stands for, with the space in front of it."""
    names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        table = byte_characters()
        return [name.encode() if name.startswith("<|") else bytes(table[c] for c in name) for name in names]
    return [
        bytes.fromhex(name[3:5]) if len(name) == 6 and name[:3] == "<0x" else name.removeprefix("##").replace("▁", " ").encode()
        for name in names
    ]


def byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes, found by asking the library."""
    ask = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table: dict[str, int] = {}
    for point in [*range(0x800), *range(0x800, 0xD800, 0x100), *range(0xE000, 0x110000, 0x1000)]:
        ((written, _),) = ask.pre_tokenize_str(chr(point))
        table |= dict(zip(written, chr(point).encode(), strict=True))
    for byte in (0xC0, 0xC1, *range(0xF5, 0x100)):  # which no text has
        table[chr(byte)] = byte
    return table


def spliced(text: str, edits: list[dict[str, Any]], new: list[bytes]) -> bytes:
    """The edits made in a text, as the log tells them."""
    raw, out, at = text.encode(), b"", 0
    for edit, written in zip(edits, new, strict=True):
        assert edit["length"] == len(written)
        out += raw[at : edit["start"]] + written
        at = edit["end"]
    return out + raw[at:]


def test_bytes_outside_of_the_edited_tokens_stay(family: Family) -> None:
    result = family.edit()
    log = result.log.to_pylist()
    assert len(log) == result.edited.changes == result.edited.log.num_rows
    assert len(log) > 1000
    original = ids_of(family.tokenizer, TEXTS)
    spelled = spelling(family.tokenizer)
    for i, (text, after) in enumerate(zip(TEXTS, result.text, strict=True)):
        edits = [e for e in log if e["row"] == i]
        new = [spelled[e["new"]] for e in edits]
        # A space in front may be the tokenizer's own, or white space that stays.
        new = [w[1:] if len(w) == e["length"] + 1 and w[:1] == b" " else w for w, e in zip(new, edits, strict=True)]
        assert after.encode() == spliced(text, edits, new)
        for e in edits:
            old = text.encode()[e["start"] : e["end"]].replace("▁".encode(), b" ")  # this one is read as a space
            want = spelled[e["old"]]
            if family.name in ("nfkc", "uncased", "bert"):
                old.decode()  # whole characters, not yet normalised
            else:
                assert old in (want, want.removeprefix(b" "))
        row = list(original[i])
        for e in edits:
            assert row[e["position"]] == e["old"]
            row[e["position"]] = e["new"]
        assert result.edited["input_ids"][i].as_py() == row


@pytest.mark.parametrize("family", ["byte-level", "unigram", "llama"], indirect=True)
def test_texts_are_what_their_tokens_spell(family: Family) -> None:
    """By the library's decoder, where it gives back what it was given."""
    result = family.edit()
    ids = result.edited["input_ids"].to_pylist()
    compared, spelled = 0, spelling(family.tokenizer)
    for before, after, row in zip(TEXTS, result.text, ids, strict=True):
        if family.tokenizer.decode(ids_of(family.tokenizer, [before])[0], skip_special_tokens=False) == before:
            compared += 1
            want = b"".join(spelled[token] for token in row)
            assert after.encode() in (want, want.removeprefix(b" "))
    assert compared > 40


def test_words_without_white_space_are_what_their_tokens_spell(tmp_path: Path) -> None:
    tokenizer = text_families.wordpiece(lowercase=False)
    texts = [t for t in TEXTS if "[UNK]" not in tokenizer.encode(t).tokens and t not in ODD]
    assert len(texts) > 70
    prior = text_families.prior_of(tokenizer, tmp_path / "prior")
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, k=8, exclude_original=True))
    scores = scores_of(prior, ids_of(tokenizer, texts), tokenizer.get_vocab_size())
    result = editor.edit_text(texts, scores=scores)
    assert result.withheld == 0
    spelled = spelling(tokenizer)
    for before, after, row in zip(texts, result.text, result.edited["input_ids"].to_pylist(), strict=True):
        assert "".join(after.split()) == b"".join(spelled[token] for token in row).decode()
        assert [c for c in after if c.isspace()] == [c for c in before if c.isspace()]


def test_no_text_is_left_with_parts_of_characters(byte_level: Family) -> None:
    texts = ["😀" * 40, "日本語" * 20, "é" * 30]
    ids = ids_of(byte_level.tokenizer, texts)
    scores = scores_of(byte_level.editor.prior, ids, 4096)
    result = byte_level.editor.edit_text(texts, scores=scores)
    asked = byte_level.editor(pa.RecordBatch.from_pydict({"input_ids": ids, "scores": scores}))
    assert result.withheld > 50
    assert result.passed_through == 0
    assert result.edited.changes == result.log.num_rows == asked.changes - result.withheld
    assert result.counts.candidates == asked.candidates
    assert result.counts.expected_changes == asked.expected_changes
    for text, row in zip(result.text, result.edited["input_ids"].to_pylist(), strict=True):
        assert byte_level.tokenizer.decode(row, skip_special_tokens=False) == text
        assert "\ufffd" not in text


def test_a_tokenizer_that_lowers_case_leaves_other_tokens_as_they_are(tmp_path: Path) -> None:
    tokenizer = text_families.wordpiece(lowercase=True)
    prior = text_families.prior_of(tokenizer, tmp_path / "prior")
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, k=8, exclude_original=True))
    text = "The VALUE of Café: the Value\n"
    ids = ids_of(tokenizer, [text])
    scores = scores_of(prior, ids, tokenizer.get_vocab_size()).to_pylist()
    # Only the last token is a candidate, and this is what it becomes.
    pos, new = len(ids[0]) - 1, tokenizer.token_to_id("return")
    scores[0] |= {
        "logp": [None] + [-9.0] * (pos - 1) + [-0.01],
        "topk_pos": [pos],
        "topk_ids": [new, *range(1, 8)],
        "topk_logp": [-0.25] + [-60.0] * 7,
    }
    result = editor.edit_text([text], scores=scores)
    assert result.text == ["The VALUE of Café: the return\n"]
    assert result.retokenised == 0


def test_drop_and_mask(byte_level: Family) -> None:
    policy = toedit.Policy(bands=[toedit.Band(0.5, 0.8, action="mask_loss"), toedit.Band(0.8, 1.0, action="drop")])
    editor = toedit.Editor(byte_level.editor.prior, policy)
    result = editor.edit_text(TEXTS, scores=byte_level.scores)
    assert result.counts.dropped > 1000
    assert result.counts.masked > 100
    log = result.log.to_pylist()
    assert sum(e["new"] is None for e in log) == result.counts.dropped
    assert all((e["start"] is None) == (e["new"] is not None) for e in log)
    assert result.withheld > 0
    for i, (before, after) in enumerate(zip(TEXTS, result.text, strict=True)):
        edits = [e for e in log if e["row"] == i and e["new"] is None]
        assert after.encode() == spliced(before, edits, [b""] * len(edits))
        row = result.edited["input_ids"][i].as_py()
        assert byte_level.tokenizer.decode(row, skip_special_tokens=False) == after
    # The log is of what was made: it takes the edits back although some were withheld.
    back = toedit.revert_log(result.edited.batch, result.log)
    assert back["input_ids"].to_pylist() == [byte_level.tokenizer.encode(text).ids for text in TEXTS]


def test_retokenised_is_the_share_that_splits_otherwise(family: Family) -> None:
    result = family.edit()
    ids = result.edited["input_ids"].to_pylist()
    original = ids_of(family.tokenizer, TEXTS)
    others = sum(
        a != b for a, b, c in zip(ids, ids_of(family.tokenizer, result.text), original, strict=True) if a != c
    )  # fmt: skip
    assert result.retokenised == others / len(TEXTS) > 0.5
    quick = family.edit(check=False)
    assert quick.retokenised is None
    assert quick.text == result.text


@pytest.mark.parametrize("kind", ["list", "tuple", "string", "large_string", "sliced", "chunked"])
def test_texts_come_back_in_their_container(byte_level: Family, kind: str) -> None:
    want = byte_level.edit().text
    texts: Any = {
        "list": lambda: TEXTS,
        "tuple": lambda: tuple(TEXTS),
        "string": lambda: pa.array(TEXTS),
        "large_string": lambda: pa.array(TEXTS, pa.large_string()),
        "sliced": lambda: pa.array(["x", *TEXTS, "y"]).slice(1, len(TEXTS)),
        "chunked": lambda: pa.chunked_array([TEXTS[:3], [], TEXTS[3:]]),
    }[kind]()
    result = byte_level.editor.edit_text(texts, scores=byte_level.scores)
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        assert result.text.type == texts.type
        assert result.text.to_pylist() == want
    else:
        assert result.text == want
    if kind == "chunked":
        assert [len(c) for c in result.text.chunks] == [3, 0, len(TEXTS) - 3]


def test_no_texts(byte_level: Family) -> None:
    for texts in ([], pa.array([], pa.string())):
        result = byte_level.editor.edit_text(texts, scores=byte_level.scores[:0])
        assert len(result.text) == 0
        assert result.retokenised == 0


def test_keys_and_epochs_decide_the_draws(byte_level: Family) -> None:
    editor = toedit.Editor(byte_level.editor.prior, byte_level.editor.policy, seed=3, key="name")
    keys = [f"document {i}" for i in range(len(TEXTS))]
    one, again = (editor.edit_text(TEXTS, scores=byte_level.scores, keys=keys).text for _ in range(2))
    assert one == again
    other = editor.edit_text(TEXTS, scores=byte_level.scores, keys=pa.array(keys[::-1])).text
    later = editor.edit_text(TEXTS, scores=byte_level.scores, keys=keys, epoch=1).text
    assert len({str(t) for t in (one, other, later, byte_level.edit().text)}) == 4


def test_fresh_scores_are_the_stored_ones(prior: toedit.Prior, tokenizer: Tokenizer) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, exclude_original=True))
    texts = TEXTS[:20]
    stored = prior.score(ids_of(tokenizer, texts), keep=editor.policy)
    fresh = editor.edit_text(texts)
    assert fresh.counts.changes > 50
    assert fresh.text == editor.edit_text(texts, scores=stored).text


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ("one text", {}, "texts is a str; it must be a sequence of str"),
        (["a", None], {}, "row 1: the text is a NoneType"),
        (pa.array(["a", None]), {}, "row 1: the text is null"),
        (pa.array([1]), {}, "Arrow array of int64"),
        (["\ud800"], {}, "cannot be written as UTF-8"),
        (["a"], {"keys": ["k"]}, "keys go with an editor that has key="),
        (["a"], {"input_ids": [[1]]}, "belong to tokenizer="),
        (["a"], {"tokenizer": 5}, "a int cannot be written as a tokenizer.json"),
        (["a"], {"tokenizer": "no/such/file"}, "cannot be read"),
    ],
)
def test_what_cannot_be_edited(byte_level: Family, texts: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(toedit.Error, match=message):
        byte_level.editor.edit_text(texts, **{"scores": byte_level.scores[3:4], **settings})


def test_offsets_and_generations_belong_to_no_text(byte_level: Family) -> None:
    editor = toedit.Editor(byte_level.editor.prior, byte_level.editor.policy, offset="start")
    with pytest.raises(toedit.InputError, match="a text is a whole document"):
        editor.edit_text(["a"])
    editor = toedit.Editor(byte_level.editor.prior, byte_level.editor.policy, generations=2)
    with pytest.raises(toedit.InputError, match="makes 2 generations"):
        editor.edit_text(["a"])


def test_scores_of_other_texts_are_refused(byte_level: Family) -> None:
    with pytest.raises(toedit.ScoresError, match="row 3"):
        byte_level.editor.edit_text([*TEXTS[:3], "b"], scores=byte_level.scores[:4])


def test_a_tokenizer_whose_bytes_are_not_known(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={chr(97 + i): i for i in range(8)}, merges=[]))
    prior = text_families.prior_of(tokenizer, tmp_path / "prior")
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.5, k=1))
    with pytest.raises(toedit.PriorError, match="a BPE model must be byte-level"):
        editor.edit_text(["a"], scores=scores_of(prior, [[0]], 8))


# Another tokenizer


def test_ids_of_another_tokenizer_are_those_of_the_edited_texts(byte_level: Family, family: Family) -> None:
    result = byte_level.edit(tokenizer=family.tokenizer, check=False)
    assert result.input_ids == ids_of(family.tokenizer, result.text)


def test_ids_that_no_edit_touches_are_kept(byte_level: Family) -> None:
    """They may be another split of the text than the tokenizer's own."""
    text = "The value of the first word. " * 8
    (ids,) = ids_of(byte_level.tokenizer, [text])
    scores = scores_of(byte_level.editor.prior, [ids], 4096).to_pylist()
    pos, new = 20, byte_level.tokenizer.token_to_id("ell")
    scores[0] |= {
        "logp": [None] + [-9.0 if i != pos else -0.01 for i in range(1, len(ids))],
        "topk_pos": [pos],
        "topk_ids": [new, *range(1, 8)],
        "topk_logp": [-0.25] + [-60.0] * 7,
    }
    projection = Projection(text_families.llama())
    llama = text_families.llama()
    (theirs,) = ids_of(llama, [text])
    last = theirs.index(llama.token_to_id("▁value"), len(theirs) - 12)
    pieces = [llama.token_to_id(t) for t in ("▁", "v", "a", "l", "u", "e")]
    given = theirs[:last] + pieces + theirs[last + 1 :]
    result = byte_level.editor.edit_text([text], scores=scores, tokenizer=projection, input_ids=[given])
    assert result.counts.changes == 1
    assert result.text != [text]
    (got,) = result.input_ids
    behind = len(theirs) - last + 10
    assert got[-behind:] == given[-behind:]
    assert got[:3] == given[:3]
    assert got != given
    assert llama.decode(got, skip_special_tokens=False) == result.text[0]


def test_a_projection_is_picklable_and_gives_arrow_for_arrow(byte_level: Family) -> None:
    projection = pickle.loads(pickle.dumps(Projection(text_families.llama())))
    lists = byte_level.edit(tokenizer=projection, check=False).input_ids
    arrow = byte_level.editor.edit_text(
        pa.array(TEXTS),
        scores=byte_level.scores,
        tokenizer=projection,
        input_ids=pa.array(ids_of(text_families.llama(), TEXTS)),
    ).input_ids
    assert arrow.type == pa.list_(pa.int32())
    assert arrow.to_pylist() == lists


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [([[1]], "has 1 rows, but there are"), ([["a"]] * len(TEXTS), "must be rows of ids"), (5, "must be rows of ids")],
)
def test_ids_that_do_not_fit(byte_level: Family, input_ids: Any, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        byte_level.edit(tokenizer=text_families.llama(), input_ids=input_ids)


def gpt2(data: Path) -> Tokenizer:
    files = data / "tokenizers" / "cs336"
    lines = (files / "gpt2_merges.txt").read_text("utf-8").splitlines()
    merges = [(a, b) for a, b in (line.split() for line in lines if line and not line.startswith("#version"))]
    tokenizer = Tokenizer(models.BPE(json.loads((files / "gpt2_vocab.json").read_text("utf-8")), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.mark.shared_data
def test_gpt2_ids_of_edited_encyclopedia_text(shared_data: Path, byte_level: Family) -> None:
    lines = (shared_data / "human_wikitext2_partial" / "valid.txt").read_text("utf-8").splitlines()
    texts = [line for line in lines if line.strip()][:300]
    scores = scores_of(byte_level.editor.prior, ids_of(byte_level.tokenizer, texts), 4096)
    policy = toedit.Policy(threshold=0.99, k=8, exclude_original=True)
    trainer = gpt2(shared_data)
    result = toedit.Editor(byte_level.editor.prior, policy).edit_text(texts, scores=scores, tokenizer=trainer, check=False)
    assert result.counts.changes > 3000
    assert result.input_ids == ids_of(trainer, result.text)


@pytest.mark.shared_data
def test_pieces_of_a_sentencepiece_file(shared_data: Path, tmp_path: Path) -> None:
    """The vocabulary of a model that nobody on this project made, in text with quotes, dashes and characters that it lacks."""
    lines = (shared_data / "ckpt_babyllama105" / "tok105.vocab").read_text("utf-8").splitlines()
    pieces = [(piece, float(score)) for piece, score in (line.split("\t") for line in lines)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    text = (shared_data / "human_openstax" / "osbooks-us-history.txt").read_text("utf-8")
    texts = [text[i : i + 500] for i in range(100_000, 150_000, 500)]
    prior = text_families.prior_of(tokenizer, tmp_path / "prior")
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.99, exclude_original=True))
    result = editor.edit_text(texts, scores=scores_of(prior, ids_of(tokenizer, texts), len(pieces)))
    assert result.counts.changes > 3000
    assert result.passed_through == 0
    spelled = spelling(tokenizer)
    log = result.log.to_pylist()
    for i, (before, after) in enumerate(zip(texts, result.text, strict=True)):
        edits = [e for e in log if e["row"] == i]
        new = [spelled[e["new"]] for e in edits]
        new = [w[1:] if len(w) == e["length"] + 1 else w for w, e in zip(new, edits, strict=True)]  # white space that stays
        assert after.encode() == spliced(before, edits, new)
