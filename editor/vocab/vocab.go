// Package vocab knows what the tokens of a tokenizer look like in text.
package vocab

import "encoding/binary"

// Table is the tokens of a tokenizer as bytes of text. It does not change and is safe for concurrent use.
type Table struct {
	bytes  []byte   // of all tokens, one behind the other, and word more
	starts []uint32 // where each begins, and the end
	traits []Trait
	words  bool // white space stands between tokens and in none
}

// Trait says what a token looks like in text. A token has any number of them.
type Trait uint8

// The traits. A letter is a Unicode letter, mark or number; bytes that are part of a character count as one.
const (
	BeginsWord  Trait = 1 << iota // white space, and then a letter
	Continues                     // a letter at once
	EndsInside                    // its last character is a letter, so that a following token that continues is of the same word
	Digit                         // a Unicode digit in it
	Punctuation                   // at least one character, and none but punctuation, symbols and white space
	Special                       // special or added: no text of a document
)

// New makes a table of the bytes that tokens stand for in text. special are those that stand for none, or are no text.
func New(tokens [][]byte, special []uint32) *Table {
	t := &Table{starts: make([]uint32, 1, len(tokens)+1), traits: make([]Trait, len(tokens))}
	for i, b := range tokens {
		t.bytes = append(t.bytes, b...)
		t.starts = append(t.starts, uint32(len(t.bytes)))
		t.traits[i] = traitsOf(b)
	}
	for _, id := range special {
		if int64(id) < int64(len(tokens)) {
			t.traits[id] = Special
		}
	}
	t.bytes = append(t.bytes, make([]byte, word)...)
	return t
}

// Size is how many ids the table has; there are no others.
func (t *Table) Size() int { return len(t.traits) }

// OmitsSpace says whether white space stands between tokens and is in none, as with WordPiece.
func (t *Table) OmitsSpace() bool { return t.words }

// Bytes are what a token stands for in text, white space in front of it included; none for an id that the table lacks.
func (t *Table) Bytes(id uint32) []byte {
	if int64(id) >= int64(len(t.traits)) {
		return nil
	}
	return t.bytes[t.starts[id]:t.starts[id+1]:t.starts[id+1]]
}

// word is how many bytes are compared at once.
const word = 8

// Begins is how many bytes a token has if text begins with them, and -1 if it does not. It is Bytes and a comparison, for
// whoever walks along a text: most tokens are shorter than a word, and a call that compares any number of bytes takes longer.
func (t *Table) Begins(text string, id uint32) int {
	if int64(id) >= int64(len(t.traits)) {
		return 0
	}
	start, n := t.starts[id], int(t.starts[id+1]-t.starts[id])
	if n <= word && len(text) >= word {
		if (binary.LittleEndian.Uint64(t.bytes[start:])^firstWord(text))<<(8*(word-n)) != 0 {
			return -1
		}
		return n
	}
	if len(text) < n || text[:n] != string(t.bytes[start:int(start)+n]) {
		return -1
	}
	return n
}

// firstWord is binary.LittleEndian.Uint64 for a string; the compiler makes one load of it.
func firstWord(s string) uint64 {
	_ = s[word-1]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// Traits of a token; none for an id that the table lacks.
func (t *Table) Traits(id uint32) Trait {
	if int64(id) >= int64(len(t.traits)) {
		return 0
	}
	return t.traits[id]
}
