package editor

import (
	"bytes"
	"slices"

	"toedit/editor/vocab"
)

// barByText marks the ids that the policy protects for what they look like.
func barByText(p *Policy, text *vocab.Table, barred []bool) {
	var traits vocab.Trait
	if p.ProtectDigits {
		traits |= vocab.Digit
	}
	if p.ProtectPunctuation {
		traits |= vocab.Punctuation
	}
	for id := range barred {
		if text.Traits(uint32(id))&traits != 0 {
			barred[id] = true
		}
	}
}

// protectText marks the tokens that the policy protects for where they stand or for the text around them. It sees the
// document's own tokens only: a chunk knows nothing of a word or a code block that begins in the chunk before.
func (e *Editor) protectText(d *Document, s *stretch, marks []bool) {
	if first := uint64(e.policy.ProtectFirst); d.Offset < first {
		for i := range min(first-d.Offset, uint64(len(marks))) {
			marks[i] = true
		}
	}
	if e.policy.ProtectSubwords {
		e.protectSubwords(d.IDs, marks)
	}
	if !e.policy.ProtectCode && e.words == nil {
		return
	}
	for at := 0; at < len(d.IDs); {
		n := s.read(e.vocabulary.Text, d.IDs[at:])
		if e.policy.ProtectCode {
			s.markCode(marks[at:])
		}
		if e.words != nil {
			s.markWords(e.words, marks[at:])
		}
		at += n + 1 // the token behind it is no text
	}
}

// protectSubwords marks the tokens of words that have several.
func (e *Editor) protectSubwords(ids []uint32, marks []bool) {
	inside := false // whether the token before ends inside a word
	for i, id := range ids {
		traits := e.vocabulary.Text.Traits(id)
		if inside && traits&vocab.Continues != 0 {
			marks[i-1], marks[i] = true, true
		}
		inside = traits&vocab.EndsInside != 0
	}
}

// stretch is the text of tokens that stand one behind the other. Its memory is used again for the next one.
type stretch struct {
	text []byte
	ends []int // of each token in text
}

// read fills the stretch with the tokens before the first that is no text, and says how many they are.
func (s *stretch) read(t *vocab.Table, ids []uint32) int {
	s.text, s.ends = s.text[:0], s.ends[:0]
	for i, id := range ids {
		b := t.Bytes(id)
		if breaksText(t, id, b) {
			return i
		}
		if t.OmitsSpace() && t.Traits(id)&vocab.BeginsWord != 0 {
			s.text = append(s.text, ' ')
		}
		s.text = append(s.text, b...)
		s.ends = append(s.ends, len(s.text))
	}
	return len(ids)
}

// breaksText says whether a token is no text, so that the text before it and the text behind it are two. Special and added
// tokens are, but for the runs of white space that some tokenizers have added for code.
func breaksText(t *vocab.Table, id uint32, b []byte) bool {
	return int64(id) >= int64(t.Size()) || t.Traits(id)&vocab.Special != 0 && (len(b) == 0 || len(bytes.TrimSpace(b)) > 0)
}

// mark marks the tokens that overlap text[from:to].
func (s *stretch) mark(marks []bool, from, to int) {
	i, _ := slices.BinarySearch(s.ends, from+1)
	for start := from; i < len(s.ends) && start < to; i++ {
		marks[i] = true
		start = s.ends[i]
	}
}
