package editor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
)

// MaxK is the largest k a policy may ask for.
const MaxK = 4096

// Policy says which tokens are edited and what they become.
type Policy struct {
	Threshold       float64 `json:"threshold"`        // tokens with P >= threshold are candidates, in (0, 1]
	K               int     `json:"k"`                // the k most probable tokens are drawn from
	Temperature     float64 `json:"temperature"`      // log probabilities are divided by it
	ExcludeOriginal bool    `json:"exclude_original"` // never draw the token that is there
	ProtectSpecial  bool    `json:"protect_special"`  // special and added tokens stay and are never drawn
	ProtectedIDs    []int64 `json:"protected_ids"`    // nor these
}

// ParsePolicy reads a policy from a JSON object with exactly the fields of
// [Policy], and validates it.
func ParsePolicy(data []byte) (Policy, error) {
	var p Policy
	fields := []struct {
		name, kind string
		read       func(json.RawMessage) error
		seen       bool
	}{
		{name: "threshold", kind: "a number", read: into(&p.Threshold)},
		{name: "k", kind: "an integer", read: into(&p.K)},
		{name: "temperature", kind: "a number", read: into(&p.Temperature)},
		{name: "exclude_original", kind: "true or false", read: into(&p.ExcludeOriginal)},
		{name: "protect_special", kind: "true or false", read: into(&p.ProtectSpecial)},
		{name: "protected_ids", kind: "a list of integers", read: intoList(&p.ProtectedIDs)},
	}
	const wanted = "an object with threshold, k, temperature, exclude_original, protect_special and protected_ids"

	// Token by token: json.Unmarshal takes names in any case, names that stand
	// there twice, and null for anything.
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return Policy{}, policyErrorf("JSON", "is %.60q; it must be %s", data, wanted)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return Policy{}, policyErrorf("JSON", "cannot be read (%v); it must be %s", err, wanted)
		}
		name, _ := t.(string)
		i := 0
		for i < len(fields) && fields[i].name != name {
			i++
		}
		if i == len(fields) {
			return Policy{}, policyErrorf("JSON", "has a field %.60q that no policy has; it must be %s", name, wanted)
		}
		f := &fields[i]
		if f.seen {
			return Policy{}, policyErrorf(name, "is given twice; give it once")
		}
		f.seen = true
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return Policy{}, policyErrorf(name, "cannot be read (%v); it must be %s", err, f.kind)
		}
		if err := f.read(raw); err != nil {
			return Policy{}, policyErrorf(name, "is %.60s; it must be %s", raw, f.kind)
		}
	}
	if _, err := dec.Token(); err != nil {
		return Policy{}, policyErrorf("JSON", "cannot be read (%v); it must be %s", err, wanted)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Policy{}, policyErrorf("JSON", "goes on after its end; it must be %s, once", wanted)
	}
	for _, f := range fields {
		if !f.seen {
			return Policy{}, policyErrorf(f.name, "is missing; it must be given, as %s", f.kind)
		}
	}
	if err := p.Validate(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

func into[T any](dst *T) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var v *T
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		if v == nil {
			return errors.New("null")
		}
		*dst = *v
		return nil
	}
}

func intoList[T any](dst *[]T) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var list []*T
		if err := into(&list)(raw); err != nil {
			return err
		}
		for _, v := range list {
			if v == nil {
				return errors.New("null")
			}
			*dst = append(*dst, *v)
		}
		return nil
	}
}

// Validate says what is wrong with a policy: the field, its value and the
// limit.
func (p Policy) Validate() error {
	// Written so that NaN fails.
	if !(p.Threshold > 0 && p.Threshold <= 1) {
		return policyErrorf("threshold", "is %v; it must be a probability in (0, 1], 0.99 in the paper", p.Threshold)
	}
	if p.K < 1 || p.K > MaxK {
		return policyErrorf("k", "is %d; it must be in 1..%d, 8 in the paper", p.K, MaxK)
	}
	if !(p.Temperature > 0) || math.IsInf(p.Temperature, 1) {
		return policyErrorf("temperature", "is %v; it must be finite and above 0, 1 for the prior's own distribution", p.Temperature)
	}
	for _, id := range p.ProtectedIDs {
		if id < 0 {
			return policyErrorf("protected_ids", "contains %d; token ids are 0 and above", id)
		}
	}
	return nil
}
