package editor

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// MaxK is the largest k a policy may ask for.
const MaxK = 4096

// maxBands is how many bands a policy may have: the log holds a band's number in a byte.
const maxBands = 64

// Policy says which tokens are edited and what becomes of them. Start from [PaperPolicy] or a preset: the zero value is
// no policy.
type Policy struct {
	Bands []Band // which tokens are candidates, and what is done with them

	// What a resampled token becomes.
	K               int     // the k most probable tokens are drawn from
	Temperature     float64 // log probabilities are divided by it
	TopP            float64 // of those, the fewest most probable ones that have this share of the whole distribution; 1: all
	RejectionTries  int     // so often is a draw proposed that must not be the original, which stays after the last; 0: one draw of any kind
	ExcludeOriginal bool    // never draw the token that is there
	WholeWords      bool    // draw only tokens that begin a word where the original does, and only there

	// How many candidates are drawn.
	EditProbability float64 // each candidate with this probability
	MaxEditRate     float64 // of a row's tokens at most this share
	MaxEditOrder    string  // and which: OrderHighest or OrderRandom

	// What is never edited.
	ProtectSpecial     bool     // special and added tokens stay and are never drawn
	ProtectedIDs       []int64  // nor these
	ProtectDigits      bool     // nor tokens with a digit
	ProtectPunctuation bool     // nor tokens of punctuation and symbols alone
	ProtectSubwords    bool     // tokens of words that have several tokens stay
	ProtectCode        bool     // so do tokens between code fences, and the fences
	ProtectedWords     []string // and the tokens of these words
	ProtectFirst       int      // and the first tokens of a document
	ProtectContext     bool     // and tokens whose label is -100
	ProtectAssistant   bool     // and those that the column assistant_masks marks
	ProtectPrompt      bool     // and those that it does not mark

	Labels string // LabelsEdited or LabelsOriginal
}

// Band is a range of P with what is done with the tokens in it.
type Band struct {
	Low    float64 // in it are tokens with P >= Low
	High   float64 // and P < High
	Closed bool    // or P = High
	Action Action
}

// Action is what is done with a candidate.
type Action uint8

// The actions.
const (
	Resample Action = iota // draw it anew
	Drop                   // take it out of the row
	MaskLoss               // keep it, with the label -100
)

// actionNames are the actions' names in policies.
var actionNames = []string{"resample", "drop", "mask_loss"}

func (a Action) String() string { return actionNames[a] }

// ActionNamed is the action of that name, if there is one.
func ActionNamed(name string) (Action, bool) {
	i := slices.Index(actionNames, name)
	return Action(max(i, 0)), i >= 0
}

// The values of Policy.MaxEditOrder.
const (
	OrderHighest = "highest" // the candidates of the highest P
	OrderRandom  = "random"  // a keyed random subset
)

// The values of Policy.Labels.
const (
	LabelsEdited   = "edited"   // labels follow the ids
	LabelsOriginal = "original" // labels keep the originals
)

// PaperPolicy is the policy of the paper.
func PaperPolicy() Policy {
	return Policy{
		Bands: UpFrom(0.99), K: 8, Temperature: 1, TopP: 1,
		EditProbability: 1, MaxEditRate: 1, MaxEditOrder: OrderHighest,
		ProtectSpecial: true, ProtectContext: true, Labels: LabelsEdited,
	}
}

// UpFrom is the band of all tokens with P >= low.
func UpFrom(low float64) []Band { return []Band{{Low: low, High: 1, Closed: true}} }

func downTo(high float64) Band { return Band{High: high, Closed: true} }
func lowDrop() Band            { return Band{High: 0.001, Action: Drop} }

// presets are the policies that have names. P > 0.99 and P >= 0.99 are the same decision: ln 0.99 is no float32.
var presets = []struct {
	name  string
	makes func(p *Policy)
}{
	{"paper", func(*Policy) {}},
	{"paper-0.999", func(p *Policy) { p.Bands = UpFrom(0.999) }},
	{"paper-low-0.1", func(p *Policy) { p.Bands = []Band{downTo(0.1)} }},
	{"paper-low-0.01", func(p *Policy) { p.Bands = []Band{downTo(0.01)} }},
	{"paper-low-0.001", func(p *Policy) { p.Bands = []Band{downTo(0.001)} }},
	{"reference-code", func(p *Policy) { p.Temperature = 1.5 }},
	{"reference-code-low-drop", func(p *Policy) { p.Bands = append(UpFrom(0.99), lowDrop()) }},
	{"reference-code-filter", func(p *Policy) { p.Bands = []Band{lowDrop()} }},
}

// PresetNames are the names that [Preset] knows.
func PresetNames() []string {
	names := make([]string, len(presets))
	for i, p := range presets {
		names[i] = p.name
	}
	return names
}

// Preset is the policy of that name.
func Preset(name string) (Policy, error) {
	for _, preset := range presets {
		if preset.name == name {
			p := PaperPolicy()
			preset.makes(&p)
			return p, nil
		}
	}
	return Policy{}, policyErrorf("preset", "is %q, which is none; did you mean %q? There are %s",
		name, nearest(name, PresetNames()), strings.Join(PresetNames(), ", "))
}

// NeedsText says whether the policy asks what tokens look like in text.
func (p *Policy) NeedsText() bool {
	return p.WholeWords || p.ProtectDigits || p.ProtectPunctuation || p.ProtectSubwords || p.ProtectCode || len(p.ProtectedWords) > 0
}

// Resamples says whether any band does.
func (p *Policy) Resamples() bool { return p.does(Resample) }

// Drops says whether any band does.
func (p *Policy) Drops() bool { return p.does(Drop) }

func (p *Policy) does(a Action) bool {
	return slices.ContainsFunc(p.Bands, func(b Band) bool { return b.Action == a })
}

// Validate says what is wrong with a policy: the field, its value and the
// limit.
func (p *Policy) Validate() error {
	if err := validateBands(p.Bands); err != nil {
		return err
	}
	if p.K < 1 || p.K > MaxK {
		return policyErrorf("k", "is %d; it must be in 1..%d, 8 in the paper", p.K, MaxK)
	}
	// Comparisons are written so that NaN fails.
	if !(p.Temperature > 0) || math.IsInf(p.Temperature, 1) {
		return policyErrorf("temperature", "is %v; it must be finite and above 0, 1 for the prior's own distribution", p.Temperature)
	}
	if !(p.TopP > 0 && p.TopP <= 1) {
		return policyErrorf("top_p", "is %v; it must be in (0, 1], 1 to draw from all k", p.TopP)
	}
	if p.RejectionTries < 0 || p.RejectionTries > maxTries {
		return policyErrorf("rejection_tries", "is %d; it must be in 0..%d, 0 for no rejection", p.RejectionTries, maxTries)
	}
	if !(p.EditProbability > 0 && p.EditProbability <= 1) {
		return policyErrorf("edit_probability", "is %v; it must be in (0, 1], 1 to draw every candidate", p.EditProbability)
	}
	if !(p.MaxEditRate > 0 && p.MaxEditRate <= 1) {
		return policyErrorf("max_edit_rate", "is %v; it must be in (0, 1], 1 for no limit", p.MaxEditRate)
	}
	if err := oneOf("max_edit_order", p.MaxEditOrder, OrderHighest, OrderRandom); err != nil {
		return err
	}
	for _, id := range p.ProtectedIDs {
		if id < 0 {
			return policyErrorf("protected_ids", "contains %d; token ids are 0 and above", id)
		}
	}
	for _, word := range p.ProtectedWords {
		if word == "" {
			return policyErrorf("protected_words", "contains an empty word; take it out")
		}
		if strings.TrimSpace(word) != word {
			return policyErrorf("protected_words", "contains %q; take the white space around it off", word)
		}
	}
	if p.ProtectFirst < 0 {
		return policyErrorf("protect_first", "is %d; it must be 0 or above", p.ProtectFirst)
	}
	if p.ProtectAssistant && p.ProtectPrompt {
		return policyErrorf("protect_prompt", "is true, and protect_assistant too, which leaves nothing to edit; turn one off")
	}
	return oneOf("labels", p.Labels, LabelsEdited, LabelsOriginal)
}

// maxTries bounds the work on one token.
const maxTries = 1000

func validateBands(bands []Band) error {
	if len(bands) == 0 {
		return policyErrorf("bands", "is empty; give at least one band")
	}
	if len(bands) > maxBands {
		return policyErrorf("bands", "has %d bands; a policy may have %d", len(bands), maxBands)
	}
	for i, b := range bands {
		switch {
		case !(b.Low >= 0 && b.Low <= 1):
			return policyErrorf("bands", "has low = %v in band %d; it must be a probability in [0, 1]", b.Low, i)
		case !(b.High > 0 && b.High <= 1):
			return policyErrorf("bands", "has high = %v in band %d; it must be a probability in (0, 1]", b.High, i)
		case b.Low > b.High || b.Low == b.High && !b.Closed:
			return policyErrorf("bands", "has low = %v and high = %v in band %d, which holds nothing; low must be below high", b.Low, b.High, i)
		case int(b.Action) >= len(actionNames):
			return policyErrorf("bands", "has action = %d in band %d; there are 0..%d", b.Action, i, len(actionNames)-1)
		}
		for _, other := range bands[:i] {
			if b.overlaps(other) {
				return policyErrorf("bands", "has bands %v and %v, which overlap; a token can be in one only", other, b)
			}
		}
	}
	return nil
}

func (b Band) overlaps(o Band) bool {
	if b.Low > o.Low {
		b, o = o, b
	}
	return o.Low < b.High || o.Low == b.High && b.Closed || o.Low == b.Low
}

// String is the band as an interval.
func (b Band) String() string {
	if b.Closed {
		return fmt.Sprintf("[%v, %v]", b.Low, b.High)
	}
	return fmt.Sprintf("[%v, %v)", b.Low, b.High)
}
