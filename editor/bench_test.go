package editor

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// benchRows makes rows as a strong prior scores them: 14 % of the tokens in
// the band, the top-k stored for 27 % (P >= 0.9), the original most probable.
func benchRows(rows, length, k int) []Document {
	rng := rand.New(rand.NewPCG(1, 2))
	const vocabulary = 50000
	docs := make([]Document, rows)
	for r := range docs {
		d := &docs[r]
		d.IDs = make([]uint32, length)
		for i := range d.IDs {
			d.IDs[i] = uint32(1 + rng.IntN(vocabulary-1))
		}
		d.Hash = hashIDs(d.IDs)
		d.Key = d.Hash
		s := &d.Scores
		s.K, s.IDsHash = k, d.Hash.Lo
		s.LogP = make([]float32, length)
		s.Valid = make([]byte, (length+7)/8)
		for i := range s.Valid {
			s.Valid[i] = 0xff
		}
		s.Valid[0] = 0xfe // the first token is not scored
		s.NullCount = 1
		for i := 1; i < length; i++ {
			p := 0.0
			switch u := rng.Float64(); {
			case u < 0.14:
				p = 0.99 + 0.01*rng.Float64()
			case u < 0.27:
				p = 0.9 + 0.09*rng.Float64()
			default:
				p = 0.9 * rng.Float64()
			}
			s.LogP[i] = float32(math.Log(p))
			if p < 0.9 {
				continue
			}
			s.TopPos = append(s.TopPos, int32(i))
			left := 1 - p
			for j := range k {
				id, q := int32(d.IDs[i]), p
				if j > 0 {
					id = int32(1 + rng.IntN(vocabulary-1))
					q = left * 0.4
					left -= q
				}
				s.TopIDs = append(s.TopIDs, id)
				s.TopLogP = append(s.TopLogP, toHalf(math.Log(q)))
			}
		}
	}
	return docs
}

func benchEditor(tb testing.TB, p Policy) *Editor {
	tb.Helper()
	e, err := New(p, Vocabulary{ModelSize: 50304, TokenizerSize: 50257, Special: []uint32{0, 50256}})
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// reportTokens reports the mean and, since machines are shared, the best
// iteration.
func reportTokens(b *testing.B, tokens int, best time.Duration) {
	b.ReportMetric(float64(b.N)*float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
	b.ReportMetric(float64(tokens)/best.Seconds(), "best-tokens/s")
}

func benchPlan(b *testing.B, docs []Document, p Policy) {
	e := benchEditor(b, p)
	var plan Plan
	tokens := 0
	for r := range docs {
		tokens += len(docs[r].IDs)
	}
	b.ReportAllocs()
	epoch := uint32(0)
	best := time.Duration(math.MaxInt64)
	for b.Loop() {
		start := time.Now()
		var counts Counts
		for r := range docs {
			c, err := e.Plan(Epoch{Seed: 1, Epoch: epoch}, &docs[r], &plan)
			if err != nil {
				b.Fatal(err)
			}
			counts.Add(c)
		}
		epoch++
		best = min(best, time.Since(start))
	}
	reportTokens(b, tokens, best)
}

var paperPolicy = PaperPolicy()

func BenchmarkPlan64x512(b *testing.B) {
	docs := benchRows(64, 512, 8)
	for _, c := range []struct {
		name   string
		change func(*Policy)
	}{
		{"paper", func(*Policy) {}},
		{"exclude", func(p *Policy) { p.ExcludeOriginal = true }},
		{"hot", func(p *Policy) { p.Temperature = 1.5 }},
		{"k 5", func(p *Policy) { p.K = 5 }},
		{"nucleus", func(p *Policy) { p.TopP = 0.999 }},
		{"hot nucleus", func(p *Policy) { p.TopP, p.Temperature = 0.95, 1.5 }},
		{"cold nucleus", func(p *Policy) { p.TopP, p.Temperature = 0.999, 0.7 }},
		{"rejection", func(p *Policy) { p.RejectionTries = 8 }},
		{"hot rejection", func(p *Policy) { p.RejectionTries, p.Temperature = 8, 1.5 }},
		{"half", func(p *Policy) { p.EditProbability = 0.5 }},
		{"at most 5 %", func(p *Policy) { p.MaxEditRate = 0.05 }},
		{"mask", func(p *Policy) { p.Bands = []Band{{Low: 0.99, High: 1, Closed: true, Action: MaskLoss}} }},
	} {
		policy := PaperPolicy()
		c.change(&policy)
		b.Run(c.name, func(b *testing.B) { benchPlan(b, docs, policy) })
	}
	b.Run("k 64", func(b *testing.B) {
		p := paperPolicy
		p.K = 64
		benchPlan(b, benchRows(64, 512, 64), p)
	})
}

func BenchmarkPlan4M(b *testing.B) {
	benchPlan(b, benchRows(8192, 512, 8), paperPolicy)
}

// BenchmarkPlanApply64x512 is what an edited batch costs without Arrow: plan,
// copy the ids, apply.
func BenchmarkPlanApply64x512(b *testing.B) {
	docs := benchRows(64, 512, 8)
	e := benchEditor(b, paperPolicy)
	ids := make([]int64, 64*512)
	for r := range docs {
		for i, id := range docs[r].IDs {
			ids[r*512+i] = int64(id)
		}
	}
	out := make([]int64, len(ids))
	var plan Plan
	b.ReportAllocs()
	epoch := uint32(0)
	best := time.Duration(math.MaxInt64)
	for b.Loop() {
		start := time.Now()
		copy(out, ids)
		for r := range docs {
			if _, err := e.Plan(Epoch{Seed: 1, Epoch: epoch}, &docs[r], &plan); err != nil {
				b.Fatal(err)
			}
			Apply(out[r*512:][:512], plan.Edits)
		}
		epoch++
		best = min(best, time.Since(start))
	}
	reportTokens(b, len(ids), best)
}

func BenchmarkPhilox(b *testing.B) {
	b.Run("block", func(b *testing.B) {
		var sum uint64
		for b.Loop() {
			for i := range uint64(1024) {
				sum += Philox4x64([2]uint64{1, 2}, [4]uint64{0, i, 3, 4})[0]
			}
		}
		b.ReportMetric(float64(b.N)*1024/b.Elapsed().Seconds(), "words/s")
		sink = sum
	})
	b.Run("stream", func(b *testing.B) {
		var s drawStream
		s.reset([2]uint64{1, 2}, Hash128{3, 4}, 0)
		words, positions := make([]uint64, 1024), make([]int32, 1024)
		for i := range positions {
			positions[i] = int32(i)
		}
		best := time.Duration(math.MaxInt64)
		for b.Loop() {
			start := time.Now()
			s.fill(words, positions, positions)
			best = min(best, time.Since(start))
		}
		b.ReportMetric(1024/best.Seconds(), "best-words/s")
	})
}

var sink uint64

func BenchmarkApply(b *testing.B) {
	docs := benchRows(1, 4096, 8)
	p := paperPolicy
	p.ExcludeOriginal = true
	var plan Plan
	if _, err := benchEditor(b, p).Plan(Epoch{}, &docs[0], &plan); err != nil {
		b.Fatal(err)
	}
	ids := make([]int64, 4096)
	for b.Loop() {
		Apply(ids, plan.Edits)
	}
	b.ReportMetric(float64(b.N)*4096/b.Elapsed().Seconds(), "tokens/s")
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		benchEditor(b, paperPolicy)
	}
}
