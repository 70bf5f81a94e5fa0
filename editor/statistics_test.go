package editor

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// edgeDocument is a document whose log probabilities lie on and beside all edges, and at the ends.
func edgeDocument(bands []Band) *Document {
	logp := []float32{0, float32(math.Copysign(0, -1)), -math.SmallestNonzeroFloat32, leastLogP, math.Nextafter32(leastLogP, -2000),
		-math.MaxFloat32, float32(math.Inf(-1)), -700, -100}
	around := func(x float64) {
		v := float32(x)
		for range 3 {
			v = math.Nextafter32(v, float32(math.Inf(-1)))
		}
		for range 6 {
			logp = append(logp, min(v, 0))
			v = math.Nextafter32(v, 1)
		}
	}
	for _, p := range append(HistogramEdges(), bandEdges(bands)...) {
		if p > 0 {
			around(logOf(p))
			for _, delta := range deltas {
				around(logOf(p) + delta)
				around(logOf(p) - delta)
			}
		}
	}
	d := &Document{IDs: make([]uint32, len(logp)), Scores: Scores{LogP: logp, K: testK}}
	for i := range d.IDs {
		d.IDs[i] = uint32(i % testTokenizerSize)
	}
	d.Hash = hashIDs(d.IDs)
	d.Scores.IDsHash = d.Hash.Lo
	return d
}

// statisticsOf is the statistics of documents by their definition.
type statisticsOf struct {
	counts                 Counts
	impossible             int64
	sum                    float64
	fine, tenths, marginal []int64
}

func defined(e *Editor, docs []*Document, counts []Counts) statisticsOf {
	edges := HistogramEdges()
	s := statisticsOf{fine: make([]int64, len(edges)-1), tenths: make([]int64, 10)}
	margins := NewScale(e.policy.Bands).Margins()
	s.marginal = make([]int64, len(margins))
	ln := make(map[float64]float64) // logOf is slow
	for _, p := range edges {
		ln[p] = logOf(p)
	}
	for _, m := range margins {
		ln[m.Edge] = logOf(m.Edge)
	}
	in := func(v float32, low, high float64) bool {
		return float64(v) >= ln[low] && (float64(v) < ln[high] || high == 1)
	}
	for n, d := range docs {
		s.counts.Add(counts[n])
		for i, v := range d.Scores.LogP {
			if !d.Scores.valid(i) {
				continue
			}
			if v < leastLogP {
				s.impossible++
			} else {
				s.sum += float64(v)
			}
			for j := range s.fine {
				if in(v, edges[j], edges[j+1]) {
					s.fine[j]++
				}
			}
			for j := range s.tenths {
				if in(v, float64(j)/10, float64(j+1)/10) {
					s.tenths[j]++
				}
			}
			for j, m := range margins {
				if float64(v) >= ln[m.Edge]-m.Delta && float64(v) <= ln[m.Edge]+m.Delta {
					s.marginal[j]++
				}
			}
		}
	}
	return s
}

// planned are random documents, one that lies on the edges, and the counts of their plans.
func planned(t testing.TB, e *Editor, rng *rand.Rand, n int) (docs []*Document, counts []Counts) {
	var plan Plan
	for i := range n {
		docs = append(docs, randomDocument(rng, i*7))
	}
	if !e.policy.Resamples() {
		docs = append(docs, edgeDocument(e.policy.Bands))
	}
	for _, d := range docs {
		c, err := e.Plan(Epoch{Seed: 5}, d, &plan)
		require.NoError(t, err)
		counts = append(counts, c)
	}
	return docs, counts
}

func TestStatisticsAreWhatTheyAreDefinedAs(t *testing.T) {
	all := policies()
	all["drop"] = func(p *Policy) {
		p.Bands = []Band{{Low: 0, High: 0.001, Action: Drop}, {Low: 0.3, High: 0.3, Closed: true, Action: MaskLoss}, {Low: 0.9999, High: 1, Action: Drop}}
	}
	all["everything"] = func(p *Policy) { p.Bands = []Band{{Low: 0, High: 1, Closed: true, Action: MaskLoss}} }
	for name, change := range all {
		t.Run(name, func(t *testing.T) {
			e := newEditor(t, change)
			docs, counts := planned(t, e, rand.New(rand.NewPCG(4, 9)), 20)
			s := NewStatistics(NewScale(e.policy.Bands))
			for i, d := range docs {
				s.Add(d, counts[i])
			}
			want := defined(e, docs, counts)
			got := s.Counts()
			require.InDelta(t, want.counts.Expected, got.Expected, float64(len(docs))*ExpectedUnit/2)
			want.counts.Expected = got.Expected
			require.Equal(t, want.counts, got)
			require.Equal(t, want.impossible, s.Impossible())
			require.InDelta(t, want.sum, float64(s.LogPUnits())*LogPUnit, float64(got.Scored)*LogPUnit/2+1e-9)
			require.Equal(t, want.fine, s.AppendHistogram(nil))
			require.Equal(t, want.tenths, s.AppendTenths(nil))
			require.Equal(t, want.marginal, append([]int64{}, s.AppendMargins(nil)...))
			total := int64(0)
			for _, n := range want.fine {
				total += n
			}
			require.Equal(t, got.Scored, total, "every scored token is in one interval")
		})
	}
}

func TestTheOrderOfStatisticsDoesNotMatter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := newEditor(t, policies()["low band"])
	scale := NewScale(e.policy.Bands)
	docs, counts := planned(t, e, rng, 40)
	whole := NewStatistics(scale)
	for i, d := range docs {
		whole.Add(d, counts[i])
	}
	for range 50 {
		// Shards of random size in random order, merged in a random tree.
		var parts []*Statistics
		order := rng.Perm(len(docs))
		for len(order) > 0 {
			n := 1 + rng.IntN(len(order))
			part := NewStatistics(scale)
			for _, i := range order[:n] {
				part.Add(docs[i], counts[i])
			}
			parts, order = append(parts, part), order[n:]
		}
		for len(parts) > 1 {
			i := rng.IntN(len(parts) - 1)
			require.NoError(t, parts[i].Merge(parts[i+1]))
			parts = slices.Delete(parts, i+1, i+2)
		}
		require.Equal(t, whole, parts[0])
	}
	whole.Reset()
	require.Equal(t, NewStatistics(scale), whole)
}

func TestStatisticsOfOtherBandsAreNotMerged(t *testing.T) {
	a, b := NewStatistics(NewScale(UpFrom(0.9))), NewStatistics(NewScale(UpFrom(0.5)))
	require.EqualError(t, a.Merge(b), "statistics of policies with other bands cannot be merged")
	require.NoError(t, a.Merge(NewStatistics(NewScale(UpFrom(0.9)))))
}

func TestMarginsAreOfEdgesThatDecide(t *testing.T) {
	for _, c := range []struct {
		bands []Band
		edges []float64
	}{
		{UpFrom(0.99), []float64{0.99}},
		{UpFrom(1), []float64{1}},
		{[]Band{{Low: 0, High: 1, Closed: true}}, nil},
		{[]Band{{Low: 0, High: 1}}, []float64{1}},
		{[]Band{{Low: 0.5, High: 1, Closed: true}, {Low: 0.1, High: 0.5}}, []float64{0.1, 0.5}},
	} {
		var want []Margin
		for _, edge := range c.edges {
			want = append(want, Margin{edge, 1e-3}, Margin{edge, 1e-2})
		}
		require.Equal(t, want, NewScale(c.bands).Margins())
	}
}

func TestStatisticsAllocateNothing(t *testing.T) {
	e := newEditor(t, nil)
	docs, counts := planned(t, e, rand.New(rand.NewPCG(2, 2)), 9)
	s, total := NewStatistics(NewScale(e.policy.Bands)), NewStatistics(NewScale(e.policy.Bands))
	room := make([]int64, 0, 200)
	require.Zero(t, testing.AllocsPerRun(20, func() {
		s.Reset()
		for i, d := range docs {
			s.Add(d, counts[i])
		}
		room = s.AppendMargins(s.AppendTenths(s.AppendHistogram(room[:0])))
		if total.Merge(s) != nil {
			t.Fail()
		}
	}))
}

func BenchmarkStatistics64x512(b *testing.B) {
	docs := benchRows(64, 512, 8)
	e := benchEditor(b, paperPolicy)
	counts := make([]Counts, len(docs))
	var plan Plan
	for r := range docs {
		c, err := e.Plan(Epoch{}, &docs[r], &plan)
		require.NoError(b, err)
		counts[r] = c
	}
	s := NewStatistics(NewScale(paperPolicy.Bands))
	b.ReportAllocs()
	best := time.Duration(math.MaxInt64)
	for b.Loop() {
		start := time.Now()
		for r := range docs {
			s.Add(&docs[r], counts[r])
		}
		best = min(best, time.Since(start))
	}
	reportTokens(b, 64*512, best)
}

func BenchmarkNewScale(b *testing.B) {
	for b.Loop() {
		NewScale(paperPolicy.Bands)
	}
}
