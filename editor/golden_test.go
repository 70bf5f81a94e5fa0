package editor

import (
	"encoding/json"
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

type golden struct {
	Name       string
	Policy     json.RawMessage
	Vocabulary struct {
		ModelSize     int `json:"model_size"`
		TokenizerSize int `json:"tokenizer_size"`
		Special       []uint32
	}
	Epoch     Epoch
	Key       any // null, a string or an integer
	Offset    uint64
	IDs       []uint32
	Protected []bool
	LogP      []*float32
	TopPos    []int32    `json:"topk_pos"`
	TopIDs    []int32    `json:"topk_ids"`
	TopLogP   []*float32 `json:"topk_logp"` // null for -Inf
	K         int
	IDsHash   string `json:"ids_hash"`
	Edits     [][3]int64
	Counts    Counts
	Expected  float64
}

func (g *golden) document(t *testing.T) *Document {
	hash, err := strconv.ParseUint(g.IDsHash, 16, 64)
	require.NoError(t, err)
	d := &Document{IDs: g.IDs, Hash: hashIDs(g.IDs), Offset: g.Offset, Protected: g.Protected}
	switch key := g.Key.(type) {
	case string:
		d.Key = HashBytes([]byte(key))
	case float64:
		d.Key = HashInt64(int64(key))
	default:
		d.Key = d.Hash
	}
	s := &d.Scores
	s.TopPos, s.TopIDs, s.K, s.IDsHash = g.TopPos, g.TopIDs, g.K, hash
	s.Valid = make([]byte, (len(g.LogP)+7)/8)
	for i, v := range g.LogP {
		if v == nil {
			s.LogP = append(s.LogP, 0)
			continue
		}
		s.Valid[i/8] |= 1 << (i % 8)
		s.LogP = append(s.LogP, *v)
	}
	for _, v := range g.TopLogP {
		if v == nil {
			s.TopLogP = append(s.TopLogP, float32(math.Inf(-1)))
			continue
		}
		s.TopLogP = append(s.TopLogP, *v)
	}
	return d
}

// The same seeds give the same edits for ever: testdata/README.md says where
// these come from.
func TestGoldens(t *testing.T) {
	const first = 23 // lines that there have been from the start
	var all Counts
	for i, g := range readLines[golden](t, "goldens.jsonl") {
		t.Run(g.Name, func(t *testing.T) {
			p, err := ParsePolicy(g.Policy)
			require.NoError(t, err)
			e, err := New(p, Vocabulary{ModelSize: g.Vocabulary.ModelSize, TokenizerSize: g.Vocabulary.TokenizerSize, Special: g.Vocabulary.Special})
			require.NoError(t, err)
			d := g.document(t)
			edits, counts := mustPlan(t, e, g.Epoch, d)
			got := [][3]int64{}
			for _, edit := range edits {
				require.Equal(t, d.Scores.LogP[edit.Pos], edit.LogP)
				got = append(got, [3]int64{int64(edit.Pos), int64(edit.Old), int64(edit.New)})
			}
			require.Equal(t, g.Edits, got)
			require.InDelta(t, g.Expected, counts.Expected, 1e-12*float64(counts.Candidates))
			if i < first {
				all.Add(counts)
			}
			counts.Expected = 0
			require.Equal(t, g.Counts, counts)
		})
	}
	// To the last bit: the order of additions counts.
	require.Equal(t, 538.6289760326622, all.Expected)
}
