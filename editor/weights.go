package editor

import (
	"math"
	"math/bits"
)

// Stored log probabilities are float16 values held in float32, so there are
// only 31,745 of them and their weights can be looked up.
//
// Of the 32 bits of such a float32, the low 13 are zero. Rotated down by 13,
// what is left is sign, exponent (103 is that of the smallest float16, 142 of
// the largest) and ten bits of mantissa; and what is no float16 value, or is
// not negative, falls outside halfBase..halfBase+halfCount-1.
const (
	halfBase  = 1<<18 + 103<<10
	halfCount = (142 - 103 + 1) << 10
)

// Behind them stand the weights of log probability 0, which has no index of its
// own, and of what is not there.
const (
	oneIndex     = 1<<16 - 2
	nothingIndex = 1<<16 - 1
)

// halfWeights[i] is exp(a / temperature) of the negative float16 value a with
// index i. It is longer than it need be so that a 16-bit index needs no check;
// what cannot be reached by a float16 value is NaN.
type halfWeights [1 << 16]float64

// halfIndex maps the bits of a float32 that holds a negative, finite float16
// value to 0..halfCount-1, and those of any other float32 elsewhere, or to where
// the table has a NaN.
func halfIndex(b uint32) uint32 { return bits.RotateLeft32(b, 32-13) - halfBase }

// halfOf is the inverse of halfIndex.
func halfOf(index uint32) float32 {
	return math.Float32frombits(bits.RotateLeft32(index+halfBase, 13))
}

func newHalfWeights(temperature float64) *halfWeights {
	t := new(halfWeights)
	w := 1.0
	for i := uint32(0); i < halfCount; i++ {
		a := halfOf(i)
		if !exactHalf(a) {
			t[i] = math.NaN()
			continue
		}
		if w != 0 { // once 0, so are all that follow
			w = expNeg(float64(a) / temperature)
		}
		t[i] = w
	}
	for i := halfCount; i < len(t); i++ {
		t[i] = math.NaN()
	}
	t[oneIndex], t[nothingIndex] = 1, 0
	return t
}

// weight is exp(a / temperature) of a float16 value a <= 0, and NaN for
// anything else.
func (t *halfWeights) weight(a float32) float64 {
	if i := halfIndex(math.Float32bits(a)); i < halfCount {
		return t[i]
	}
	return outlierWeight(a)
}

// outlierWeight is weight for what has no index: zero and -Inf, besides what
// is damaged.
func outlierWeight(a float32) float64 {
	switch {
	case a == 0:
		return 1
	case math.IsInf(float64(a), -1):
		return 0
	}
	return math.NaN()
}

// exactHalf says whether a, which is negative, -0 or +0, is a float16 value.
func exactHalf(a float32) bool {
	switch {
	case a > -0x1p-14: // subnormal: a multiple of 2**-24
		return a*0x1p24 == float32(int32(a*0x1p24))
	case a < -65504:
		return math.IsInf(float64(a), -1)
	}
	return math.Float32bits(a)&(1<<13-1) == 0
}
