package prior

import (
	"encoding/json"
	"fmt"
	"strings"
)

// How documents that are longer than the context are read.
const (
	// WindowsRolling: overlapping windows. Every token is scored once, with at least MinContext tokens before it wherever
	// the document has them. Where the BOS rule is "always", every window begins with the BOS id, as the model is used to.
	WindowsRolling = "rolling"
	// WindowsLMEval: the windows of lm-evaluation-harness's loglikelihood_rolling with a context of one token, for
	// comparison with its figures. A window's first token has one token before it.
	WindowsLMEval = "lm-eval"
	// WindowsOff: what lies beyond the context is not scored.
	WindowsOff = "off"
)

// Reading says how documents are laid before the model. It decides scores, so it is part of the fingerprint.
type Reading struct {
	Windows        string `json:"windows"`         // "" is WindowsRolling
	MinContext     int    `json:"min_context"`     // for WindowsRolling; 0 is half the context
	CrossDocuments bool   `json:"cross_documents"` // a packed row is read as one document
}

// ReadingError says that a prior cannot be read in the way that was asked for.
type ReadingError struct{ msg string }

func (e *ReadingError) Error() string { return e.msg }

func readingErrorf(format string, args ...any) error {
	return &ReadingError{fmt.Sprintf(format, args...)}
}

// ParseReading reads a Reading from JSON; "" is the default. It is strict: a misspelt setting would otherwise be ignored in
// silence.
func ParseReading(text string) (r Reading, err error) {
	if text == "" {
		return r, nil
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf(`how to read documents is %q, which is not like {"windows": "rolling", "min_context": 256}: %w`, text, err)
	}
	if d.More() {
		return r, fmt.Errorf("how to read documents is %q, which goes on after its end", text)
	}
	return r, nil
}

// resolve fills in what is left to default, for a model that reads context positions at once.
func (r Reading) resolve(context int) (Reading, error) {
	if r.Windows == "" {
		r.Windows = WindowsRolling
	}
	switch r.Windows {
	case WindowsRolling:
		// A window's first position may be taken by the BOS id, and one token must be left to score.
		most := max(context-1, 1)
		if r.MinContext == 0 {
			r.MinContext = min(max(context/2, 1), most)
		}
		if r.MinContext < 1 || r.MinContext > most {
			return r, readingErrorf("min_context is %d; with a context of %d positions it must be 1 to %d", r.MinContext, context, most)
		}
	case WindowsLMEval, WindowsOff:
		if r.MinContext != 0 {
			return r, readingErrorf("min_context is %d, but belongs to windows=%q only; leave it out with windows=%q", r.MinContext, WindowsRolling, r.Windows)
		}
	default:
		return r, readingErrorf("windows is %q; it must be %q, %q or %q", r.Windows, WindowsRolling, WindowsLMEval, WindowsOff)
	}
	return r, nil
}
