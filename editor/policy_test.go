package editor

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

const paperJSON = `{"threshold": 0.99, "k": 8, "temperature": 1.0, "exclude_original": false, "protect_special": true, "protected_ids": [3, 4]}`

func TestParsePolicy(t *testing.T) {
	p, err := ParsePolicy([]byte(paperJSON))
	require.NoError(t, err)
	want := PaperPolicy()
	want.ProtectedIDs = []int64{3, 4}
	require.Equal(t, want, p)
}

func TestPolicyDefaultsToThePaper(t *testing.T) {
	p, err := ParsePolicy([]byte(`{}`))
	require.NoError(t, err)
	require.Equal(t, PaperPolicy(), p)
	p, err = ParsePolicy([]byte(`{"preset": "reference-code", "k": 4, "bands": [{"low": 0.5, "action": "mask_loss"}]}`))
	require.NoError(t, err)
	want := PaperPolicy()
	want.Temperature, want.K, want.Bands = 1.5, 4, []Band{{Low: 0.5, High: 1, Closed: true, Action: MaskLoss}}
	require.Equal(t, want, p)
}

// The paper's Table 5 and what its authors' script does.
func TestPresets(t *testing.T) {
	bands := map[string]string{
		"paper": "[[0.99, 1]]", "paper-0.999": "[[0.999, 1]]", "paper-low-0.1": "[[0, 0.1]]", "paper-low-0.01": "[[0, 0.01]]",
		"paper-low-0.001": "[[0, 0.001]]", "reference-code": "[[0.99, 1]]", "reference-code-low-drop": "[[0.99, 1] [0, 0.001)]",
		"reference-code-filter": "[[0, 0.001)]",
	}
	require.Len(t, PresetNames(), len(bands))
	for _, name := range PresetNames() {
		p, err := Preset(name)
		require.NoError(t, err)
		require.NoError(t, p.Validate())
		require.Equal(t, bands[name], fmt.Sprint(p.Bands), name)
		require.Equal(t, name == "reference-code", p.Temperature == 1.5, name)
		require.Equal(t, name == "reference-code-low-drop" || name == "reference-code-filter", p.Drops(), name)
		require.Equal(t, name != "reference-code-filter", p.Resamples(), name)
		require.False(t, p.does(MaskLoss))
		require.Equal(t, 8, p.K)
	}
}

func TestParsePolicyIsStrict(t *testing.T) {
	for _, c := range []struct{ name, json, field, message string }{
		{"empty", ``, "JSON", "must be an object"},
		{"no object", `[1]`, "JSON", "must be an object"},
		{"cut", `{"threshold": 0.99`, "JSON", "cannot be read"},
		{"cut in a value", `{"threshold": `, "threshold", "cannot be read"},
		{"two", paperJSON + `{}`, "JSON", "goes on after its end"},
		{"NaN", `{"threshold": NaN}`, "threshold", "cannot be read"},
		{"NaN by name", `{"threshold": "NaN"}`, "threshold", "is NaN; it must be a probability in (0, 1]"},
		{"infinite by name", `{"temperature": "Infinity"}`, "temperature", "is +Inf; it must be finite"},
		{"threshold of 0", `{"threshold": 0}`, "threshold", "is 0; it must be a probability in (0, 1], 0.99 in the paper"},
		{"two kinds of bands", `{"threshold": 0.5, "bands": []}`, "threshold", "is 0.5, but bands are given too"},
		{"no bands", `{"bands": []}`, "bands", "is empty"},
		{"bands of another kind", `{"bands": [3]}`, "JSON", "is \"3\"; it must be an object with fields of low, high, closed, action"},
		{"unknown field of a band", `{"bands": [{"lo": 0}]}`, "JSON", `"lo", which is none of bands[0]; did you mean "low"?`},
		{"null in a band", `{"bands": [{"low": null}]}`, "bands[0].low", "is null; it must be a number"},
		{"unknown action", `{"bands": [{}, {"action": "delete"}]}`, "bands[1].action", `is "delete"; it must be one of resample, drop, mask_loss`},
		{"unknown preset", `{"preset": "papre"}`, "preset", `is "papre", which is none; did you mean "paper"?`},
		{"preset of another kind", `{"preset": 1}`, "preset", "is 1; it must be a name"},
		{"unknown field", `{"top_pp": 0.9}`, "JSON", `did you mean "top_p"?`},
		{"other case", `{"Threshold": 0.9}`, "JSON", `"Threshold"`},
		{"twice", `{"k": 8, "k": 8}`, "k", "given twice"},
		{"null", `{"k": null}`, "k", "is null; it must be an integer"},
		{"null in a list", `{"protected_ids": [1, null]}`, "protected_ids", "is [1, null]; it must be a list of integers"},
		{"null for a list", `{"protected_ids": null}`, "protected_ids", "must be a list of integers"},
		{"a string", `{"k": "8"}`, "k", `is "8"; it must be an integer`},
		{"a fraction", `{"k": 8.5}`, "k", "is 8.5; it must be an integer"},
		{"too large a number", `{"threshold": 1e999}`, "threshold", "is 1e999; it must be a number"},
		{"a number for a flag", `{"exclude_original": 1}`, "exclude_original", "is 1; it must be true or false"},
		{"out of range", `{"threshold": 1.5, "k": 8, "temperature": 1.0, "exclude_original": false, "protect_special": true, "protected_ids": []}`, "threshold", "is 1.5; it must be a probability in (0, 1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := ParsePolicy([]byte(c.json))
			require.Equal(t, Policy{}, p)
			requirePolicyError(t, err, c.field, c.message)
		})
	}
}

func requirePolicyError(t *testing.T, err error, field, message string) {
	t.Helper()
	var policyError *PolicyError
	require.ErrorAs(t, err, &policyError)
	require.Equal(t, field, policyError.Field)
	require.ErrorContains(t, err, "policy: "+field+" ")
	require.ErrorContains(t, err, message)
}

func TestValidateNamesFieldValueAndLimit(t *testing.T) {
	for _, c := range []struct {
		change         func(*Policy)
		field, message string
	}{
		{func(p *Policy) { p.Bands = nil }, "bands", "is empty"},
		{func(p *Policy) { p.Bands = UpFrom(-0.5) }, "bands", "has low = -0.5 in band 0; it must be a probability in [0, 1]"},
		{func(p *Policy) { p.Bands = UpFrom(math.Nextafter(1, 2)) }, "bands", "has low = 1.0000000000000002"},
		{func(p *Policy) { p.Bands = UpFrom(math.NaN()) }, "bands", "has low = NaN"},
		{func(p *Policy) { p.Bands = []Band{{Low: 0.5, High: 1.5}} }, "bands", "has high = 1.5 in band 0; it must be a probability in (0, 1]"},
		{func(p *Policy) { p.Bands = []Band{{Low: 0.5, High: math.NaN()}} }, "bands", "has high = NaN"},
		{func(p *Policy) { p.Bands = []Band{{Low: 0.5, High: 0.5}} }, "bands", "which holds nothing"},
		{func(p *Policy) { p.Bands = []Band{{High: 1, Action: 3}} }, "bands", "has action = 3"},
		{func(p *Policy) { p.Bands = append(UpFrom(0.9), Band{Low: 0.5, High: 0.9, Closed: true}) }, "bands", "has bands [0.9, 1] and [0.5, 0.9], which overlap"},
		{func(p *Policy) { p.Bands = append(UpFrom(0.9), UpFrom(0.9)...) }, "bands", "which overlap"},
		{func(p *Policy) { p.Bands = make([]Band, 65) }, "bands", "has 65 bands; a policy may have 64"},
		{func(p *Policy) { p.TopP = 0 }, "top_p", "is 0; it must be in (0, 1]"},
		{func(p *Policy) { p.TopP = math.NaN() }, "top_p", "is NaN"},
		{func(p *Policy) { p.RejectionTries = -1 }, "rejection_tries", "is -1; it must be in 0..1000"},
		{func(p *Policy) { p.EditProbability = 0 }, "edit_probability", "is 0; it must be in (0, 1]"},
		{func(p *Policy) { p.MaxEditRate = 2 }, "max_edit_rate", "is 2; it must be in (0, 1]"},
		{func(p *Policy) { p.MaxEditOrder = "lowest" }, "max_edit_order", `is "lowest"; it must be one of highest, random`},
		{func(p *Policy) { p.ProtectedWords = []string{"a", ""} }, "protected_words", "contains an empty word"},
		{func(p *Policy) { p.ProtectedWords = []string{"a", " b"} }, "protected_words", `contains " b"; take the white space around it off`},
		{func(p *Policy) { p.ProtectFirst = -1 }, "protect_first", "is -1; it must be 0 or above"},
		{func(p *Policy) { p.ProtectAssistant, p.ProtectPrompt = true, true }, "protect_prompt", "leaves nothing to edit"},
		{func(p *Policy) { p.Labels = "" }, "labels", `is ""; it must be one of edited, original`},
		{func(p *Policy) { p.K = 0 }, "k", "is 0; it must be in 1..4096"},
		{func(p *Policy) { p.K = 4097 }, "k", "is 4097; it must be in 1..4096"},
		{func(p *Policy) { p.Temperature = 0 }, "temperature", "is 0; it must be finite and above 0"},
		{func(p *Policy) { p.Temperature = math.Inf(1) }, "temperature", "is +Inf"},
		{func(p *Policy) { p.Temperature = math.NaN() }, "temperature", "is NaN"},
		{func(p *Policy) { p.ProtectedIDs = []int64{7, -1} }, "protected_ids", "contains -1; token ids are 0 and above"},
	} {
		p := testPolicy(c.change)
		requirePolicyError(t, p.Validate(), c.field, c.message)
		_, err := New(p, testVocabulary)
		requirePolicyError(t, err, c.field, c.message)
	}
	for _, change := range []func(*Policy){
		nil,
		func(p *Policy) { p.Bands = UpFrom(1) },
		func(p *Policy) { p.Bands, p.Temperature = UpFrom(5e-324), 5e-324 },
		func(p *Policy) { p.K = 4096 },
		func(p *Policy) { p.Temperature = math.MaxFloat64 },
	} {
		p := testPolicy(change)
		require.NoError(t, p.Validate())
	}
}

func TestNewRefusesWhatDoesNotFitTheVocabulary(t *testing.T) {
	_, err := New(testPolicy(func(p *Policy) { p.ProtectedIDs = []int64{100} }), testVocabulary)
	requirePolicyError(t, err, "protected_ids", "contains 100; the prior's vocabulary ends at 99")
	_, err = New(testPolicy(nil), Vocabulary{ModelSize: 0, TokenizerSize: 1})
	requirePolicyError(t, err, "vocabulary", "has 0 ids")
	_, err = New(testPolicy(nil), Vocabulary{ModelSize: math.MaxInt32 + 1, TokenizerSize: 1})
	requirePolicyError(t, err, "vocabulary", "has 2147483648 ids")
	_, err = New(testPolicy(nil), Vocabulary{ModelSize: 10, TokenizerSize: 0})
	requirePolicyError(t, err, "vocabulary", "has a tokenizer of 0 ids")
	// A tokenizer may know more than the model: such ids cannot occur.
	_, err = New(testPolicy(nil), Vocabulary{ModelSize: 10, TokenizerSize: 12, Special: []uint32{11}})
	require.NoError(t, err)
}

func TestNewKeepsNothingOfTheCallers(t *testing.T) {
	ids := []int64{5}
	e := newEditor(t, func(p *Policy) { p.ProtectedIDs = ids })
	ids[0] = 6
	require.True(t, e.barred[5])
	require.False(t, e.barred[6])
}

// Whatever is accepted is valid and comes back from its own JSON.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(paperJSON))
	for _, name := range PresetNames() {
		f.Add([]byte(`{"preset": "` + name + `"}`))
	}
	f.Add([]byte(`{"bands": [{"low": 0.2, "high": 0.3, "action": "mask_loss"}, {"high": 0.1, "closed": true}], "labels": "original"}`))
	f.Add([]byte(`{"threshold": 1e-300, "k": 4096, "temperature": 1e300, "exclude_original": true, "protect_special": false, "protected_ids": []}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if err != nil {
			require.Equal(t, Policy{}, p)
			return
		}
		require.NoError(t, p.Validate())
		again, err := json.Marshal(p)
		require.NoError(t, err)
		q, err := ParsePolicy(again)
		require.NoError(t, err)
		require.Equal(t, p, q)
	})
}
