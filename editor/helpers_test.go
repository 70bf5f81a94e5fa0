package editor

import (
	"bufio"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// toHalf rounds to the nearest float16 value, ties to even.
func toHalf(v float64) float32 {
	if v == 0 || math.IsInf(v, 0) || v != v {
		return float32(v)
	}
	_, e := math.Frexp(v) // v = f 2**e, f in [1/2, 1): eleven bits of f are kept
	unit := math.Ldexp(1, max(e-11, -24))
	v = math.RoundToEven(v/unit) * unit
	if math.Abs(v) > 65504 {
		v = math.Inf(int(math.Copysign(1, v)))
	}
	return float32(v)
}

// readLines decodes the lines of a file in testdata.
func readLines[T any](t *testing.T, name string) []T {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	require.NoError(t, err)
	defer f.Close()
	var all []T
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var v T
		require.NoError(t, json.Unmarshal(lines.Bytes(), &v))
		all = append(all, v)
	}
	require.NoError(t, lines.Err())
	require.NotEmpty(t, all)
	return all
}

const (
	testModelSize     = 100
	testTokenizerSize = 96
	testK             = 8
)

var testVocabulary = Vocabulary{ModelSize: testModelSize, TokenizerSize: testTokenizerSize, Special: []uint32{0, 1, 50}}

// testPolicy changes the paper's policy.
func testPolicy(change func(*Policy)) Policy {
	p := PaperPolicy()
	p.K = testK
	if change != nil {
		change(&p)
	}
	return p
}

func newEditor(tb testing.TB, change func(*Policy)) *Editor {
	tb.Helper()
	e, err := New(testPolicy(change), testVocabulary)
	require.NoError(tb, err)
	return e
}

// randomDocument makes ids and scores: some tokens are null, most of the
// others very probable, and for P >= 0.3 the top-k is stored.
func randomDocument(rng *rand.Rand, length int) *Document {
	d := &Document{IDs: make([]uint32, length), Offset: rng.Uint64N(1 << 40)}
	s := &d.Scores
	s.K = testK
	s.LogP = make([]float32, length)
	s.ValidOffset = rng.IntN(20)
	s.Valid = make([]byte, (s.ValidOffset+length+7)/8)
	for i := range length {
		d.IDs[i] = uint32(rng.IntN(testTokenizerSize))
	}
	for i := range length {
		if i == 0 || rng.IntN(20) == 0 {
			s.NullCount++
			s.LogP[i] = []float32{0, float32(math.NaN()), 1, -1}[rng.IntN(4)]
			continue
		}
		bit := s.ValidOffset + i
		s.Valid[bit/8] |= 1 << (bit % 8)

		// The original's probability, its rank, and seven others that share
		// most of what is left.
		p := 1 - math.Pow(10, -9*rng.Float64())
		rank := 0
		if rng.IntN(4) == 0 {
			p, rank = 0.3*rng.Float64()+0.1, rng.IntN(testK)
		}
		s.LogP[i] = float32(math.Log(p))
		if p < 0.3 {
			continue
		}
		others := rng.Perm(testModelSize)
		others = slices.DeleteFunc(others, func(id int) bool { return uint32(id) == d.IDs[i] })
		left := 1 - p
		s.TopPos = append(s.TopPos, int32(i))
		for j := range testK {
			if j == rank {
				s.TopIDs = append(s.TopIDs, int32(d.IDs[i]))
				s.TopLogP = append(s.TopLogP, toHalf(math.Log(p)))
				continue
			}
			s.TopIDs = append(s.TopIDs, int32(others[j]))
			s.TopLogP = append(s.TopLogP, toHalf(math.Log(left*0.3)))
			left *= 0.7
		}
	}
	d.Hash = hashIDs(d.IDs)
	d.Key = d.Hash
	s.IDsHash = d.Hash.Lo
	return d
}

// mustPlan plans into a Plan of its own.
func mustPlan(tb testing.TB, e *Editor, ep Epoch, d *Document) ([]Edit, Counts) {
	tb.Helper()
	var plan Plan
	counts, err := e.Plan(ep, d, &plan)
	require.NoError(tb, err)
	return plan.Edits, counts
}
