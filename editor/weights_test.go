package editor

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// halfValue is minus the float16 value with these bits (IEEE 754 binary16).
func halfValue(bits uint16) float32 {
	exponent, mantissa := int(bits>>10), float64(bits&1023)
	switch exponent {
	case 0:
		return float32(-math.Ldexp(mantissa, -24))
	case 31:
		return float32(math.Inf(-1))
	}
	return float32(-math.Ldexp(1024+mantissa, exponent-25))
}

func TestWeightOfEveryHalf(t *testing.T) {
	for _, temperature := range []float64{1, 0.3, 7, 1e-4, 1e-310, 1e300} {
		table := newHalfWeights(temperature)
		for bits := range uint16(0x7c01) {
			a := halfValue(bits)
			require.True(t, exactHalf(a))
			require.Equal(t, a, toHalf(float64(a)))
			require.Equal(t, expNeg(float64(a)/temperature), table.weight(a), "%v at temperature %v", a, temperature)
		}
		require.Equal(t, 1.0, table.weight(0))
	}
}

// Every other float32 is NaN: none near a float16 value, and none at random.
func TestWeightOfAnythingElse(t *testing.T) {
	table := newHalfWeights(1)
	check := func(a float32) {
		w := table.weight(a)
		half := a <= 0 && toHalf(float64(a)) == a
		if half && w != expNeg(float64(a)) || !half && w == w || half != (a <= 0 && exactHalf(a)) {
			t.Fatalf("%v (%08x) weighs %v", a, math.Float32bits(a), w)
		}
	}
	for bits := range uint16(0x7c00) {
		a := halfValue(bits)
		check(-a)
		check(math.Nextafter32(a, 0))
		check(math.Nextafter32(a, float32(math.Inf(-1))))
	}
	rng := rand.New(rand.NewPCG(3, 3))
	for range 1_000_000 {
		check(math.Float32frombits(rng.Uint32()))
		check(math.Float32frombits(rng.Uint32() &^ (1<<13 - 1)))
	}
	check(float32(math.Inf(1)))
	check(float32(math.NaN()))
	check(-65536)
	check(-65535)
}
