package vocab

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const builtin = "../../python/toedit/builtin_prior/tokenizer.json"

// definition is a tokenizer.json of a model and other parts, all JSON.
func definition(model string, parts ...string) []byte {
	return []byte(`{"model": ` + model + strings.Join(append([]string{""}, parts...), ", ") + `}`)
}

// spelled are a table's tokens as text, and their traits.
func spelled(t *Table) map[string]Trait {
	out := map[string]Trait{}
	for id := range uint32(t.Size()) {
		out[string(t.Bytes(id))] = t.Traits(id)
	}
	return out
}

func TestReadByteLevel(t *testing.T) {
	raw := definition(`{"type": "BPE", "vocab": {"a": 0, "Ġa": 1, "Ċ": 2, "âĤ¬": 3, "Ģ": 4, "<|end|>": 5, "Ł": 6, "7": 7, "Ġ": 8, "日": 9}, "merges": []}`,
		`"added_tokens": [{"id": 5, "content": "<|end|>", "special": true}, {"id": 10, "content": " Ġ", "special": false}]`,
		`"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}`,
		`"decoder": null, "normalizer": null`)
	table, err := Read(raw)
	require.NoError(t, err)
	assert.Equal(t, map[string]Trait{
		"a": Continues | EndsInside, " a": BeginsWord | EndsInside, "\n": 0, "€": Punctuation, "\x80": Continues | EndsInside, "<|end|>": Special,
		"\x9f": Continues | EndsInside, "7": Continues | EndsInside | Digit, " ": 0, "日": Continues | EndsInside, " Ġ": Special,
	}, spelled(table))
	for _, where := range []string{"decoder", "normalizer"} {
		_, err := Read(definition(`{"type": "BPE", "vocab": {"a": 0}, "merges": []}`, `"`+where+`": {"type": "ByteLevel"}`))
		assert.NoError(t, err, where)
	}
}

func TestByteLevelBytes(t *testing.T) {
	seen := map[int16]bool{}
	for c := range byteOf {
		if b := byteOf[c]; b >= 0 {
			assert.False(t, seen[b])
			seen[b] = true
		}
	}
	assert.Len(t, seen, 256)
	assert.Equal(t, int16(0), byteOf['Ā'])
	assert.Equal(t, int16(' '), byteOf['Ġ'])
	assert.Equal(t, int16(0xAD), byteOf['Ń'])
}

func TestReadSpaceMark(t *testing.T) {
	const pieces = `{"type": "Unigram", "byte_fallback": true, "vocab": [["<unk>", 0], ["▁a", -1.5], ["a", -2], ["<0x0A>", 0], ["<0xG1>", 0], ["▁", -3], ["▁.", -4]]}`
	const bpe = `{"type": "BPE", "byte_fallback": true, "merges": [], "vocab": {"<unk>": 0, "▁a": 1, "a": 2, "<0x0A>": 3, "<0xG1>": 4, "▁": 5, "▁.": 6}}`
	want := map[string]Trait{"<unk>": Special, " a": BeginsWord | EndsInside, "a": Continues | EndsInside, "\n": 0, " ": 0, " .": Punctuation}
	const added = `"added_tokens": [{"id": 0, "content": "<unk>", "special": true}]`
	for name, raw := range map[string][]byte{
		"T5":      definition(pieces, added, `"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}`),
		"Llama 2": definition(bpe, added, `"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}`),
		"Gemma":   definition(bpe, added, `"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}`),
		"decoder": definition(strings.Replace(bpe, `"byte_fallback": true, `, "", 1), added, `"pre_tokenizer": null, "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}`),
	} {
		table, err := Read(raw)
		require.NoError(t, err, name)
		got := spelled(table)
		delete(got, "<0xG1>")
		assert.Equal(t, want, got, name)
	}
}

func TestReadWords(t *testing.T) {
	table, err := Read(definition(`{"max_input_chars_per_word": 100, "vocab": {"[PAD]": 0, "un": 1, "##able": 2, "##": 3, ".": 4, "##.": 5, "#a": 6, "##9": 7}}`,
		`"added_tokens": [{"id": 0, "content": "[PAD]"}]`))
	require.NoError(t, err)
	assert.Equal(t, "able", string(table.Bytes(2)))
	assert.Equal(t, "##", string(table.Bytes(3)), "the prefix alone continues nothing")
	for id, traits := range []Trait{Special, BeginsWord | EndsInside, Continues | EndsInside, Punctuation, Punctuation, Punctuation, EndsInside, Continues | EndsInside | Digit} {
		assert.Equal(t, traits, table.Traits(uint32(id)), string(table.Bytes(uint32(id))))
	}

	table, err = Read(definition(`{"type": "WordLevel", "vocab": {"un": 0, "##able": 1, "able": 2}}`))
	require.NoError(t, err)
	assert.Equal(t, BeginsWord|EndsInside, table.Traits(2))
	assert.Equal(t, "##able", string(table.Bytes(1)))

	table, err = Read(definition(`{"type": "WordPiece", "continuing_subword_prefix": "_", "vocab": {"un": 0, "_able": 1}}`))
	require.NoError(t, err)
	assert.Equal(t, Continues|EndsInside, table.Traits(1))
}

func TestReadGap(t *testing.T) {
	table, err := Read(definition(`{"type": "WordLevel", "vocab": {"a": 0}}`, `"added_tokens": [{"id": 5, "content": "<x>"}]`))
	require.NoError(t, err)
	assert.Equal(t, 6, table.Size())
	assert.Empty(t, table.Bytes(3))
	assert.Zero(t, table.Traits(3))
}

func TestReadRefuses(t *testing.T) {
	for want, raw := range map[string][]byte{
		"cannot be read":          []byte("{"),
		"no table of tokens":      definition(`{"type": "BPE"}`, `"decoder": {"type": "ByteLevel"}`),
		"no list of tokens":       definition(`{"type": "Unigram", "vocab": [3]}`),
		"id 0 has no token":       definition(`{"type": "Unigram", "vocab": [[]]}`),
		"the token of id 1":       definition(`{"type": "Unigram", "vocab": [["a", 0], [7, 0]]}`),
		"twice, as ids 0 and 1":   definition(`{"type": "Unigram", "vocab": [["a", 0], ["a", 0]]}`),
		`two tokens, "a" and "b"`: definition(`{"type": "WordLevel", "vocab": {"b": 3, "a": 3}}`),
		"has id 4294967295":       definition(`{"type": "WordLevel", "vocab": {"a": 4294967295}}`),
		`"x" has id 4000000000`:   definition(`{"type": "WordLevel", "vocab": {"a": 0}}`, `"added_tokens": [{"id": 4000000000, "content": "x"}]`),
		`by "</w>"`:               definition(`{"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a</w>": 0}, "merges": []}`, `"decoder": {"type": "ByteLevel"}`),
		"a BPE model must be":     definition(`{"vocab": {"a": 0}, "merges": []}`, `"pre_tokenizer": {"type": "Whitespace"}`),
	} {
		_, err := Read(raw)
		assert.ErrorContains(t, err, want)
	}
}

func TestReadBundledPrior(t *testing.T) {
	raw, err := os.ReadFile(builtin)
	require.NoError(t, err)
	table, err := Read(raw)
	require.NoError(t, err)
	assert.Equal(t, 4096, table.Size())
	assert.Equal(t, Special, table.Traits(0))
	single := map[byte]bool{}
	for id := range uint32(4096) {
		if b := table.Bytes(id); len(b) == 1 {
			single[b[0]] = true
		}
	}
	assert.Len(t, single, 256, "every byte can be written")
}

func FuzzRead(f *testing.F) {
	f.Add(definition(`{"type": "BPE", "vocab": {"Ġa": 0}, "merges": []}`, `"decoder": {"type": "ByteLevel"}`, `"added_tokens": [{"id": 3, "content": "x"}]`))
	f.Add(definition(`{"type": "Unigram", "vocab": [["▁a", 0], ["<0x0A>", 0]], "byte_fallback": true}`, `"pre_tokenizer": {"type": "Metaspace"}`))
	f.Add(definition(`{"type": "WordPiece", "vocab": {"a": 0, "##b": 1}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		table, err := Read(raw)
		if err != nil {
			return
		}
		total := 0
		for id := range uint32(table.Size()) {
			total += len(table.Bytes(id))
			traits := table.Traits(id)
			assert.False(t, traits&BeginsWord != 0 && traits&Continues != 0, id)
		}
		assert.LessOrEqual(t, total, len(raw)*3, "no token is longer than what spells it")
		assert.Empty(t, table.Bytes(uint32(table.Size())))
	})
}
