package editor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// ParsePolicy reads a policy from a JSON object, and validates it. Its fields are those of [Policy], in lower case with
// underscores; one that is missing has the value of [PaperPolicy]. "threshold": t is short for the one band [t, 1].
// "preset" names the policy that missing fields are taken from instead.
func ParsePolicy(data []byte) (Policy, error) {
	given, err := splitObject(data, "a policy", policyFieldNames())
	if err != nil {
		return Policy{}, err
	}
	p := PaperPolicy()
	if raw, ok := given["preset"]; ok {
		var name string
		if err := readField("preset", raw, "a name", into(&name)); err != nil {
			return Policy{}, err
		}
		if p, err = Preset(name); err != nil {
			return Policy{}, err
		}
	}
	if raw, ok := given["threshold"]; ok {
		var threshold float64
		if err := readField("threshold", raw, "a number", intoNumber(&threshold)); err != nil {
			return Policy{}, err
		}
		if _, ok := given["bands"]; ok {
			return Policy{}, policyErrorf("threshold", "is %v, but bands are given too; give one of the two", threshold)
		}
		if !(threshold > 0 && threshold <= 1) {
			return Policy{}, policyErrorf("threshold", "is %v; it must be a probability in (0, 1], 0.99 in the paper", threshold)
		}
		p.Bands = UpFrom(threshold)
	}
	for _, f := range p.fields() {
		if raw, ok := given[f.name]; ok {
			if err := readField(f.name, raw, f.kind, f.read); err != nil {
				return Policy{}, err
			}
		}
	}
	if err := p.Validate(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

// MarshalJSON writes a policy so that [ParsePolicy] reads the same.
func (p Policy) MarshalJSON() ([]byte, error) {
	object := make(map[string]any)
	for _, f := range p.fields() {
		object[f.name] = f.value
	}
	return json.Marshal(object)
}

// policyField is a field of a policy in JSON.
type policyField struct {
	name, kind string
	read       func(json.RawMessage) error
	value      any
}

// fields are the policy's own; "threshold" and "preset" are read besides.
func (p *Policy) fields() []policyField {
	number := func(name string, v *float64) policyField { return policyField{name, "a number", intoNumber(v), *v} }
	integer := func(name string, v *int) policyField { return policyField{name, "an integer", into(v), *v} }
	flag := func(name string, v *bool) policyField { return policyField{name, "true or false", into(v), *v} }
	name := func(name string, v *string) policyField { return policyField{name, "a name", into(v), *v} }
	return []policyField{
		{"bands", "a list of objects", p.readBands, p.Bands},
		integer("k", &p.K),
		number("temperature", &p.Temperature),
		number("top_p", &p.TopP),
		integer("rejection_tries", &p.RejectionTries),
		flag("exclude_original", &p.ExcludeOriginal),
		flag("whole_words", &p.WholeWords),
		number("edit_probability", &p.EditProbability),
		number("max_edit_rate", &p.MaxEditRate),
		name("max_edit_order", &p.MaxEditOrder),
		flag("protect_special", &p.ProtectSpecial),
		{"protected_ids", "a list of integers", intoList(&p.ProtectedIDs), append([]int64{}, p.ProtectedIDs...)},
		flag("protect_digits", &p.ProtectDigits),
		flag("protect_punctuation", &p.ProtectPunctuation),
		flag("protect_subwords", &p.ProtectSubwords),
		flag("protect_code", &p.ProtectCode),
		{"protected_words", "a list of strings", intoList(&p.ProtectedWords), append([]string{}, p.ProtectedWords...)},
		integer("protect_first", &p.ProtectFirst),
		flag("protect_context", &p.ProtectContext),
		flag("protect_assistant", &p.ProtectAssistant),
		flag("protect_prompt", &p.ProtectPrompt),
		name("labels", &p.Labels),
	}
}

func policyFieldNames() []string {
	names := []string{"preset", "threshold"}
	for _, f := range new(Policy).fields() {
		names = append(names, f.name)
	}
	return names
}

func (p *Policy) readBands(raw json.RawMessage) error {
	var list []json.RawMessage
	if err := into(&list)(raw); err != nil {
		return err
	}
	p.Bands = nil
	for i, raw := range list {
		b := Band{High: 1}
		var action string
		fields := []policyField{
			{name: "low", kind: "a number", read: intoNumber(&b.Low)},
			{name: "high", kind: "a number", read: intoNumber(&b.High)},
			{name: "closed", kind: "true or false", read: into(&b.Closed)},
			{name: "action", kind: "a name", read: into(&action)},
		}
		given, err := splitObject(raw, fmt.Sprintf("bands[%d]", i), []string{"low", "high", "closed", "action"})
		if err != nil {
			return err
		}
		for _, f := range fields {
			if raw, ok := given[f.name]; ok {
				if err := readField(fmt.Sprintf("bands[%d].%s", i, f.name), raw, f.kind, f.read); err != nil {
					return err
				}
			}
		}
		if _, ok := given["closed"]; !ok {
			b.Closed = b.High == 1
		}
		if _, ok := given["action"]; ok {
			if err := oneOf(fmt.Sprintf("bands[%d].action", i), action, actionNames...); err != nil {
				return err
			}
			b.Action = Action(slices.Index(actionNames, action))
		}
		p.Bands = append(p.Bands, b)
	}
	return nil
}

// MarshalJSON writes a band as [ParsePolicy] reads it.
func (b Band) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"low": b.Low, "high": b.High, "closed": b.Closed, "action": b.Action.String()})
}

// splitObject takes a JSON object apart, token by token: json.Unmarshal takes names in any case, names that stand there
// twice, and null for anything.
func splitObject(data []byte, what string, known []string) (map[string]json.RawMessage, error) {
	wanted := "an object with fields of " + strings.Join(known, ", ")
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, policyErrorf("JSON", "is %.60q; it must be %s", data, wanted)
	}
	given := make(map[string]json.RawMessage)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, policyErrorf("JSON", "cannot be read (%v); it must be %s", err, wanted)
		}
		name, _ := t.(string)
		if !slices.Contains(known, name) {
			return nil, policyErrorf("JSON", "has a field %.60q, which is none of %s; did you mean %q? There are %s",
				name, what, nearest(name, known), strings.Join(known, ", "))
		}
		if _, seen := given[name]; seen {
			return nil, policyErrorf(name, "is given twice; give it once")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, policyErrorf(name, "cannot be read (%v)", err)
		}
		given[name] = raw
	}
	if _, err := dec.Token(); err != nil {
		return nil, policyErrorf("JSON", "cannot be read (%v); it must be %s", err, wanted)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, policyErrorf("JSON", "goes on after its end; it must be %s, once", wanted)
	}
	return given, nil
}

// readField reads a value, and says what it must be where it is something else.
func readField(name string, raw json.RawMessage, kind string, read func(json.RawMessage) error) error {
	err := read(raw)
	var inside *PolicyError
	if err == nil || errors.As(err, &inside) {
		return err
	}
	return policyErrorf(name, "is %.60s; it must be %s", raw, kind)
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

// notFinite are the numbers that JSON has none for, by the names that they have in JavaScript.
var notFinite = map[string]float64{`"NaN"`: math.NaN(), `"Infinity"`: math.Inf(1), `"-Infinity"`: math.Inf(-1)}

// intoNumber also reads what is not finite, so that it is refused as what it is.
func intoNumber(dst *float64) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if v, ok := notFinite[string(raw)]; ok {
			*dst = v
			return nil
		}
		return into(dst)(raw)
	}
}

func intoList[T any](dst *[]T) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var list []*T
		if err := into(&list)(raw); err != nil {
			return err
		}
		*dst = nil
		for _, v := range list {
			if v == nil {
				return errors.New("null")
			}
			*dst = append(*dst, *v)
		}
		return nil
	}
}

// oneOf refuses a value that is not in the list.
func oneOf(field, value string, names ...string) error {
	if slices.Contains(names, value) {
		return nil
	}
	return policyErrorf(field, "is %q; it must be one of %s", value, strings.Join(names, ", "))
}

// nearest is the name with the fewest insertions, deletions and substitutions between it and what was given (Levenshtein's
// distance); of several the first.
func nearest(given string, names []string) string {
	if len(given) > 60 { // enough to know it by
		given = given[:60]
	}
	best, least := "", -1
	for _, name := range names {
		row := make([]int, len(name)+1)
		for j := range row {
			row[j] = j
		}
		for i := range len(given) {
			diagonal := row[0]
			row[0] = i + 1
			for j := range len(name) {
				substituted := diagonal
				if given[i] != name[j] {
					substituted++
				}
				diagonal = row[j+1]
				row[j+1] = min(substituted, row[j]+1, diagonal+1)
			}
		}
		if d := row[len(name)]; least < 0 || d < least {
			best, least = name, d
		}
	}
	return best
}
