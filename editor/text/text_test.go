package text

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor/vocab"
)

// spelling is a tokenizer whose tokens are the given bytes, in the order of their ids.
func spelling(tokens ...string) *vocab.Table {
	all := make([][]byte, len(tokens))
	for i, s := range tokens {
		all[i] = []byte(s)
	}
	return vocab.New(all, nil)
}

// words is a WordPiece tokenizer.
func words(t *testing.T) *vocab.Table {
	table, err := vocab.Read([]byte(`{"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "cafe": 1, "##s": 2, "a": 3, ".": 4, "bar": 5}}}`))
	require.NoError(t, err)
	return table
}

func splice(t *testing.T, r *Row, table *vocab.Table, edits ...Edit) (string, []Place) {
	out, places := r.Splice([]byte("before"), nil, table, edits)
	require.Len(t, places, len(edits))
	return strings.TrimPrefix(string(out), "before"), places
}

func TestAlign(t *testing.T) {
	table := spelling("a", " a", "\r\n", "\t", "é", "\xf0\x9f", "\x98\x80", "e\u0301", " ", "")
	for text, ids := range map[string][]uint32{
		"":         {},
		"a a\r\na": {0, 1, 2, 0},
		"é😀":       {4, 5, 6},
		"e\u0301":  {7},
		"a":        {1}, // " a" with the tokenizer's own space
		"  a":      {8, 8, 1},
		" a":       {8, 1},
		"\t":       {3, 9},
	} {
		r := Row{Text: text, IDs: ids}
		require.True(t, r.Align(table), "%q", text)
		at := 0
		for _, s := range r.Spans {
			assert.Equal(t, at, s.Start)
			at = s.End
		}
		assert.Equal(t, len(text), at)
	}
	for text, ids := range map[string][]uint32{"b": {0}, "aa": {0}, "A": {0}, "": {0}, "x": {}, "\n": {2}, "a ": {1}} {
		assert.False(t, (&Row{Text: text, IDs: ids}).Align(table), "%q", text)
	}
}

func TestAlignWords(t *testing.T) {
	r := Row{Text: " cafes\u00a0\r\n a. \t", IDs: []uint32{1, 2, 3, 4}}
	require.True(t, r.Align(words(t)))
	assert.Equal(t, []Span{{1, 5}, {5, 6}, {11, 12}, {12, 13}}, r.Spans)
	r = Row{Text: "  ", IDs: nil}
	assert.True(t, r.Align(words(t)))
	r = Row{Text: "Cafe", IDs: []uint32{1}}
	assert.False(t, r.Align(words(t)))
}

func TestAlignTo(t *testing.T) {
	r := Row{Text: "Café 😀.", IDs: []uint32{1, 0, 4}}
	require.True(t, r.AlignTo([]int32{0, 4, 5, 6, 6, 7}))
	assert.Equal(t, []Span{{0, 5}, {6, 10}, {10, 11}}, r.Spans)
	for _, offsets := range [][]int32{nil, {0, 4}, {0, 4, 5, 6, 6, 8}, {0, 4, 3, 2, 6, 7}, {0, 4, -1, 6, 6, 7}, {2, 4, 0, 6, 6, 7}, {0, 4, 1, 3, 6, 7}} {
		assert.False(t, r.AlignTo(offsets), "%v", offsets)
	}
}

func TestSplice(t *testing.T) {
	table := spelling("a", " a", "\r\n", "bb", " bb", "\xf0\x9f", "\x98\x80", "\x98\x81", "")
	for _, c := range []struct {
		text  string
		ids   []uint32
		edits []Edit
		want  string
	}{
		{"a a\r\na", []uint32{0, 1, 2, 0}, nil, "a a\r\na"},
		{"a a\r\na", []uint32{0, 1, 2, 0}, []Edit{{0, 3, false}, {1, 4, false}, {3, 3, false}}, "bb bb\r\nbb"},
		{"a a\r\na", []uint32{0, 1, 2, 0}, []Edit{{1, 0, true}, {2, 0, true}}, "aa"},
		{"a a", []uint32{1, 1}, []Edit{{0, 4, false}, {1, 4, false}}, "bb bb"}, // the tokenizer's own space is not written
		{"a a", []uint32{1, 1}, []Edit{{0, 3, false}}, "bb a"},
		{"a😀", []uint32{0, 5, 6}, []Edit{{2, 7, false}}, "a😁"},
		{"a😀", []uint32{0, 5, 6}, []Edit{{0, 3, false}}, "bb😀"},
	} {
		r := Row{Text: c.text, IDs: c.ids}
		require.True(t, r.Align(table))
		got, places := splice(t, &r, table, c.edits...)
		assert.Equal(t, c.want, got)
		for _, p := range places {
			assert.True(t, p.Made)
		}
	}
}

func TestEditsOfPartsOfCharactersAreNotMade(t *testing.T) {
	table := spelling("a", "\xf0\x9f", "\x98\x80", "\xe2", "")
	for _, e := range []Edit{{1, 0, false}, {2, 0, false}, {1, 0, true}, {2, 3, false}, {0, 2, false}, {3, 1, false}, {0, 4, false}, {3, 9, false}} {
		r := Row{Text: "a😀a", IDs: []uint32{0, 1, 2, 0}}
		require.True(t, r.Align(table))
		got, places := splice(t, &r, table, e, Edit{Pos: 3, Drop: true})
		if e.Pos == 3 {
			got, places = splice(t, &r, table, e)
			got = strings.TrimSuffix(got, "a")
		}
		assert.Equal(t, "a😀", got, "%v", e)
		assert.False(t, places[0].Made)
	}
}

func TestSpliceNormalised(t *testing.T) {
	spaced := spelling(" cafe", " bar", "bar", "s")
	r := Row{Text: "Café\n\nCAFÉs", IDs: []uint32{0, 0, 3}}
	require.True(t, r.AlignTo([]int32{0, 4, 4, 10, 10, 11}))
	got, _ := splice(t, &r, spaced, Edit{Pos: 1, New: 1})
	assert.Equal(t, "Café\n\nbars", got, "white space that the tokenizer read as a space stays")
	got, _ = splice(t, &r, spaced, Edit{Pos: 0, New: 1}, Edit{Pos: 1, New: 2})
	assert.Equal(t, "barbars", got)
	require.True(t, r.AlignTo([]int32{0, 4, 6, 10, 10, 11}), "places without white space")
	got, _ = splice(t, &r, spaced, Edit{Pos: 1, New: 1})
	assert.Equal(t, "Café\n\nbars", got)

	pieces := words(t)
	r = Row{Text: "CAFE\u0301 Cafés. ﬁ", IDs: []uint32{1, 1, 2, 4, 0, 0}}
	require.True(t, r.AlignTo([]int32{0, 4, 6, 10, 10, 11, 11, 12, 13, 14, 13, 14}))
	got, places := splice(t, &r, pieces, Edit{Pos: 0, New: 5}, Edit{Pos: 1, New: 5}, Edit{Pos: 4, New: 5}, Edit{Pos: 5, New: 5})
	assert.Equal(t, "CAFE\u0301 bars. ﬁ", got)
	assert.Equal(t, []Place{{Span: Span{0, 0}}, {Span: Span{7, 12}, Length: 3, Made: true}, {Span: Span{15, 15}}, {Span: Span{15, 15}}}, places,
		"an accent that belongs to no token, and a character that belongs to two")
}

func TestStretches(t *testing.T) {
	table := spelling("a", " a", "s", " b", ".", "\n")
	// a as a b. a as\n a
	r := Row{Text: "a as a b. a as\n a", IDs: []uint32{0, 1, 2, 1, 3, 4, 1, 1, 2, 5, 1}}
	require.True(t, r.Align(table))
	stretches := func(places ...Place) []Stretch { return r.Stretches(nil, table, places) }
	at := func(start, end, length int) Place { return Place{Span{start, end}, length, true} }

	assert.Empty(t, stretches())
	assert.Empty(t, stretches(Place{Span: Span{4, 4}}), "not made")
	assert.Equal(t, []Stretch{{0, 3, 0, 2, Span{0, 4}, Span{0, 6}}}, stretches(at(0, 1, 3)))
	assert.Equal(t, []Stretch{{1, 7, 2, 1, Span{1, 11}, Span{1, 13}}}, stretches(at(6, 8, 4)))
	assert.Equal(t, []Stretch{{6, 11, 1, 0, Span{9, 17}, Span{9, 16}}}, stretches(at(16, 17, 0)))
	two := stretches(at(0, 1, 3), at(16, 17, 0))
	assert.Equal(t, []Stretch{{0, 3, 0, 2, Span{0, 4}, Span{0, 6}}, {6, 11, 1, 0, Span{9, 17}, Span{11, 18}}}, two)
	assert.Equal(t, []Stretch{{0, 7, 0, 1, Span{0, 11}, Span{0, 12}}}, stretches(at(0, 1, 3), at(6, 8, 1)), "they overlap")

	empty := Row{Text: " "}
	require.True(t, empty.Align(words(t)))
	assert.Equal(t, []Stretch{{0, 0, 0, 0, Span{0, 1}, Span{0, 3}}}, empty.Stretches(nil, words(t), []Place{at(0, 1, 3)}))
}

// TestRandom splices random edits and compares with the tokens one after the other.
func TestRandom(t *testing.T) {
	table := spelling("a", " a", "é", "\xc3", "\xa9", " ", "\r\n", "日本", " x", "\xf0\x9f\x98", "\x80", "e\u0301")
	chance := rand.New(rand.NewPCG(1, 2))
	made := 0
	for range 10000 {
		r := Row{}
		for range chance.IntN(12) {
			r.IDs = append(r.IDs, uint32(chance.IntN(table.Size())))
		}
		for _, id := range r.IDs {
			r.Text += string(table.Bytes(id))
		}
		if !utf8.ValidString(r.Text) {
			continue
		}
		require.True(t, r.Align(table))
		var edits []Edit
		for i := range r.IDs {
			if chance.IntN(3) == 0 {
				edits = append(edits, Edit{i, uint32(chance.IntN(table.Size())), chance.IntN(4) == 0})
			}
		}
		got, places := splice(t, &r, table, edits...)
		var want string
		for i, id := range r.IDs {
			b := string(table.Bytes(id))
			for j, e := range edits {
				if e.Pos == i && places[j].Made {
					b = string(table.Bytes(e.New))
					if e.Drop {
						b = ""
					}
					assert.Equal(t, len(b), places[j].Length)
					made++
				}
			}
			want += b
		}
		assert.Equal(t, want, got)
		assert.True(t, utf8.ValidString(got))
	}
	assert.Greater(t, made, 1000)
}

func FuzzSplice(f *testing.F) {
	f.Add("a é😀", []byte{0, 1, 2, 3}, []byte{2, 1, 4, 0})
	table := spelling("a", " ", "é", "\xf0\x9f", "\x98\x80", " a", "\n")
	f.Fuzz(func(t *testing.T, text string, ids, change []byte) {
		if !utf8.ValidString(text) {
			return
		}
		r := Row{Text: text}
		offsets := []int32{}
		for i, id := range ids {
			r.IDs = append(r.IDs, uint32(id))
			offsets = append(offsets, int32(i), int32(i+1))
		}
		if !r.Align(table) && !r.AlignTo(offsets) {
			return
		}
		var edits []Edit
		for i, id := range change {
			if i < len(ids) && id < 8 {
				edits = append(edits, Edit{Pos: i, New: uint32(id), Drop: id == 7})
			}
		}
		out, places := r.Splice(nil, nil, table, edits)
		assert.True(t, utf8.Valid(out))
		length := len(text)
		for _, p := range places {
			length += p.Length - (p.End - p.Start)
		}
		assert.Len(t, out, length)
		end := 0
		for _, s := range r.Stretches(nil, table, places) {
			assert.LessOrEqual(t, end, s.First)
			assert.LessOrEqual(t, s.First+s.Left, s.End-s.Right)
			assert.True(t, s.Old.Start <= s.Old.End && s.New.Start <= s.New.End && s.New.End <= len(out))
			end = s.End
		}
	})
}
