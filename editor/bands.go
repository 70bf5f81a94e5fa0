package editor

import (
	"math"
	"slices"
)

// Log probabilities are compared by keys, with one addition and one comparison
// on the bits of a float32.
//
// The bits of negative floats, read as an unsigned integer, grow as the float
// falls. Adding bandBias lets those of NaNs with a sign wrap around to the
// bottom, so that from low to high there are: NaNs with a sign, +0, positive
// numbers, NaNs without, -0, and the negative numbers down to -Inf.
const bandBias = 0x7fffff

// keyOf is the key of a log probability: the smaller the more probable.
func keyOf(logp float32) uint64 { return uint64(math.Float32bits(logp) + bandBias) }

// leastRight is the key of -0. Below it are +0 and what is no log probability.
const leastRight = 1<<31 + bandBias

// keyBand is a band over keys, from start to before end.
type keyBand struct {
	start, end uint64
	index      uint8 // in the policy's bands
	action     Action
}

// newKeyBands turns bands over P into bands over keys, by falling P. A band that reaches P = 1 starts at key 0, so that
// wrong values are in it: one count finds both.
func newKeyBands(bands []Band) []keyBand {
	all := make([]keyBand, len(bands))
	for i, b := range bands {
		k := keyBand{end: bandLimit(Log32Bound(b.Low)), index: uint8(i), action: b.Action}
		// In the band is logp <= ln high, or below it: what is left when the band of all above it is taken away.
		switch {
		case b.High == 1 && b.Closed:
		case b.Closed:
			k.start = bandLimit(above32(logOf(b.High)))
		default:
			k.start = bandLimit(Log32Bound(b.High))
		}
		all[i] = k
	}
	slices.SortFunc(all, func(a, b keyBand) int { return int(int64(a.start) - int64(b.start)) })
	return all
}

// bandLimit is the key after that of bound, which is 0 or negative.
func bandLimit(bound float32) uint64 {
	// The sign: a bound of ln 1 = 0 must let -0 in.
	return uint64(math.Float32bits(bound)|1<<31) + bandBias + 1
}

// keyGap is the keys from start on, so many, that are in no band.
type keyGap struct{ start, length uint64 }

// lacks is 1 where a key is not in the gap, else 0.
func (g keyGap) lacks(key uint64) uint64 {
	return 1 - (((key-g.start)|(g.start+g.length-1-key))>>63 ^ 1)
}

// widestGap is the gap between or below the bands that spans most of P.
func widestGap(bands []Band, keys []keyBand) keyGap {
	var widest keyGap
	span := 0.0
	for i, k := range keys {
		end, high := uint64(1<<32), 0.0
		if i+1 < len(keys) {
			end, high = keys[i+1].start, bands[keys[i+1].index].High
		}
		if low := bands[k.index].Low; low-high > span {
			widest, span = keyGap{k.end, end - k.end}, low-high
		}
	}
	return widest
}

// below is 1 where logp has a key below the limit, else 0.
func below(limit uint64, logp float32) uint64 { return (keyOf(logp) - limit) >> 63 }

// bandOf is the band that a log probability is in; nil if none.
func (e *Editor) bandOf(logp float32) *keyBand {
	key := keyOf(logp)
	for i := range e.bands {
		if b := &e.bands[i]; key < b.end {
			if key < b.start {
				return nil
			}
			return b
		}
	}
	return nil
}
