"""What is never edited: each named setting keeps what it names, in real text and from every form of column, and counts it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer

import oracle
import toedit
from toedit import Band, Policy

Span = tuple[int, int]

# No loss is taken of any token that is not protected, so that the log names exactly those.
ALL = (Band(action="mask_loss"),)
WORD = r"[^\W_]+"


class Text:
    """A text with its tokens, and scores in which every token is in a band."""

    def __init__(self, tokenizer: Tokenizer, prior: toedit.Prior, text: str) -> None:
        encoded = tokenizer.encode(text)
        self.text = text
        self.ids: list[int] = encoded.ids
        self.offsets: list[Span] = encoded.offsets
        self.scores = oracle.Scores(
            logp=[-1.0] * len(self.ids),
            topk_pos=np.zeros(0, np.int32),
            topk_ids=np.zeros(0, np.int32),
            topk_logp=np.zeros(0, np.float32),
            k=8,
            ids_hash=oracle.document_hash(self.ids)[0],
            prior=prior.fingerprint,
        )

    def tokens_of(self, spans: Sequence[Span]) -> set[int]:
        """The tokens that share a character with one of the spans."""
        return {i for i, (a, b) in enumerate(self.offsets) if any(a < end and start < b for start, end in spans)}

    def tokens_where(self, holds: Callable[[str], bool]) -> set[int]:
        """The tokens whose text is so. Parts of a character, which have the offsets of all of it, are no text."""
        return {i for i, span in enumerate(self.offsets) if self.offsets.count(span) == 1 and holds(self.text[slice(*span)])}

    def words_of_several(self) -> set[int]:
        """The tokens of words that have several. A character that has several is a letter, whatever it is."""
        text = list(self.text)
        for span in self.offsets:
            if self.offsets.count(span) > 1:
                text[slice(*span)] = "x"
        words = [self.tokens_of([match.span()]) for match in re.finditer(WORD, "".join(text))]
        return set().union(*(word for word in words if len(word) > 1))

    def occurrences(self, *words: str) -> list[Span]:
        """Where one of the words stands between characters that are no letters."""
        return [m.span() for word in words for m in re.finditer(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", self.text)]


CODE = """\
from os import path

def double(x):
    return 2 * x  # not ``` here
"""


@pytest.fixture(scope="module")
def texts(prior: toedit.Prior, tokenizer: Tokenizer) -> list[Text]:
    """Python's help, with a code block behind the first paragraph and sometimes one that is never closed."""
    texts = []
    for n, name in enumerate(sorted(topics)[::4]):
        paragraphs = topics[name].split("\n\n")[:6]
        fence = ("```", "~~~", "````", "  ```")[n % 4]
        paragraphs[1:1] = [f"{fence}python\n{CODE}{fence}"]
        if n % 3 == 0:  # never closed
            paragraphs += [f"{fence}\n{CODE}"]
        texts.append(Text(tokenizer, prior, "\n\n".join(paragraphs)))
    return texts


def batch(texts: Sequence[Text], **columns: Any) -> dict[str, Any]:
    return {"input_ids": [t.ids for t in texts], "scores": oracle.scores_to_arrow([t.scores for t in texts]), **columns}


def protected(prior: toedit.Prior, texts: Sequence[Text], policy: Policy, columns: dict[str, Any]) -> list[set[int]]:
    """The positions of each row that are left alone. They must be what the counts say."""
    edited = toedit.Editor(prior, policy).edit(columns)
    found = [set(range(len(t.ids))) for t in texts]
    for edit in edited.log.to_pylist():
        found[edit["row"]].remove(edit["position"])
    assert edited.counts.protected == sum(map(len, found))
    assert edited.counts.candidates == edited.counts.masked == edited.counts.tokens - edited.counts.protected
    return found


def code_spans(text: Text) -> list[Span]:
    """The blocks of the fixture with the line endings around them."""
    return [m.span() for m in re.finditer(r"\n *(```+|~~~)(python\n(?:.*\n)*? *\1\n|\n(?:.*\n)*\Z)", text.text)]


def is_punctuation(spelled: str) -> bool:
    """Whether there is something beside white space, all of it punctuation and symbols. U+FFFD stands for parts of
    characters."""
    return (
        spelled.strip() != ""
        and "\ufffd" not in spelled
        and all(unicodedata.category(c)[0] in "PS" for c in spelled if not c.isspace())
    )


SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Text], set[int]]]] = {
    "digits": (
        {"protect_digits": True},
        lambda t: t.tokens_where(lambda token: any(c.isdecimal() for c in token)),
    ),
    "punctuation": (
        {"protect_punctuation": True},
        lambda t: t.tokens_where(is_punctuation),
    ),
    "subwords": ({"protect_subwords": True}, Text.words_of_several),
    "code": ({"protect_code": True}, lambda t: t.tokens_of(code_spans(t))),
    "words": (
        {"protected_words": ("Python", "the", "in the", "object.", "x")},
        lambda t: t.tokens_of(t.occurrences("Python", "the", "in the", "object.", "x")),
    ),
    "first": ({"protect_first": 7}, lambda t: set(range(min(7, len(t.ids))))),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_keeps_what_it_names(prior: toedit.Prior, texts: list[Text], name: str) -> None:
    settings, expected = SETTINGS[name]
    found = protected(prior, texts, Policy(bands=ALL, **settings), batch(texts))
    assert found == [expected(t) for t in texts]
    assert 0 < sum(map(len, found)) < sum(len(t.ids) for t in texts)


def test_settings_add_up(prior: toedit.Prior, texts: list[Text]) -> None:
    policy = Policy(bands=ALL, **{k: v for settings, _ in SETTINGS.values() for k, v in settings.items()})
    found = protected(prior, texts, policy, batch(texts))
    assert found == [set().union(*(expected(t) for _, expected in SETTINGS.values())) for t in texts]


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"code"}))  # of which there is none in these rows
def test_what_is_protected_is_not_redrawn(
    prior: toedit.Prior, tokenizer: Tokenizer, rows: list[list[int]], scores: pa.StructArray, name: str
) -> None:
    """With scores of the prior: fewer tokens change than without the setting, and none that it names."""
    settings, _ = SETTINGS[name]
    eager = {"threshold": 0.3, "exclude_original": True}
    given = {"input_ids": rows, "scores": scores}
    free = toedit.Editor(prior, Policy(**eager)).edit(given)
    edited = toedit.Editor(prior, Policy(**eager, **settings)).edit(given)
    assert edited.counts.candidates + edited.counts.protected == free.counts.candidates + free.counts.protected
    assert edited.changes < free.changes
    assert edited.counts.protected > free.counts.protected
    for edit in edited.log.to_pylist():
        for spelled in (tokenizer.decode([edit["old"]]), tokenizer.decode([edit["new"]])):
            assert name != "digits" or not any(c.isdecimal() for c in spelled)
            assert name != "punctuation" or not is_punctuation(spelled)


def test_whole_words_keep_the_boundary(
    prior: toedit.Prior, tokenizer: Tokenizer, rows: list[list[int]], scores: pa.StructArray
) -> None:
    def boundary(token: int) -> str:
        spelled = tokenizer.decode([token]).replace("\ufffd", "x")  # parts of characters are letters
        if re.match(rf"\s+{WORD}", spelled):
            return "begins"
        return "continues" if re.match(WORD, spelled) else "neither"

    given = {"input_ids": rows, "scores": scores}
    for whole_words in (False, True):
        log = (
            toedit.Editor(prior, Policy(threshold=0.3, exclude_original=True, whole_words=whole_words))
            .edit(given)
            .log.to_pylist()
        )
        assert len(log) > 500
        assert all(boundary(edit["old"]) == boundary(edit["new"]) for edit in log) == whole_words


# Columns


def test_roles(prior: toedit.Prior, texts: list[Text]) -> None:
    masks = [[i % 5 < 2 for i in range(len(t.ids))] for t in texts]
    given = batch(texts, assistant_masks=masks)
    words = [{i for i, marked in enumerate(mask) if marked} for mask in masks]
    others = [{i for i, marked in enumerate(mask) if not marked} for mask in masks]
    assert protected(prior, texts, Policy(bands=ALL, protect_assistant=True), given) == words
    assert protected(prior, texts, Policy(bands=ALL, protect_prompt=True), given) == others
    assert not any(protected(prior, texts, Policy(bands=ALL), given))
    measured = toedit.Editor(prior, Policy(bands=ALL, protect_prompt=True)).statistics(given)
    assert measured.protected == sum(map(len, others))


def equally_long(texts: Sequence[Text], length: int = 60) -> dict[str, Any]:
    ids = [t.ids[:length] for t in texts]
    scores = [{**t.scores, "logp": [-1.0] * length, "ids_hash": oracle.document_hash(t.ids[:length])[0]} for t in texts]
    return {"input_ids": ids, "scores": oracle.scores_to_arrow(scores)}


PAIR = pa.list_(pa.int32(), 2)
FORMS: dict[str, Callable[[list[list[Span]]], Any]] = {
    "lists of tuples": lambda rows: rows,
    "lists of lists": lambda rows: [[list(pair) for pair in row] for row in rows],
    "lists of structs": lambda rows: [[{"end": end, "start": start} for start, end in row] for row in rows],
    "list<list<int32>>": lambda rows: pa.array(rows, pa.list_(pa.list_(pa.int32()))),
    "large_list<large_list<int64>>": lambda rows: pa.array(rows, pa.large_list(pa.large_list(pa.int64()))),
    "list<fixed_size_list<int32>>": lambda rows: pa.array(rows, pa.list_(PAIR)),
    "chunks": lambda rows: pa.chunked_array([pa.array(rows[:1], pa.list_(PAIR)), pa.array(rows[1:], pa.list_(PAIR))]),
    "a slice": lambda rows: pa.array([[(7, 8)] * 3, *rows, [(9, 9)]], pa.list_(PAIR))[1:-1],
    "polars": lambda rows: pl.Series([[list(pair) for pair in row] for row in rows], dtype=pl.List(pl.List(pl.Int64))),
    "polars arrays": lambda rows: pl.Series(
        [[list(pair) for pair in row] for row in rows], dtype=pl.List(pl.Array(pl.Int64, 2))
    ),
    "rows of NumPy": lambda rows: [np.array(row, np.int64).reshape(-1, 2) for row in rows],
    "rows of torch": lambda rows: [torch.tensor(row, dtype=torch.int64).reshape(-1, 2) for row in rows],
}


@pytest.mark.parametrize("form", FORMS)
def test_character_ranges_in_every_form(prior: toedit.Prior, texts: list[Text], form: str) -> None:
    ranges = [[m.span() for m in re.finditer(r"\bt\w*|\n\n.", t.text)] for t in texts]
    ranges[1] = []
    given = batch(texts, protected_ranges=FORMS[form](ranges), offset_mapping=FORMS[form]([t.offsets for t in texts]))
    found = protected(prior, texts, Policy(bands=ALL), given)
    assert found == [t.tokens_of(spans) for t, spans in zip(texts, ranges, strict=True)]
    assert sum(map(len, found)) > 100


@pytest.mark.parametrize("form", [np.array, torch.tensor])
def test_character_ranges_in_blocks(prior: toedit.Prior, texts: list[Text], form: Callable[[Any], Any]) -> None:
    ranges = [[(0, 9), (20 + n, 30 + n)] for n in range(len(texts))]
    columns = equally_long(texts)
    columns |= {"protected_ranges": form(ranges), "offset_mapping": form([t.offsets[:60] for t in texts])}
    edited = toedit.Editor(prior, Policy(bands=ALL)).edit(columns)
    expected = [t.tokens_of(spans) & set(range(60)) for t, spans in zip(texts, ranges, strict=True)]
    assert edited.counts.protected == sum(map(len, expected))


def test_no_ranges_at_all(prior: toedit.Prior, texts: list[Text]) -> None:
    offsets = [t.offsets for t in texts]
    assert not any(
        protected(prior, texts, Policy(bands=ALL), batch(texts, protected_ranges=[[] for _ in texts], offset_mapping=offsets))
    )
    # Offsets alone are not looked at.
    assert not any(protected(prior, texts, Policy(bands=ALL), batch(texts, offset_mapping=["?" for _ in texts])))
    empty = {"input_ids": [], "protected_ranges": [], "offset_mapping": []}
    assert toedit.Editor(prior).edit(empty | {"scores": oracle.scores_to_arrow([])}).counts.rows == 0


def test_ranges_are_no_column_of_tokens(prior: toedit.Prior, tokenizer: Tokenizer) -> None:
    """Offsets follow where tokens are dropped; ranges stay, also where there are as many as tokens."""
    text = Text(tokenizer, prior, "one two three")
    ranges = [(n, n + 1) if n < 3 else (100 + n, 100 + n) for n in range(len(text.ids))]
    edited = toedit.Editor(prior, Policy(bands=(Band(action="drop"),))).edit(
        batch([text], protected_ranges=[ranges], offset_mapping=[text.offsets])
    )
    kept = sorted(text.tokens_of([(0, 3)]))
    assert edited["input_ids"] == [[text.ids[i] for i in kept]]
    assert edited["offset_mapping"] == [[text.offsets[i] for i in kept]]
    assert edited["protected_ranges"] == [ranges]


def test_collators_see_no_ranges(prior: toedit.Prior, texts: list[Text]) -> None:
    from toedit.torch import EditCollator

    columns = batch(texts, protected_ranges=[[(0, 5)]] * len(texts), offset_mapping=[t.offsets for t in texts])
    edited = EditCollator(toedit.Editor(prior), lambda rows: rows)(columns)
    assert list(edited) == ["input_ids"]
    columns = batch(texts, offset_mapping=[t.offsets for t in texts])
    edited = EditCollator(toedit.Editor(prior), lambda rows: rows)(columns)
    assert list(edited) == ["input_ids", "offset_mapping"]


# Errors


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[(0, 1)], [(-1, 4)]], r"row 1: protected_ranges\[0\] is \[-1, 4\); characters are counted from 0"),
        ([[(0, 1)], [(4, 3)]], r"row 1: protected_ranges\[0\] is \[4, 3\); a range must not end before it begins"),
        (
            [[(5, 8), (0, 2)], []],
            r"row 0: protected_ranges\[1\] is \[0, 2\), but the one before it ends at 8; ranges must ascend",
        ),
        ([[(0, 3), (2, 5)], []], r"row 0: protected_ranges\[1\] is \[2, 5\), but the one before it ends at 3"),
        ([[(0, 3)], None], "row 1: protected_ranges is null; give it an empty list"),
        ([[(0, 3)], [(0, 3), (4,)]], r"row 1: protected_ranges\[1\] has 1 values; it must have two, a start and an end"),
        ([[(0, 3, 4)], []], r"row 0: protected_ranges\[0\] has 3 values"),
        ([[(0, 3)], [None]], r"row 1: protected_ranges\[0\] has 0 values"),
        ([[0, 3], [4, 5]], "'protected_ranges' holds list<item: int64>; a row must be a list of pairs of integers"),
        ([0, 3], "'protected_ranges' holds int64; a row must be a list of pairs of integers"),
        ([[(0.5, 1.5)], []], "'protected_ranges' holds list<item: list<item: double>>"),
        ([[{"from": 0, "to": 1}], []], "'protected_ranges' holds list<item: struct<"),
        ([[(0, None)], []], r"row 0: protected_ranges\[1\] is null"),
        ([[(0, 1)]], "column protected_ranges has 1 rows, but input_ids has 2"),
    ],
)
def test_ranges_that_cannot_be_used(prior: toedit.Prior, tokenizer: Tokenizer, ranges: Any, message: str) -> None:
    texts = [Text(tokenizer, prior, "some words"), Text(tokenizer, prior, "and more")]
    with pytest.raises(toedit.InputError, match=message):
        toedit.Editor(prior).edit(batch(texts, protected_ranges=ranges, offset_mapping=[t.offsets for t in texts]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda offsets: offsets[:-1],
            r"row 0: offset_mapping has \d+ numbers, but input_ids has \d+ tokens, with a start and an end each",
        ),
        (lambda offsets: [(3, 2), *offsets[1:]], r"row 0: offset_mapping\[0\] is \[3, 2\)"),
        (lambda offsets: [(-3, 2), *offsets[1:]], r"row 0: offset_mapping\[0\] is \[-3, 2\)"),
    ],
)
def test_offsets_that_cannot_be_used(
    prior: toedit.Prior, tokenizer: Tokenizer, change: Callable[[list[Span]], list[Span]], message: str
) -> None:
    text = Text(tokenizer, prior, "some words")
    with pytest.raises(toedit.InputError, match=message):
        toedit.Editor(prior).edit(batch([text], protected_ranges=[[]], offset_mapping=[change(text.offsets)]))


def test_columns_that_are_asked_for(prior: toedit.Prior, texts: list[Text]) -> None:
    with pytest.raises(
        toedit.InputError, match=r"protected_ranges, but no column offset_mapping .*return_offsets_mapping=True"
    ):
        toedit.Editor(prior).edit(batch(texts, protected_ranges=[[] for _ in texts]))
    for field in ("protect_assistant", "protect_prompt"):
        with pytest.raises(toedit.InputError, match=f"no column assistant_masks, which the policy's {field} needs"):
            toedit.Editor(prior, Policy(**{field: True})).edit(batch(texts))
    with pytest.raises(toedit.InputError, match="row 0: assistant_masks has 1 values, but input_ids has"):
        toedit.Editor(prior).edit(batch(texts, assistant_masks=[[1] for _ in texts]))


def test_words_with_white_space_around_them_are_refused() -> None:
    with pytest.raises(toedit.InputError, match=r'protected_words contains " the"; take the white space around it off'):
        Policy(protected_words=("a", " the"))
