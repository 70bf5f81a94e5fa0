package editor

import (
	"unicode/utf8"

	"toedit/editor/vocab"
)

// words are words and phrases to be found in text: a trie of their bytes.
type words struct {
	next map[branch]int32
	ends []bool // whether a word ends at a node; 0 is the root
}

type branch struct {
	node int32
	byte byte
}

// newWords returns nil where there are none.
func newWords(list []string) *words {
	if len(list) == 0 {
		return nil
	}
	w := &words{next: map[branch]int32{}, ends: make([]bool, 1)}
	for _, word := range list {
		node := int32(0)
		for _, b := range []byte(word) {
			child, ok := w.next[branch{node, b}]
			if !ok {
				child = int32(len(w.ends))
				w.ends = append(w.ends, false)
				w.next[branch{node, b}] = child
			}
			node = child
		}
		w.ends[node] = true
	}
	return w
}

// longest is the length of the longest word that a text begins with and no letter follows; 0 where there is none.
func (w *words) longest(text []byte) int {
	length, node := 0, int32(0)
	for i, b := range text {
		child, ok := w.next[branch{node, b}]
		if !ok {
			break
		}
		if node = child; w.ends[node] {
			if letter, _ := letterAt(text[i+1:]); !letter {
				length = i + 1
			}
		}
	}
	return length
}

// markWords marks the tokens of words that stand between characters that are no letters. A text is followed once from each
// place where a word can begin, however many words there are.
func (s *stretch) markWords(w *words, marks []bool) {
	inside := false // whether the character before is a letter
	for at := 0; at < len(s.text); {
		if !inside {
			if n := w.longest(s.text[at:]); n > 0 {
				s.mark(marks, at, at+n)
			}
		}
		var size int
		inside, size = letterAt(s.text[at:])
		at += size
	}
}

// letterAt says whether a text begins with a letter, in the sense of the traits of tokens, and how many bytes its first
// character has.
func letterAt(text []byte) (letter bool, size int) {
	r, size := utf8.DecodeRune(text)
	return vocab.IsLetter(r) || r == utf8.RuneError && size == 1, size
}
