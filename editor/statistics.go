package editor

import (
	"errors"
	"math"
	"math/bits"
	"slices"
)

// Scale is where statistics divide P: at the edges of the histograms, and around the edges of a policy's bands. It does not
// change and is safe for concurrent use.
type Scale struct {
	margins []Margin
	// limits divide the keys of log probabilities (keyOf) into cells: cell c ends before limits[c]. The first limit is 0,
	// which no key is below; the last one is above all of them.
	limits []uint64
	// guide is the first cell that a key with these leading bits can be in. The right one is a step or two further.
	guide [1 << (32 - guideBits)]uint16
	// The rest are indexes of limits.
	fine, ten []int // of the histograms' edges, by rising P
	near      []marginCells
	least     int // of leastLogP
}

// guideBits are the bits of a key that the guide leaves out: it tells 16 parts of an octave of ln P.
const guideBits = 19

// marginCells are the cells of a margin: those after the limit above, up to the limit through.
type marginCells struct{ above, through int }

// Margin is a distance from the edge of a band: a token so near to it could be on the other side if its log probability were a
// little different.
type Margin struct {
	Edge  float64 // P
	Delta float64 // of ln P
}

// deltas are the distances that tokens are counted at.
var deltas = []float64{1e-3, 1e-2}

// leastLogP is the least log probability that is summed. What is below it, -Inf as a rule, is counted apart: it would decide
// a mean alone, and P is 0 there in float64 too.
const leastLogP = -1024

// Sums are of integers, so that no order matters.
const (
	// LogPUnit is the resolution of sums of ln P, to which each is rounded. 2**31 tokens of leastLogP fit.
	LogPUnit = 1.0 / (1 << 20)
	// ExpectedUnit is the resolution of sums of expected changes, to which those of each document are rounded.
	ExpectedUnit = 1.0 / (1 << 30)
)

// HistogramEdges are the edges of the fine histogram: all multiples of 0.01, and some more near 0 and 1.
func HistogramEdges() []float64 {
	edges := []float64{0.001, 0.995, 0.999, 0.9999}
	for i := range 101 {
		edges = append(edges, float64(i)/100)
	}
	slices.Sort(edges)
	return edges
}

// NewScale makes the scale for a policy's bands. It takes milliseconds, for the logarithms.
func NewScale(bands []Band) *Scale {
	edges := HistogramEdges()
	limits := make([]uint64, len(edges))
	for i, p := range edges {
		limits[i] = bandLimit(Log32Bound(p))
	}
	limits[len(limits)-1] = 0 // P = 1 is in the last interval

	s := &Scale{}
	var around []uint64 // two limits for each margin
	for _, p := range bandEdges(bands) {
		ln := logOf(p)
		for _, delta := range deltas {
			s.margins = append(s.margins, Margin{p, delta})
			above := uint64(0)
			if high := ln + delta; high < 0 {
				above = bandLimit(above32(high))
			}
			around = append(around, above, bandLimit(atLeast32(ln-delta)))
		}
	}

	least := bandLimit(leastLogP)
	s.limits = slices.Concat(limits, around, []uint64{0, least, 1 << 32})
	slices.Sort(s.limits)
	s.limits = slices.Compact(s.limits)
	index := func(limit uint64) int {
		i, _ := slices.BinarySearch(s.limits, limit)
		return i
	}
	for _, limit := range limits {
		s.fine = append(s.fine, index(limit))
	}
	for i := range 11 {
		s.ten = append(s.ten, s.fine[slices.Index(edges, float64(i)/10)])
	}
	for i := range s.margins {
		s.near = append(s.near, marginCells{index(around[2*i]), index(around[2*i+1])})
	}
	s.least = index(least)
	for i := range s.guide {
		s.guide[i] = uint16(index(uint64(i)<<guideBits + 1)) // the first limit above the least such key
	}
	return s
}

// bandEdges are the probabilities on whose two sides something else is done, ascending.
func bandEdges(bands []Band) []float64 {
	var edges []float64
	for _, b := range bands {
		if b.Low > 0 {
			edges = append(edges, b.Low)
		}
		if b.High < 1 || !b.Closed {
			edges = append(edges, b.High)
		}
	}
	slices.Sort(edges)
	return slices.Compact(edges)
}

// Margins are what [Statistics.AppendMargins] counts, by rising edge and delta.
func (s *Scale) Margins() []Margin { return slices.Clone(s.margins) }

// cell is the cell that a log probability is in.
func (s *Scale) cell(logp float32) int {
	key := keyOf(logp)
	c := int(s.guide[key>>guideBits])
	for key >= s.limits[c] {
		c++
	}
	return c
}

// Statistics are counts over documents. Whatever the order in which documents are added and statistics are merged, they come
// out the same, bit for bit.
type Statistics struct {
	scale    *Scale
	counts   Counts // but for Expected
	expected int64  // ExpectedUnits
	logP     int64  // LogPUnits
	below    []int64
	cells    []int64 // of the document that is added
}

// NewStatistics are the statistics of no documents.
func NewStatistics(scale *Scale) *Statistics {
	n := len(scale.limits)
	return &Statistics{scale: scale, below: make([]int64, n), cells: make([]int64, n)}
}

// Add adds a document with the counts that [Editor.Plan] gave for it. It allocates nothing.
func (s *Statistics) Add(d *Document, counts Counts) {
	s.addCounts(counts)
	s.expected += int64(math.RoundToEven(max(0, counts.Expected) / ExpectedUnit)) // rounding can leave a sum just below 0
	scores := &d.Scores
	if scores.Valid == nil {
		s.count(scores.LogP)
	} else {
		for i := 0; i < len(scores.LogP); i += 64 {
			block := scores.LogP[i:min(i+64, len(scores.LogP))]
			valid := validWord(scores.Valid, scores.ValidOffset, len(scores.LogP), i)
			if valid == math.MaxUint64 {
				s.count(block)
				continue
			}
			for w := valid << (64 - len(block)) >> (64 - len(block)); w != 0; w &= w - 1 {
				j := bits.TrailingZeros64(w)
				s.count(block[j : j+1])
			}
		}
	}
	below := int64(0)
	for c, n := range s.cells {
		below += n
		s.below[c] += below
		s.cells[c] = 0
	}
}

func (s *Statistics) addCounts(counts Counts) {
	counts.Expected = 0
	s.counts.Add(counts)
}

// count counts log probabilities.
func (s *Statistics) count(logp []float32) {
	sum := int64(0)
	for _, v := range logp {
		s.cells[s.scale.cell(v)]++
		if v >= leastLogP {
			sum -= int64(-float64(v)/LogPUnit + 0.5) // rounded to the nearest, exactly: v has 24 bits
		}
	}
	s.logP += sum
}

// Merge adds other statistics, which must be of a policy with the same bands.
func (s *Statistics) Merge(o *Statistics) error {
	if s.scale != o.scale && !slices.Equal(s.scale.margins, o.scale.margins) {
		return errors.New("statistics of policies with other bands cannot be merged")
	}
	s.addCounts(o.counts)
	s.expected += o.expected
	s.logP += o.logP
	for c, n := range o.below {
		s.below[c] += n
	}
	return nil
}

// Reset makes them the statistics of no documents.
func (s *Statistics) Reset() {
	clear(s.below)
	*s = Statistics{scale: s.scale, below: s.below, cells: s.cells}
}

// Counts are the counts of all documents.
func (s *Statistics) Counts() Counts {
	c := s.counts
	c.Expected = float64(s.expected) * ExpectedUnit
	return c
}

// ExpectedUnits are the expected changes in [ExpectedUnit].
func (s *Statistics) ExpectedUnits() int64 { return s.expected }

// LogPUnits is the sum of ln P of the scored tokens but the impossible ones, in [LogPUnit].
func (s *Statistics) LogPUnits() int64 { return s.logP }

// Impossible are the scored tokens with ln P < -1024, -Inf as a rule.
func (s *Statistics) Impossible() int64 { return s.counts.Scored - s.below[s.scale.least] }

// AppendHistogram appends the scored tokens in each interval between two of [HistogramEdges]: [low, high), the last one with
// its end. Intervals are decided as bands are.
func (s *Statistics) AppendHistogram(to []int64) []int64 { return s.between(to, s.scale.fine) }

// AppendTenths appends the same for the ten intervals that are 0.1 wide.
func (s *Statistics) AppendTenths(to []int64) []int64 { return s.between(to, s.scale.ten) }

func (s *Statistics) between(to []int64, edges []int) []int64 {
	for i, edge := range edges[1:] {
		to = append(to, s.below[edges[i]]-s.below[edge])
	}
	return to
}

// AppendMargins appends the scored tokens in each of [Scale.Margins]: those with ln edge - delta <= float64(logp) <= ln edge +
// delta, where ln and the two sums are rounded to the nearest float64.
func (s *Statistics) AppendMargins(to []int64) []int64 {
	for _, near := range s.scale.near {
		to = append(to, s.below[near.through]-s.below[near.above])
	}
	return to
}
