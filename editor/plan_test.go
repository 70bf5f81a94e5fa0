package editor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// policies are the policies that properties are checked with.
func policies() map[string]func(*Policy) {
	return map[string]func(*Policy){
		"paper":       nil,
		"exclude":     func(p *Policy) { p.Bands, p.ExcludeOriginal = UpFrom(0.9), true },
		"low band":    func(p *Policy) { p.Bands, p.Temperature = UpFrom(0.3), 1.5 },
		"k 3":         func(p *Policy) { p.Bands, p.K, p.Temperature = UpFrom(0.3), 3, 2 },
		"unprotected": func(p *Policy) { p.Bands, p.Temperature, p.ProtectSpecial = UpFrom(0.5), 3, false },
		"protected": func(p *Policy) {
			p.Bands, p.Temperature, p.ProtectedIDs = UpFrom(0.5), 3, []int64{2, 3, 4, 5, 6, 7, 8, 9}
		},
		"cold":            func(p *Policy) { p.Bands, p.Temperature = UpFrom(0.3), 1e-4 },
		"nucleus":         func(p *Policy) { p.Bands, p.TopP = UpFrom(0.3), 0.95 },
		"nucleus, others": func(p *Policy) { p.Bands, p.TopP, p.ExcludeOriginal = UpFrom(0.3), 0.999, true },
		"nucleus, hot":    func(p *Policy) { p.Bands, p.TopP, p.Temperature = UpFrom(0.3), 0.5, 1.5 },
		"nucleus, cold":   func(p *Policy) { p.Bands, p.TopP, p.Temperature = UpFrom(0.3), 0.99, 0.7 },
		"rejection":       func(p *Policy) { p.Bands, p.RejectionTries, p.Temperature = UpFrom(0.5), 3, 1.5 },
		"rejection, k 2":  func(p *Policy) { p.Bands, p.RejectionTries, p.K = UpFrom(0.5), 1, 2 },
		"rejection, hot nucleus": func(p *Policy) {
			p.Bands, p.RejectionTries, p.TopP, p.Temperature = UpFrom(0.3), 3, 0.6, 1.5
		},
		"rejection in nucleus": func(p *Policy) { p.Bands, p.RejectionTries, p.TopP = UpFrom(0.3), 3, 0.95 },
		"amount": func(p *Policy) {
			p.Bands, p.EditProbability, p.MaxEditRate, p.ExcludeOriginal = UpFrom(0.5), 0.5, 0.1, true
		},
		"random amount": func(p *Policy) { p.MaxEditRate, p.MaxEditOrder, p.ExcludeOriginal = 0.1, OrderRandom, true },
		"bands": func(p *Policy) {
			p.Bands = []Band{{Low: 0.1, High: 0.3, Action: Drop}, {Low: 0.9, High: 0.999, Closed: true}, {Low: 0.9999, High: 1, Action: MaskLoss}}
			p.Temperature = 2
		},
	}
}

// holds is the definition of a band.
func (b Band) holds(logp float32) bool {
	v := float64(logp)
	return v >= logOf(b.Low) && (v < logOf(b.High) || b.Closed && v == logOf(b.High))
}

func inABand(e *Editor, logp float32) bool {
	return slices.ContainsFunc(e.policy.Bands, func(b Band) bool { return b.holds(logp) })
}

// requireSound checks what must hold for any plan.
func requireSound(t *testing.T, e *Editor, d *Document, edits []Edit, counts Counts) {
	t.Helper()
	s := &d.Scores
	want := Counts{Tokens: int64(len(d.IDs)), Expected: counts.Expected, Unselected: counts.Unselected, Truncated: counts.Truncated}
	for _, edit := range edits {
		*[]*int64{&want.Changes, &want.Dropped, &want.Masked}[edit.Action]++
	}
	require.LessOrEqual(t, counts.Unselected+counts.Truncated+counts.Changes+counts.Dropped+counts.Masked, counts.Candidates)
	candidate := make([]bool, len(d.IDs))
	for i, id := range d.IDs {
		switch {
		case !s.valid(i):
			want.Unscored++
		case !inABand(e, s.LogP[i]):
			want.Scored++
		case e.barred[id] || d.Protected != nil && d.Protected[i] || d.Offset+uint64(i) < uint64(e.policy.ProtectFirst):
			want.Scored++
			want.Protected++
		default:
			want.Scored++
			want.Candidates++
			candidate[i] = true
		}
	}
	require.Equal(t, want, counts)
	require.GreaterOrEqual(t, counts.Expected, -1e-15*float64(counts.Candidates))
	require.LessOrEqual(t, counts.Expected, float64(counts.Candidates))
	last := int32(-1)
	for _, edit := range edits {
		require.Greater(t, edit.Pos, last)
		last = edit.Pos
		require.True(t, candidate[edit.Pos], "position %d is edited and is no candidate", edit.Pos)
		require.Equal(t, d.IDs[edit.Pos], edit.Old)
		require.Equal(t, edit.Action, e.policy.Bands[edit.Band].Action)
		require.True(t, e.policy.Bands[edit.Band].holds(edit.LogP))
		if edit.Action != Resample {
			require.Equal(t, edit.Old, edit.New)
			continue
		}
		require.NotEqual(t, edit.Old, edit.New)
		require.Equal(t, s.LogP[edit.Pos], edit.LogP)
		require.False(t, e.barred[edit.New], "protected id %d is drawn", edit.New)
		j, found := slices.BinarySearch(s.TopPos, edit.Pos)
		require.True(t, found)
		require.Contains(t, s.TopIDs[j*s.K:][:e.policy.K], int32(edit.New))
	}
}

func TestPlanIsSound(t *testing.T) {
	for name, change := range policies() {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(7, 7))
			e := newEditor(t, change)
			var plan Plan
			for n := range 20 {
				d := randomDocument(rng, n*9)
				if n%2 == 0 {
					d.Protected = make([]bool, len(d.IDs))
					for i := range d.Protected {
						d.Protected[i] = rng.IntN(4) == 0
					}
				}
				counts, err := e.Plan(Epoch{Seed: 3, Epoch: uint32(n)}, d, &plan)
				require.NoError(t, err)
				requireSound(t, e, d, plan.Edits, counts)

				ids := slices.Clone(d.IDs)
				Apply(ids, plan.Edits)
				changed := 0
				for i := range ids {
					if ids[i] != d.IDs[i] {
						changed++
					}
				}
				require.EqualValues(t, counts.Changes, changed)
			}
		})
	}
}

// The short ways give what the long ways give, to the last bit.
func TestFastPathsEqualSlowOnes(t *testing.T) {
	for name, change := range policies() {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(8, 8))
			e := newEditor(t, change)
			var plan, slow Plan
			fast, ordinary := 0, 0
			for n := range 200 {
				d := randomDocument(rng, 64)
				ep := Epoch{Seed: uint64(n)}
				counts, err := e.Plan(ep, d, &plan)
				require.NoError(t, err)

				want, err := e.planSlowly(ep, d, &slow)
				require.NoError(t, err)
				require.Equal(t, want, counts)
				require.True(t, slices.Equal(slow.Edits, plan.Edits))
				e.listDrawn(&slow)
				slow.Edits = nil

				if !e.simple() {
					ordinary++
				} else if _, ok := e.findCandidates(d, d.Protected, &plan); ok {
					ordinary++
					require.Equal(t, slow.candidates, plan.candidates)
				}
				for _, j := range slow.candidates {
					if e.hasEights(&d.Scores) {
						one := Plan{candidates: []int32{j}, words: []uint64{0}, Edits: make([]Edit, 0, 1)}
						e.listEights(d, &one)
						fast += e.drawEights(d, &one, 0, new(Counts))
					}
				}
			}
			require.Greater(t, ordinary, 20)
			if e.hasEights(&Scores{K: 8}) && e.policy.Temperature > 0.01 {
				require.Greater(t, fast, 500)
			}
		})
	}
}

// chunk is ids i..j-1 of a document with the whole's key.
func chunk(d *Document, i, j int) *Document {
	s := &d.Scores
	from, _ := slices.BinarySearch(s.TopPos, int32(i))
	to, _ := slices.BinarySearch(s.TopPos, int32(j))
	c := &Document{IDs: d.IDs[i:j], Hash: hashIDs(d.IDs[i:j]), Key: d.Key, Offset: d.Offset + uint64(i)}
	c.Scores = Scores{
		LogP: s.LogP[i:j], Valid: s.Valid, ValidOffset: s.ValidOffset + i, NullCount: -1,
		TopIDs: s.TopIDs[from*s.K : to*s.K], TopLogP: s.TopLogP[from*s.K : to*s.K], K: s.K, IDsHash: c.Hash.Lo,
	}
	for _, p := range s.TopPos[from:to] {
		c.Scores.TopPos = append(c.Scores.TopPos, p-int32(i))
	}
	return c
}

func TestChunksGetTheEditsOfTheWhole(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for name, change := range policies() {
		t.Run(name, func(t *testing.T) {
			e := newEditor(t, change)
			if e.policy.MaxEditRate < 1 {
				t.Skip("max_edit_rate is a share of a row")
			}
			for n := range 30 {
				d := randomDocument(rng, 200)
				ep := Epoch{Seed: 5, Epoch: uint32(n), Generation: 2}
				whole, counts := mustPlan(t, e, ep, d)
				var edits []Edit
				var sum Counts
				for i := 0; i < len(d.IDs); {
					j := min(len(d.IDs), i+rng.IntN(60))
					part, c := mustPlan(t, e, ep, chunk(d, i, j))
					for _, edit := range part {
						edit.Pos += int32(i)
						edits = append(edits, edit)
					}
					sum.Add(c)
					i = j
				}
				require.ElementsMatch(t, whole, edits)
				require.InDelta(t, counts.Expected, sum.Expected, 1e-12)
				counts.Expected, sum.Expected = 0, 0
				require.Equal(t, counts, sum)
			}
		})
	}
}

// No state: order, a used Plan and other goroutines make no difference.
func TestPlansDoNotDependOnEachOther(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 10))
	e := newEditor(t, func(p *Policy) { p.Bands, p.Temperature = UpFrom(0.5), 2 })
	docs := make([]*Document, 40)
	edits := make([][]Edit, len(docs))
	counts := make([]Counts, len(docs))
	for i := range docs {
		docs[i] = randomDocument(rng, rng.IntN(300))
		edits[i], counts[i] = mustPlan(t, e, Epoch{Seed: 1}, docs[i])
	}
	var wait sync.WaitGroup
	for w := range 4 {
		order := rand.New(rand.NewPCG(uint64(w), 0)).Perm(len(docs))
		wait.Go(func() {
			var plan Plan
			for _, i := range order {
				c, err := e.Plan(Epoch{Seed: 1}, docs[i], &plan)
				if err != nil || c != counts[i] || !slices.Equal(plan.Edits, edits[i]) {
					t.Errorf("document %d differs", i)
				}
			}
		})
	}
	wait.Wait()
}

// Seed, epoch, generation, key and offset all select other draws.
func TestEverythingThatSelectsDrawsCounts(t *testing.T) {
	d := randomDocument(rand.New(rand.NewPCG(11, 11)), 500)
	e := newEditor(t, func(p *Policy) { p.Bands, p.ExcludeOriginal = UpFrom(0.5), true })
	base, _ := mustPlan(t, e, Epoch{}, d)
	require.Greater(t, len(base), 100)
	for name, ep := range map[string]Epoch{"seed": {Seed: 1}, "epoch": {Epoch: 1}, "generation": {Generation: 1}} {
		other, _ := mustPlan(t, e, ep, d)
		require.NotEqual(t, base, other, name)
	}
	moved, keyed := *d, *d
	moved.Offset++
	keyed.Key = HashInt64(1)
	for _, d := range []*Document{&moved, &keyed} {
		other, _ := mustPlan(t, e, Epoch{}, d)
		require.NotEqual(t, base, other)
	}
}

// onePosition is a document whose second token, id 10, has this top-k.
func onePosition(ids []int32, logp []float32) *Document {
	d := &Document{IDs: []uint32{20, 10}}
	d.Hash = hashIDs(d.IDs)
	d.Key = d.Hash
	d.Scores = Scores{
		LogP: []float32{0, -0.001}, Valid: []byte{0b10}, NullCount: 1,
		TopPos: []int32{1}, TopIDs: ids, TopLogP: logp, K: len(ids), IDsHash: d.Hash.Lo,
	}
	return d
}

// drawsOf counts what the second token becomes in many epochs.
func drawsOf(t *testing.T, e *Editor, d *Document, epochs int) (map[uint32]int, float64) {
	var plan Plan
	drawn := map[uint32]int{}
	expected := 0.0
	for epoch := range epochs {
		counts, err := e.Plan(Epoch{Seed: 12, Epoch: uint32(epoch)}, d, &plan)
		require.NoError(t, err)
		expected = counts.Expected
		id := uint32(10)
		for _, edit := range plan.Edits {
			id = edit.New
		}
		drawn[id]++
	}
	return drawn, expected
}

// Draws have the distribution of the contract (chi-square, 0.9999 quantiles
// of 3 to 7 degrees of freedom).
func TestDrawsFollowTheWeights(t *testing.T) {
	quantile := map[int]float64{3: 21.1, 5: 25.7, 6: 27.9, 7: 29.9}
	ids := []int32{10, 11, 1, 13, 14, 15, 16, 17} // 1 is special
	var logp []float32
	for _, p := range []float64{0.4, 0.2, 0.15, 0.1, 0.05, 0.04, 0.03, 0.02} {
		logp = append(logp, toHalf(math.Log(p)))
	}
	for _, c := range []struct {
		change func(*Policy)
		never  []uint32
	}{
		{func(p *Policy) { p.ProtectSpecial = false }, nil},
		{func(p *Policy) {}, []uint32{1}},
		{func(p *Policy) { p.ExcludeOriginal = true }, []uint32{1, 10}},
		{func(p *Policy) { p.Temperature = 1.7 }, []uint32{1}},
		{func(p *Policy) { p.Temperature, p.K = 0.7, 5 }, []uint32{1, 15, 16, 17}},
	} {
		e := newEditor(t, c.change)
		const epochs = 20000
		drawn, expected := drawsOf(t, e, onePosition(ids, logp), epochs)
		weights, sum := map[uint32]float64{}, 0.0
		for j, id := range ids {
			if !slices.Contains(c.never, uint32(id)) {
				w := math.Exp(float64(logp[j]) / e.policy.Temperature)
				weights[uint32(id)] = w
				sum += w
			}
		}
		square := 0.0
		for id, w := range weights {
			want := epochs * w / sum
			square += (float64(drawn[id]) - want) * (float64(drawn[id]) - want) / want
		}
		require.Less(t, square, quantile[len(weights)-1])
		require.Len(t, drawn, len(weights), "something else was drawn: %v", drawn)
		require.InDelta(t, 1-weights[10]/sum, expected, 1e-15)
	}
}

// Over many epochs the changes are as many as expected (five standard errors).
func TestChangesAreAsExpected(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 13))
	for name, change := range policies() {
		t.Run(name, func(t *testing.T) {
			d := randomDocument(rng, 400)
			e := newEditor(t, change)
			var plan Plan
			const epochs = 2000
			changes, expected := int64(0), 0.0
			for epoch := range uint32(epochs) {
				counts, err := e.Plan(Epoch{Epoch: epoch}, d, &plan)
				require.NoError(t, err)
				changes += counts.Changes
				expected += counts.Expected
			}
			// The variance of a sum of independent changes is below its mean.
			require.InDelta(t, expected, float64(changes), 5*math.Sqrt(expected)+1e-9)
		})
	}
}

// As the temperature goes to 0, the most probable token that may be drawn is.
func TestTemperatureToZero(t *testing.T) {
	ids := []int32{1, 10, 12, 13}
	logp := []float32{-0.5, -0.75, -100, -1000}
	for _, temperature := range []float64{1e-2, 1e-3, 1e-6, 1e-300, 5e-324} {
		for want, change := range map[uint32]func(*Policy){
			1:  func(p *Policy) { p.ProtectSpecial = false },
			10: func(p *Policy) {},
			12: func(p *Policy) { p.ExcludeOriginal = true },
		} {
			e := newEditor(t, func(p *Policy) {
				p.K, p.Temperature = 4, temperature
				change(p)
			})
			drawn, expected := drawsOf(t, e, onePosition(ids, logp), 50)
			require.Equal(t, map[uint32]int{want: 50}, drawn, "temperature %v", temperature)
			if want == 10 {
				require.Equal(t, 0.0, expected)
			} else {
				require.InDelta(t, 1, expected, 1e-9)
			}
		}
	}
}

func TestNothingToDrawFromKeepsTheToken(t *testing.T) {
	inf := float32(math.Inf(-1))
	for _, c := range []struct {
		ids  []int32
		logp []float32
	}{
		{[]int32{10, 1, 99}, []float32{-0x1p-10, -8, -9}}, // all others are barred
		{[]int32{10, 11, 12}, []float32{-0x1p-10, inf, inf}},
		{[]int32{11, 12, 13}, []float32{inf, inf, inf}}, // nothing at all
		{[]int32{10, 10, 10}, []float32{-1, -1, -1}},
	} {
		for _, temperature := range []float64{1, 1e-5} {
			e := newEditor(t, func(p *Policy) { p.K, p.ExcludeOriginal, p.Temperature = 3, true, temperature })
			drawn, expected := drawsOf(t, e, onePosition(c.ids, c.logp), 20)
			require.Equal(t, map[uint32]int{10: 20}, drawn)
			require.Equal(t, 0.0, expected)
		}
	}
}

// Zero is the stored log probability of whatever is nearly certain.
func TestLogProbabilityOfZero(t *testing.T) {
	for _, zero := range []float32{0, float32(math.Copysign(0, -1))} {
		ids := []int32{10, 11, 12, 13, 14, 15, 16, 17}
		logp := []float32{zero, -20, -20, -20, -20, -20, -20, -20}
		e := newEditor(t, nil)
		edits, counts := mustPlan(t, e, Epoch{}, onePosition(ids, logp))
		require.Empty(t, edits)
		require.InDelta(t, 7*math.Exp(-20), counts.Expected, 1e-15)
		// Where it is not the first, too.
		slices.Reverse(ids)
		slices.Reverse(logp)
		_, again := mustPlan(t, e, Epoch{}, onePosition(ids, logp))
		require.InDelta(t, counts.Expected, again.Expected, 1e-15)
	}
}

// An original that is stored twice counts twice, and is excluded twice.
func TestRepeatedOriginal(t *testing.T) {
	ids := []int32{10, 11, 10, 13, 14, 15, 16, 17}
	logp := slices.Repeat([]float32{-2}, 8)
	_, counts := mustPlan(t, newEditor(t, nil), Epoch{}, onePosition(ids, logp))
	require.Equal(t, 0.75, counts.Expected)
	e := newEditor(t, func(p *Policy) { p.ExcludeOriginal = true })
	drawn, _ := drawsOf(t, e, onePosition(ids, logp), 200)
	require.NotContains(t, drawn, uint32(10))
}

func TestThresholdOfOne(t *testing.T) {
	ids, logp := []int32{10, 11}, []float32{0, -20}
	for _, c := range []struct {
		logp       float32
		candidates int64
	}{{0, 1}, {float32(math.Copysign(0, -1)), 1}, {-1e-45, 0}} {
		d := onePosition(ids, logp)
		d.Scores.LogP[1] = c.logp
		_, counts := mustPlan(t, newEditor(t, func(p *Policy) { p.K, p.Bands = 2, UpFrom(1) }), Epoch{}, d)
		require.Equal(t, c.candidates, counts.Candidates)
	}
}

// What a null's slot holds makes no difference, nor does a top-k stored there.
func TestNullsCountForNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(14, 14))
	e := newEditor(t, func(p *Policy) { p.Bands = UpFrom(0.5) })
	nan := float32(math.NaN())
	for range 100 {
		d := randomDocument(rng, 150)
		edits, counts := mustPlan(t, e, Epoch{}, d)
		for _, garbage := range []float32{0, nan, -nan, 1, -1, float32(math.Inf(1))} {
			for i := range d.IDs {
				if !d.Scores.valid(i) {
					d.Scores.LogP[i] = garbage
				}
			}
			again, c := mustPlan(t, e, Epoch{}, d)
			require.Equal(t, counts, c)
			require.Equal(t, edits, again)
		}
		// One more null, at a stored position, takes just its own away.
		j := rng.IntN(len(d.Scores.TopPos))
		pos := d.Scores.TopPos[j]
		bit := d.Scores.ValidOffset + int(pos)
		d.Scores.Valid[bit/8] &^= 1 << (bit % 8)
		again, c := mustPlan(t, e, Epoch{}, d)
		require.Equal(t, counts.Unscored+1, c.Unscored)
		require.Equal(t, slices.DeleteFunc(slices.Clone(edits), func(e Edit) bool { return e.Pos == pos }), again)
	}
}

func TestValidWord(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 15))
	for range 2000 {
		offset, n := rng.IntN(70), 1+rng.IntN(200)
		bitmap := make([]byte, (offset+n+7)/8+rng.IntN(3))
		for i := range bitmap {
			bitmap[i] = byte(rng.Uint32())
		}
		s := Scores{Valid: bitmap, ValidOffset: offset}
		for i := 0; i < n; i += 64 {
			want := uint64(0)
			for b := range 64 {
				if i+b >= n || s.valid(i+b) {
					want |= 1 << b
				}
			}
			require.Equal(t, want, validWord(bitmap, offset, n, i), "offset %d, n %d, i %d", offset, n, i)
		}
	}
}

func TestErrorsNameValueLimitAndWayOut(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	ids := []int32{10, 11, 12, 13, 14, 15, 16, 17}
	logp := []float32{-0x1p-10, -8, -9, -10, -11, -12, -13, -14}
	for _, c := range []struct {
		name     string
		damage   func(d *Document)
		field    string
		messages []string
	}{
		{"cut", func(d *Document) { d.Scores.LogP = d.Scores.LogP[:1] }, "logp", []string{"has 1 values for 2 ids", "score again"}},
		{"other ids", func(d *Document) { d.IDs[0] = 21; d.Hash = hashIDs(d.IDs) }, "ids_hash", []string{fmt.Sprintf("%016x", hashIDs([]uint32{20, 10}).Lo), fmt.Sprintf("%016x", hashIDs([]uint32{21, 10}).Lo), "score these ids again"}},
		{"k too small", func(d *Document) {
			d.Scores.K, d.Scores.TopIDs, d.Scores.TopLogP = 7, d.Scores.TopIDs[:7], d.Scores.TopLogP[:7]
		}, "k", []string{"is 7", "k of 8", "score with k=8"}},
		{"k of nothing", func(d *Document) { d.Scores.K, d.Scores.TopIDs, d.Scores.TopLogP = -8, nil, nil }, "k", []string{"is -8"}},
		{"too few ids", func(d *Document) { d.Scores.TopIDs = d.Scores.TopIDs[:7] }, "topk_ids", []string{"has 7 values for 1 positions of k = 8"}},
		{"too many logp", func(d *Document) { d.Scores.TopLogP = append(d.Scores.TopLogP, -1) }, "topk_logp", []string{"has 9 values for 1 positions of k = 8"}},
		{"mask", func(d *Document) { d.Protected = make([]bool, 3) }, "input_ids", []string{"has 2 ids", "mask has 3 values"}},
		{"bitmap", func(d *Document) { d.Scores.ValidOffset = 7 }, "logp", []string{"bitmap of 1 bytes", "2 values from bit 7"}},
		{"bitmap before", func(d *Document) { d.Scores.ValidOffset = -1 }, "logp", []string{"from bit -1"}},
		{"bitmap far", func(d *Document) { d.Scores.ValidOffset = math.MaxInt }, "logp", []string{"bitmap of 1 bytes"}},
		{"NaN", func(d *Document) { d.Scores.LogP[1] = nan }, "logp", []string{"is NaN at position 1", "0 or below", "score again"}},
		{"NaN with a sign", func(d *Document) { d.Scores.LogP[1] = math.Float32frombits(0xffc00000) }, "logp", []string{"is NaN at position 1"}},
		{"positive", func(d *Document) { d.Scores.LogP[1] = 0.5 }, "logp", []string{"is 0.5 at position 1"}},
		{"infinite", func(d *Document) { d.Scores.LogP[1] = inf }, "logp", []string{"is +Inf at position 1"}},
		{"positive where nothing is stored", func(d *Document) { d.Scores.Valid = nil; d.Scores.LogP[0] = 1e-45 }, "logp", []string{"is 1e-45 at position 0"}},
		{"not stored", func(d *Document) {
			d.Scores.TopPos, d.Scores.TopIDs, d.Scores.TopLogP = nil, nil, nil
		}, "topk_pos", []string{"lacks position 1", "-0.001", "band [0.99, 1]", "score with keep=policy"}},
		{"position outside", func(d *Document) { d.Scores.TopPos[0] = 2 }, "topk_pos", []string{"is 2 at index 0", "0..1"}},
		{"position before", func(d *Document) { d.Scores.TopPos[0] = -1 }, "topk_pos", []string{"is -1 at index 0", "0..1"}},
		{"position twice", func(d *Document) {
			s := &d.Scores
			s.TopPos, s.TopIDs, s.TopLogP = []int32{1, 1}, append(s.TopIDs, s.TopIDs...), append(s.TopLogP, s.TopLogP...)
		}, "topk_pos", []string{"is 1 at index 1, after 1", "must ascend"}},
		{"id outside", func(d *Document) { d.IDs[1] = 100; d.Hash = hashIDs(d.IDs); d.Scores.IDsHash = d.Hash.Lo }, "input_ids", []string{"is 100 at position 1", "ends at 99", "your tokenizer"}},
		{"top id outside", func(d *Document) { d.Scores.TopIDs[7] = 100 }, "topk_ids", []string{"id 100 at position 1", "ends at 99"}},
		{"top id negative", func(d *Document) { d.Scores.TopIDs[3] = -1 }, "topk_ids", []string{"id -1 at position 1", "ends at 99"}},
		{"no half", func(d *Document) { d.Scores.TopLogP[2] = -9.001 }, "topk_logp", []string{"has -9.001 at position 1", "no float16 value", "round them"}},
		{"no half below the smallest", func(d *Document) { d.Scores.TopLogP[0] = -0x1.8p-25 }, "topk_logp", []string{"no float16 value"}},
		{"no half between the smallest", func(d *Document) { d.Scores.TopLogP[0] = -0x1.8p-24 }, "topk_logp", []string{"no float16 value"}},
		{"no half above the largest", func(d *Document) { d.Scores.TopLogP[7] = -65536 }, "topk_logp", []string{"has -65536", "no float16 value"}},
		{"top NaN", func(d *Document) { d.Scores.TopLogP[5] = nan }, "topk_logp", []string{"has NaN at position 1", "0 or below"}},
		{"top positive", func(d *Document) { d.Scores.TopLogP[1] = 1 }, "topk_logp", []string{"has 1 at position 1", "0 or below"}},
		{"top infinite", func(d *Document) { d.Scores.TopLogP[1] = inf }, "topk_logp", []string{"has +Inf at position 1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := onePosition(slices.Clone(ids), slices.Clone(logp))
			e := newEditor(t, func(p *Policy) { p.ExcludeOriginal = true })
			var plan Plan
			_, err := e.Plan(Epoch{}, d, &plan)
			require.NoError(t, err)
			require.Len(t, plan.Edits, 1)

			c.damage(d)
			counts, err := e.Plan(Epoch{}, d, &plan)
			var scoresError *ScoresError
			require.ErrorAs(t, err, &scoresError)
			require.Equal(t, c.field, scoresError.Field)
			for _, message := range c.messages {
				require.ErrorContains(t, err, message)
			}
			require.Equal(t, Counts{}, counts)
			require.Empty(t, plan.Edits)
		})
	}
}

// A protected token in the band needs no stored top-k.
func TestProtectedTokensNeedNoTopK(t *testing.T) {
	d := onePosition(nil, nil)
	d.Scores.TopPos, d.Scores.K = nil, 8
	_, counts := mustPlan(t, newEditor(t, func(p *Policy) { p.ProtectedIDs = []int64{10} }), Epoch{}, d)
	require.Equal(t, Counts{Tokens: 2, Scored: 1, Unscored: 1, Protected: 1}, counts)
	d.Protected = []bool{false, true}
	_, counts = mustPlan(t, newEditor(t, nil), Epoch{}, d)
	require.Equal(t, int64(1), counts.Protected)
}

// Scores of no tokens hold nothing that could be wrong, not even k.
func TestNoTokens(t *testing.T) {
	d := &Document{Hash: hashIDs(nil)}
	d.Scores.IDsHash = d.Hash.Lo
	edits, counts := mustPlan(t, newEditor(t, nil), Epoch{}, d)
	require.Empty(t, edits)
	require.Equal(t, Counts{}, counts)
}

func TestWarmPlanAndApplyAllocateNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 16))
	for name, change := range policies() {
		t.Run(name, func(t *testing.T) {
			e := newEditor(t, change)
			docs := []*Document{randomDocument(rng, 512), randomDocument(rng, 300)}
			ids := make([]int64, 512)
			var plan Plan
			run := func() {
				for _, d := range docs {
					if _, err := e.Plan(Epoch{}, d, &plan); err != nil {
						t.Fatal(err)
					}
					Apply(ids, plan.Edits)
				}
			}
			run()
			require.Zero(t, testing.AllocsPerRun(20, run))
		})
	}
}

func TestApplyToEveryType(t *testing.T) {
	edits := []Edit{{Pos: 1, Old: 2, New: 65535}, {Pos: 3, Old: 4, New: 0}}
	checkApply[int32](t, edits)
	checkApply[int64](t, edits)
	checkApply[uint16](t, edits)
	checkApply[uint32](t, edits)
}

func checkApply[T ~int32 | ~int64 | ~uint16 | ~uint32](t *testing.T, edits []Edit) {
	ids := []T{1, 2, 3, 4}
	Apply(ids, edits)
	require.Equal(t, []T{1, 65535, 3, 0}, ids)
}

func TestCountsAdd(t *testing.T) {
	c := Counts{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	c.Add(Counts{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110})
	require.Equal(t, Counts{11, 22, 33, 44, 55, 66, 77, 88, 99, 110, 121}, c)
}
