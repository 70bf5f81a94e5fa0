package vocab

import (
	"unicode"
	"unicode/utf8"
)

// traitsOf finds the traits of a token from its bytes.
func traitsOf(b []byte) Trait {
	var traits Trait
	punctuation := true
	seen, spaced := false, false
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		part := r == utf8.RuneError && size == 1 // of a character, which is a letter in most tokenizers' vocabularies
		b = b[size:]
		space := !part && unicode.IsSpace(r)
		letter := part || IsLetter(r)
		switch {
		case space && !seen:
			spaced = true
		case letter && !seen:
			traits |= Continues
			if spaced {
				traits ^= Continues | BeginsWord
			}
			fallthrough
		default:
			seen = true
		}
		if !part && unicode.IsDigit(r) {
			traits |= Digit
		}
		punctuation = punctuation && (space || unicode.IsPunct(r) && !part || unicode.IsSymbol(r) && !part)
		traits &^= EndsInside
		if letter {
			traits |= EndsInside
		}
	}
	if seen && punctuation {
		traits |= Punctuation
	}
	return traits
}

// IsLetter says whether a character belongs to words: Unicode letters, marks and numbers do.
func IsLetter(r rune) bool { return unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsNumber(r) }
