package editor

import "toedit/editor/vocab"

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

// protectText marks the tokens that the policy protects for where they stand or for the text around them.
func (e *Editor) protectText(d *Document, marks []bool) {
	if first := uint64(e.policy.ProtectFirst); d.Offset < first {
		for i := range min(first-d.Offset, uint64(len(marks))) {
			marks[i] = true
		}
	}
}
