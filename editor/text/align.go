// Package text puts edits of tokens into the text that the tokens were made of. Nothing is decoded: what is not edited keeps
// its bytes.
package text

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"toedit/editor/vocab"
)

// Span is the bytes [Start, End) of a text.
type Span struct{ Start, End int }

// Row is a text and its tokens, and where they lie in it. It is meant to be used again and again; one Row serves one
// goroutine at a time.
type Row struct {
	Text  string // UTF-8
	IDs   []uint32
	Spans []Span // of the tokens, after Align or AlignTo said true

	exact bool // the text is what the tokens spell
	dummy bool // but for a space in front, which the tokenizer put there
	chars []int
}

// Align finds tokens by their bytes. It is false where they do not spell the text, up to a space that the tokenizer put in
// front and, for a tokenizer that leaves white space out, white space between tokens.
func (r *Row) Align(t *vocab.Table) bool {
	r.exact = true
	r.dummy = false
	if r.match(t) {
		return true
	}
	r.dummy = len(r.IDs) > 0 && strings.HasPrefix(string(t.Bytes(r.IDs[0])), " ")
	return r.dummy && r.match(t)
}

func (r *Row) match(t *vocab.Table) bool {
	r.Spans = slices.Grow(r.Spans[:0], len(r.IDs))[:len(r.IDs)]
	at, first := 0, 0
	if r.dummy {
		b := t.Bytes(r.IDs[0])[1:]
		if !strings.HasPrefix(r.Text, string(b)) {
			return false
		}
		at, first = len(b), 1
		r.Spans[0] = Span{0, at}
	}
	for i, id := range r.IDs[first:] {
		if t.OmitsSpace() {
			at += spaceBefore(r.Text[at:])
		}
		n := t.Begins(r.Text[at:], id)
		if n < 0 {
			return false
		}
		r.Spans[first+i] = Span{at, at + n}
		at += n
	}
	if t.OmitsSpace() {
		at += spaceBefore(r.Text[at:])
	}
	return at == len(r.Text)
}

// AlignTo takes the tokens' places from the tokenizer: a pair of numbers of characters (Unicode code points) for each token.
// That is for tokenizers that normalise, whose tokens do not spell the text. It is false where the places are not in
// order, or outside of the text.
func (r *Row) AlignTo(offsets []int32) bool {
	r.exact, r.dummy = false, false
	r.Spans = r.Spans[:0]
	if len(offsets) != 2*len(r.IDs) {
		return false
	}
	r.chars = r.chars[:0]
	for at := range r.Text {
		r.chars = append(r.chars, at)
	}
	r.chars = append(r.chars, len(r.Text))
	last := [2]int32{}
	for i := 0; i < len(offsets); i += 2 {
		start, end := offsets[i], offsets[i+1]
		if start < last[0] || end < last[1] || start > end || int(end) >= len(r.chars) {
			return false
		}
		last = [2]int32{start, end}
		r.Spans = append(r.Spans, Span{r.chars[start], r.chars[end]})
	}
	return true
}

// apart says whether a token of a text that was normalised has bytes of its own, which no neighbour shares, and next to them
// nothing that belongs to no token but white space. Otherwise what it stands for is not known: tokens share a character, or
// the tokenizer left out an accent.
func (r *Row) apart(pos int) bool {
	s := r.Spans[pos]
	before, after := 0, len(r.Text)
	if pos > 0 {
		before = r.Spans[pos-1].End
	}
	if pos+1 < len(r.Spans) {
		after = r.Spans[pos+1].Start
	}
	if s.Start == s.End || s.Start < before || after < s.End {
		return false
	}
	last, _ := utf8.DecodeLastRuneInString(r.Text[before:s.Start])
	next, _ := utf8.DecodeRuneInString(r.Text[s.End:after])
	return (before == s.Start || unicode.IsSpace(last)) && (s.End == after || unicode.IsSpace(next))
}

// spaceBefore is how many bytes of white space a text begins with.
func spaceBefore(s string) int {
	for i, c := range s {
		if !unicode.IsSpace(c) {
			return i
		}
	}
	return len(s)
}

// cut is how many bytes at the end of b are the beginning of a character.
func cut(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		tail := b[len(b)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}

// rest is how many bytes at the beginning of s are the end of a character.
func rest(s string) int {
	for i := range len(s) {
		if utf8.RuneStart(s[i]) {
			return i
		}
	}
	return len(s)
}
