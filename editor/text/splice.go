package text

import (
	"bytes"
	"unicode/utf8"

	"toedit/editor/vocab"
)

// Edit is a token of a row that is replaced or taken out.
type Edit struct {
	Pos  int
	New  uint32
	Drop bool
}

// Place is what became of an edit: the bytes of the text that were replaced, and how many stand there now. An edit that was
// not made replaced nothing by nothing.
type Place struct {
	Span
	Length int
	Made   bool
}

// Splice appends to dst the row's text with its edits, whose positions ascend, and to places what became of each. The row was
// aligned.
//
// An edit is not made where the text would no longer be UTF-8, as when one of the tokens that make up a character is replaced
// (edits are taken in order, each with those before it made); where the new id stands for nothing; or where a tokenizer that
// normalises does not tell what bytes are the token's own.
func (r *Row) Splice(dst []byte, places []Place, t *vocab.Table, edits []Edit) ([]byte, []Place) {
	first, at := len(dst), 0
	for _, e := range edits {
		span, written := r.replacement(t, e)
		dst = append(dst, r.Text[at:span.Start]...)
		at = span.Start
		made := e.Drop || len(t.Bytes(e.New)) > 0
		made = made && (r.exact || r.apart(e.Pos)) && whole(dst[first:], written, r.Text[span.End:])
		if !made {
			places = append(places, Place{Span: Span{at, at}})
			continue
		}
		dst = append(dst, written...)
		at = span.End
		places = append(places, Place{Span: span, Length: len(written), Made: true})
	}
	return append(dst, r.Text[at:]...), places
}

// replacement is which bytes of the text an edit replaces, and by what. The space in front of a token is not always in the
// text: it may be the tokenizer's own, or stand for other white space, which then stays.
func (r *Row) replacement(t *vocab.Table, e Edit) (Span, []byte) {
	span, old := r.Spans[e.Pos], t.Bytes(r.IDs[e.Pos])
	if e.Drop {
		return span, nil
	}
	written := t.Bytes(e.New)
	if r.exact && !(r.dummy && e.Pos == 0) || !bytes.HasPrefix(old, []byte(" ")) || !bytes.HasPrefix(written, []byte(" ")) {
		return span, written
	}
	if !r.exact {
		span.Start += spaceBefore(r.Text[span.Start:span.End])
	}
	return span, written[1:]
}

// whole says whether bytes between two parts of a text leave no part of a character.
func whole(before, written []byte, after string) bool {
	begun, ended := cut(before), rest(after)
	if begun == 0 && ended == 0 {
		return utf8.Valid(written)
	}
	joined := append(append(append(make([]byte, 0, 64), before[len(before)-begun:]...), written...), after[:ended]...)
	return utf8.Valid(joined)
}
