package editor

import (
	"math"
	"slices"

	"toedit/editor/vocab"
)

// Vocabulary says which ids there are and which of them are special.
type Vocabulary struct {
	ModelSize     int      // the model's ids are 0..ModelSize-1
	TokenizerSize int      // the tokenizer's are 0..TokenizerSize-1; the rest are protected
	Special       []uint32 // special and added tokens
	// Text is what tokens look like; nil will do where the policy does not ask ([Policy.NeedsText]).
	Text *vocab.Table
}

// Editor is a policy compiled for a vocabulary. It does not change and is safe
// for concurrent use.
type Editor struct {
	policy     Policy
	vocabulary Vocabulary
	barred     []bool // for every id of the model: neither candidate nor drawn
	plain      idRange
	bands      []keyBand    // by falling P
	gap        keyGap       // of which nothing is in a band
	weights    *halfWeights // exp(a / temperature)
	nucleus    *nucleus     // nil where TopP is 1
	protects   bool         // whether protectText has something to say
	words      *words       // to be protected; nil where there are none
}

// New compiles a policy: most of a millisecond, for the weights.
func New(p Policy, v Vocabulary) (*Editor, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if v.ModelSize < 1 || v.ModelSize > math.MaxInt32 {
		return nil, policyErrorf("vocabulary", "has %d ids; a model has 1..%d", v.ModelSize, math.MaxInt32)
	}
	if v.TokenizerSize < 1 {
		return nil, policyErrorf("vocabulary", "has a tokenizer of %d ids; it must have at least 1", v.TokenizerSize)
	}
	barred := make([]bool, v.ModelSize)
	for id := v.TokenizerSize; id < v.ModelSize; id++ {
		barred[id] = true
	}
	if p.ProtectSpecial {
		for _, id := range v.Special {
			if int64(id) < int64(v.ModelSize) { // others cannot occur
				barred[id] = true
			}
		}
	}
	for _, id := range p.ProtectedIDs {
		if id >= int64(v.ModelSize) {
			return nil, policyErrorf("protected_ids", "contains %d; the prior's vocabulary ends at %d: take the ids from the prior's tokenizer", id, v.ModelSize-1)
		}
		barred[id] = true
	}
	if p.NeedsText() {
		if v.Text == nil {
			return nil, policyErrorf("vocabulary", "has no text of its tokens, which whole_words and what protects by text need; use a prior with a tokenizer.json")
		}
		if p.ProtectCode && v.Text.OmitsSpace() {
			return nil, policyErrorf("protect_code", "is true, but the prior's tokenizer leaves out line endings, without which code fences cannot be found; turn it off")
		}
		barByText(&p, v.Text, barred)
	}
	p.Bands = slices.Clone(p.Bands)
	p.ProtectedIDs = slices.Clone(p.ProtectedIDs)
	p.ProtectedWords = slices.Clone(p.ProtectedWords)
	e := &Editor{
		policy:     p,
		vocabulary: v,
		barred:     barred,
		plain:      longestRange(barred),
		bands:      newKeyBands(p.Bands),
		weights:    newHalfWeights(p.Temperature),
		protects:   p.ProtectSubwords || p.ProtectCode || len(p.ProtectedWords) > 0 || p.ProtectFirst > 0,
		words:      newWords(p.ProtectedWords),
	}
	e.gap = widestGap(p.Bands, e.bands)
	if p.TopP < 1 {
		e.nucleus = newNucleus(&p, e.weights, v.ModelSize)
	}
	return e, nil
}

// idRange is the ids from first on, so many.
type idRange struct{ first, length uint32 }

func (r idRange) has(id uint32) bool { return id-r.first < r.length }

// longestRange is the longest range of ids none of which is barred: nearly all of a vocabulary, whose special tokens stand at
// its ends. A comparison tells of most ids that they are not barred; the rest are looked up.
func longestRange(barred []bool) idRange {
	var longest idRange
	for first := 0; first < len(barred); {
		end := first
		for end < len(barred) && !barred[end] {
			end++
		}
		if uint32(end-first) > longest.length {
			longest = idRange{uint32(first), uint32(end - first)}
		}
		first = end + 1
	}
	return longest
}
