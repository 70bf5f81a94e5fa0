package prior

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
	"toedit/editor/scorer/scorertest"
)

// The test's own prior: a folder like a real one, whose model is three bytes.
const (
	modelText     = "abc"
	tokenizerText = `{"model": "not read here"}`
)

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

func settings() map[string]any {
	return map[string]any{
		"format": 1, "name": "test", "architecture": "LlamaForCausalLM", "device": "cpu", "dtype": "fp32",
		"context_length": 16, "vocab_size": 12, "tokenizer_size": 10, "special_ids": []int{0, 3},
		"bos": map[string]any{"rule": "always", "id": 3}, "k": 4,
		"graph": map[string]any{"version": 1, "opset": 23, "attention": "Attention"},
		"files": map[string]any{
			ModelFile:     map[string]any{"sha256": sum(modelText), "size": len(modelText)},
			TokenizerFile: map[string]any{"sha256": sum(tokenizerText), "size": len(tokenizerText)},
		},
		"source": map[string]any{"anything": []int{1}}, "check": nil,
	}
}

// folder writes a prior whose settings are changed by change.
func folder(t *testing.T, change func(s map[string]any)) string {
	t.Helper()
	dir, s := t.TempDir(), settings()
	if change != nil {
		change(s)
	}
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	write(t, dir, SettingsFile, string(raw))
	write(t, dir, ModelFile, modelText)
	write(t, dir, TokenizerFile, tokenizerText)
	return dir
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
}

func in(s map[string]any, key string) map[string]any { return s[key].(map[string]any) }

func TestOpen(t *testing.T) {
	dir := folder(t, nil)
	p, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, p.VerifyModel())
	assert.Equal(t, dir, p.Dir)
	assert.Equal(t, 16, p.ContextLength)
	assert.Equal(t, uint32(3), *p.BOS.ID)
	assert.Equal(t, filepath.Join(dir, "model.onnx"), p.ModelPath())
	v := p.Vocabulary()
	assert.Equal(t, editor.Vocabulary{ModelSize: 12, TokenizerSize: 10, Special: []uint32{0, 3}}, v)
	v.Special[0] = 9
	assert.Equal(t, []uint32{0, 3}, p.SpecialIDs, "the caller's to change")
	assert.Regexp(t, "^[0-9a-f]{32}$", p.Fingerprint())
}

func TestOpenBundledPrior(t *testing.T) {
	p, err := Open(scorertest.BundledPrior(t))
	require.NoError(t, err)
	require.NoError(t, p.VerifyModel())
	assert.Equal(t, 4096, p.VocabSize)
}

func TestOpenRefusesFields(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s map[string]any)
		parts  []string
	}{
		"no format":             {func(s map[string]any) { delete(s, "format") }, []string{"format is 0", "1"}},
		"later format":          {func(s map[string]any) { s["format"] = 2 }, []string{"format is 2", "must be 1"}},
		"later graph":           {func(s map[string]any) { in(s, "graph")["version"] = 2 }, []string{"graph.version is 2"}},
		"no graph":              {func(s map[string]any) { delete(s, "graph") }, []string{"graph.version is 0"}},
		"device":                {func(s map[string]any) { s["device"] = "tpu" }, []string{`device is "tpu"`, `"cuda"`}},
		"no device":             {func(s map[string]any) { delete(s, "device") }, []string{`device is ""`}},
		"context":               {func(s map[string]any) { s["context_length"] = 1 }, []string{"context_length is 1", "at least 2"}},
		"negative context":      {func(s map[string]any) { s["context_length"] = -512 }, []string{"context_length is -512"}},
		"vocabulary":            {func(s map[string]any) { s["vocab_size"] = 1 }, []string{"vocab_size is 1"}},
		"vocabulary too large":  {func(s map[string]any) { s["vocab_size"] = 1 << 31 }, []string{"vocab_size is 2147483648"}},
		"no tokenizer size":     {func(s map[string]any) { delete(s, "tokenizer_size") }, []string{"tokenizer_size is 0", "vocab_size = 12"}},
		"tokenizer too large":   {func(s map[string]any) { s["tokenizer_size"] = 13 }, []string{"tokenizer_size is 13", "vocab_size = 12"}},
		"k of 0":                {func(s map[string]any) { s["k"] = 0 }, []string{"k is 0"}},
		"k too large":           {func(s map[string]any) { s["k"] = 13 }, []string{"k is 13", "12"}},
		"special id":            {func(s map[string]any) { s["special_ids"] = []int{1, 12} }, []string{"special_ids is 12", "below vocab_size"}},
		"negative special id":   {func(s map[string]any) { s["special_ids"] = []int{-1} }, []string{"cannot be read", "special_ids"}},
		"rule":                  {func(s map[string]any) { in(s, "bos")["rule"] = "sometimes" }, []string{`bos.rule is "sometimes"`, `"never"`}},
		"no rule":               {func(s map[string]any) { delete(s, "bos") }, []string{`bos.rule is ""`}},
		"always without id":     {func(s map[string]any) { in(s, "bos")["id"] = nil }, []string{"bos.id is null"}},
		"bos beyond":            {func(s map[string]any) { in(s, "bos")["id"] = 12 }, []string{"bos.id is 12"}},
		"bos beyond, unused":    {func(s map[string]any) { s["bos"] = map[string]any{"rule": "never", "id": 12} }, []string{"bos.id is 12"}},
		"no files":              {func(s map[string]any) { delete(s, "files") }, []string{"files is without model.onnx"}},
		"model not listed":      {func(s map[string]any) { delete(in(s, "files"), ModelFile) }, []string{"without model.onnx"}},
		"tokenizer not listed":  {func(s map[string]any) { delete(in(s, "files"), TokenizerFile) }, []string{"without tokenizer.json"}},
		"hash that is none":     {func(s map[string]any) { in(in(s, "files"), ModelFile)["sha256"] = "xyz" }, []string{"files.model.onnx.sha256", `"xyz"`, "64 hex digits"}},
		"hash that is too long": {func(s map[string]any) { in(in(s, "files"), ModelFile)["sha256"] = sum("") + "00" }, []string{"64 hex digits"}},
		"file elsewhere":        {func(s map[string]any) { in(s, "files")["../up"] = in(in(s, "files"), ModelFile) }, []string{`"../up"`, "plain file names"}},
		"absolute file":         {func(s map[string]any) { in(s, "files")["/etc/passwd"] = in(in(s, "files"), ModelFile) }, []string{"plain file names"}},
		"folder above":          {func(s map[string]any) { in(s, "files")[".."] = in(in(s, "files"), ModelFile) }, []string{"plain file names"}},
		"file without a name":   {func(s map[string]any) { in(s, "files")[""] = in(in(s, "files"), ModelFile) }, []string{"plain file names"}},
		"a number that is text": {func(s map[string]any) { s["k"] = "64" }, []string{"cannot be read", "k"}},
		"a fraction":            {func(s map[string]any) { s["context_length"] = 512.5 }, []string{"cannot be read", "context_length"}},
		"listed file missing":   {func(s map[string]any) { in(s, "files")["model.onnx.data"] = in(in(s, "files"), ModelFile) }, []string{"model.onnx.data is missing", "export"}},
		"wrong size":            {func(s map[string]any) { in(in(s, "files"), ModelFile)["size"] = 4 }, []string{"model.onnx has 3 bytes", "says 4", "truncated"}},
		"another tokenizer":     {func(s map[string]any) { in(in(s, "files"), TokenizerFile)["sha256"] = sum("other") }, []string{"tokenizer.json has SHA-256", sum("other")}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, c.change)
			_, err := Open(dir)
			require.Error(t, err)
			for _, part := range append(c.parts, dir) {
				assert.Contains(t, err.Error(), part)
			}
		})
	}
}

func TestOpenRefusesFolders(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "none"))
	assert.ErrorContains(t, err, "is not a prior folder")
	assert.ErrorContains(t, err, "toedit export")
	_, err = Open(t.TempDir())
	assert.ErrorContains(t, err, "has no prior.json")

	whole, err := json.Marshal(settings())
	require.NoError(t, err)
	for _, text := range []string{"", "null?", "[]", "{", string(whole[:len(whole)/2]), string(whole) + "x"} {
		dir := folder(t, nil)
		write(t, dir, SettingsFile, text)
		_, err := Open(dir)
		assert.ErrorContains(t, err, "cannot be read", text)
	}
	dir := folder(t, nil)
	require.NoError(t, os.Remove(filepath.Join(dir, SettingsFile)))
	require.NoError(t, os.Mkdir(filepath.Join(dir, SettingsFile), 0o700))
	_, err = Open(dir)
	assert.ErrorContains(t, err, "reading the prior's settings")
}

// Files are missed, truncated or changed where they are: the tokenizer and every size when the folder is opened, the
// model when it is about to be run.
func TestOpenRefusesFiles(t *testing.T) {
	for _, name := range []string{ModelFile, TokenizerFile} {
		dir := folder(t, nil)
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
		_, err := Open(dir)
		assert.ErrorContains(t, err, name+" is missing")

		dir = folder(t, nil)
		write(t, dir, name, "ab")
		_, err = Open(dir)
		assert.ErrorContains(t, err, name+" has 2 bytes")
	}
	dir := folder(t, nil)
	write(t, dir, TokenizerFile, strings.ToUpper(tokenizerText))
	_, err := Open(dir)
	assert.ErrorContains(t, err, "tokenizer.json has SHA-256")
	assert.ErrorContains(t, err, "belongs to another prior")

	dir = folder(t, nil)
	write(t, dir, ModelFile, "abd")
	p, err := Open(dir)
	require.NoError(t, err)
	err = p.VerifyModel()
	assert.ErrorContains(t, err, "model.onnx has SHA-256")
	assert.ErrorContains(t, err, sum(modelText))
	require.NoError(t, os.Remove(filepath.Join(dir, ModelFile)))
	assert.ErrorContains(t, p.VerifyModel(), ModelFile)
}

func TestHashesMayBeInCapitals(t *testing.T) {
	small, err := Open(folder(t, nil))
	require.NoError(t, err)
	large, err := Open(folder(t, func(s map[string]any) {
		for _, name := range []string{ModelFile, TokenizerFile} {
			f := in(in(s, "files"), name)
			f["sha256"] = strings.ToUpper(f["sha256"].(string))
		}
	}))
	require.NoError(t, err)
	require.NoError(t, large.VerifyModel())
	assert.Equal(t, small.Fingerprint(), large.Fingerprint())
}

// Everything that decides a score or an edit is in the fingerprint; names and notes are not.
func TestFingerprint(t *testing.T) {
	print := func(change func(s map[string]any)) string {
		p, err := Open(folder(t, change))
		require.NoError(t, err)
		return p.Fingerprint()
	}
	base := print(nil)
	seen := map[string]string{base: "nothing"}
	for name, change := range map[string]func(s map[string]any){
		"graph.opset":         func(s map[string]any) { in(s, "graph")["opset"] = 24 },
		"graph.attention":     func(s map[string]any) { in(s, "graph")["attention"] = "com.microsoft.GroupQueryAttention" },
		"device":              func(s map[string]any) { s["device"] = "cuda" },
		"dtype":               func(s map[string]any) { s["dtype"] = "int8" },
		"context_length":      func(s map[string]any) { s["context_length"] = 15 },
		"vocab_size":          func(s map[string]any) { s["vocab_size"] = 13 },
		"tokenizer_size":      func(s map[string]any) { s["tokenizer_size"] = 11 },
		"special_ids":         func(s map[string]any) { s["special_ids"] = []int{0} },
		"no special_ids":      func(s map[string]any) { delete(s, "special_ids") },
		"bos.rule":            func(s map[string]any) { in(s, "bos")["rule"] = "never" },
		"bos.id":              func(s map[string]any) { in(s, "bos")["id"] = 4 },
		"graph.min_positions": func(s map[string]any) { in(s, "graph")["min_positions"] = 8 },
		"graph.tf32":          func(s map[string]any) { in(s, "graph")["tf32"] = true },
		"no bos.id":           func(s map[string]any) { s["bos"] = map[string]any{"rule": "never", "id": nil} },
		"model":               func(s map[string]any) { in(in(s, "files"), ModelFile)["sha256"] = sum("other") },
	} {
		got := print(change)
		assert.Empty(t, seen[got], "%s and %s have one fingerprint", name, seen[got])
		seen[got] = name
	}
	dir := folder(t, func(s map[string]any) { in(s, "files")["extra"] = map[string]any{"sha256": sum("x"), "size": 1} })
	write(t, dir, "extra", "x")
	p, err := Open(dir)
	require.NoError(t, err)
	assert.Empty(t, seen[p.Fingerprint()])

	for name, change := range map[string]func(s map[string]any){
		"name":                    func(s map[string]any) { s["name"] = "another" },
		"architecture":            func(s map[string]any) { s["architecture"] = "another" },
		"k":                       func(s map[string]any) { s["k"] = 12 },
		"memory":                  func(s map[string]any) { s["memory"] = map[string]any{"position": 5} },
		"source":                  func(s map[string]any) { s["source"] = "another" },
		"a field of later":        func(s map[string]any) { s["later"] = true },
		"the order of specialids": func(s map[string]any) { s["special_ids"] = []int{3, 0} },
	} {
		assert.Equal(t, base, print(change), name)
	}
}

// Stored scores carry the fingerprint: what it is made of is a promise. These are hashes of texts that were written by hand.
func TestFingerprintIsPinned(t *testing.T) {
	p, err := Open(folder(t, nil))
	require.NoError(t, err)
	want := ""
	for _, text := range []string{
		"file.model.onnx=" + sum(modelText) + "\n",
		"file.tokenizer.json=" + sum(tokenizerText) + "\nvocab_size=12\ntokenizer_size=10\nspecial_ids=[0 3]\n",
		"format=1\ngraph.version=1\ngraph.opset=23\ngraph.attention=Attention\ngraph.min_positions=0\ndevice=cpu\ndtype=fp32\n",
		"context_length=16\nbos.rule=always\nbos.id=3\nwindows=rolling\nmin_context=8\ncross_documents=false\n",
	} {
		want += sum(text)[:8]
	}
	assert.Equal(t, want, p.Fingerprint())
}

func TestDifferenceNamesTheParts(t *testing.T) {
	base, err := Open(folder(t, nil))
	require.NoError(t, err)
	for want, change := range map[string]func(s map[string]any){
		"":          nil,
		"weights":   func(s map[string]any) { in(in(s, "files"), ModelFile)["sha256"] = sum("other") },
		"tokenizer": func(s map[string]any) { s["special_ids"] = []int{0} },
		"graph":     func(s map[string]any) { s["dtype"] = "int8" },
		"reading":   func(s map[string]any) { in(s, "bos")["id"] = 4 },
		"weights, tokenizer and graph": func(s map[string]any) {
			in(in(s, "files"), ModelFile)["sha256"] = sum("other")
			s["vocab_size"] = 13
			s["device"] = "cuda"
		},
	} {
		p, err := Open(folder(t, change))
		require.NoError(t, err)
		assert.Equal(t, want, Difference(base.Fingerprint(), p.Fingerprint()))
	}
	assert.Empty(t, Difference(base.Fingerprint(), "no fingerprint"))
}

// How documents are read is part of the fingerprint, and what is left out is the default.
func TestReading(t *testing.T) {
	dir := folder(t, nil)
	base, err := Open(dir)
	require.NoError(t, err)
	assert.Equal(t, Reading{Windows: WindowsRolling, MinContext: 8}, base.Reading)
	seen := map[string]Reading{base.Fingerprint(): base.Reading}
	for _, r := range []Reading{{MinContext: 1}, {MinContext: 15}, {Windows: WindowsLMEval}, {Windows: WindowsOff}, {CrossDocuments: true}} {
		p, err := OpenAs(dir, r)
		require.NoError(t, err)
		assert.Equal(t, "reading", Difference(base.Fingerprint(), p.Fingerprint()))
		assert.NotContains(t, seen, p.Fingerprint(), "%v", r)
		seen[p.Fingerprint()] = r
	}
	same, err := OpenAs(dir, Reading{Windows: WindowsRolling, MinContext: 8})
	require.NoError(t, err)
	assert.Equal(t, base.Fingerprint(), same.Fingerprint())
	for text, r := range map[string]Reading{
		"min_context is 16; with a context of 16 positions it must be 1 to 15": {MinContext: 16},
		"min_context is -1": {MinContext: -1},
		`min_context is 3, but belongs to windows="rolling" only`:        {Windows: WindowsOff, MinContext: 3},
		`windows is "sliding"; it must be "rolling", "lm-eval" or "off"`: {Windows: "sliding"},
	} {
		_, err := OpenAs(dir, r)
		assert.ErrorContains(t, err, text)
	}
}

func TestParseReading(t *testing.T) {
	r, err := ParseReading("")
	require.NoError(t, err)
	assert.Equal(t, Reading{}, r)
	r, err = ParseReading(`{"windows": "rolling", "min_context": 3, "cross_documents": true}`)
	require.NoError(t, err)
	assert.Equal(t, Reading{WindowsRolling, 3, true}, r)
	for _, text := range []string{`{"window": "off"}`, `[]`, `{} {}`, `{"min_context": 0.5}`} {
		_, err := ParseReading(text)
		assert.ErrorContains(t, err, "how to read documents is", text)
	}
}

func TestSpecialIDsAreNeverNull(t *testing.T) {
	p, err := Open(folder(t, func(s map[string]any) { delete(s, "special_ids") }))
	require.NoError(t, err)
	raw, err := json.Marshal(p.SpecialIDs)
	require.NoError(t, err)
	assert.Equal(t, "[]", string(raw))
}
