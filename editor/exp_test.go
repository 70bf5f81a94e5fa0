package editor

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// bigExp is e**x to about 180 bits: the Taylor series of x / 2**16, squared
// sixteen times.
func bigExp(x float64) *big.Float {
	const precision = 200
	y := new(big.Float).SetPrec(precision).SetFloat64(math.Ldexp(x, -16))
	sum := big.NewFloat(1).SetPrec(precision)
	term := big.NewFloat(1).SetPrec(precision)
	for n := 1; n < 30; n++ {
		term.Mul(term, y)
		term.Quo(term, new(big.Float).SetInt64(int64(n)))
		sum.Add(sum, term)
	}
	for range 16 {
		sum.Mul(sum, sum)
	}
	return sum
}

// ulps is how far got is from want, in units in the last place of want.
func ulps(got float64, want *big.Float) float64 {
	w, _ := want.Float64()
	unit := math.Nextafter(w, math.Inf(1)) - w
	diff, _ := new(big.Float).Sub(new(big.Float).SetPrec(200).SetFloat64(got), want).Float64()
	return math.Abs(diff) / unit
}

func TestExpIsAccurate(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	worst := 0.0
	for i := range 20000 {
		x := -math.Pow(10, 5*rng.Float64()-2.2) // to 630
		if i%2 == 0 {
			x = -20 * rng.Float64()
		}
		got := expNeg(x)
		worst = max(worst, ulps(got, bigExp(x)))
		require.InEpsilon(t, math.Exp(x), got, 3e-16, "exp(%v)", x)
	}
	t.Logf("worst error: %.3f units in the last place", worst)
	require.Less(t, worst, 0.9)
}

// The vector code must give the bits of expNeg, in any number of values, at both ends of its range and beyond.
func TestExpOfManyIsExp(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for n := range 20000 {
		x := make([]float64, n%9)
		lowest := 0.0
		for i := range x {
			switch rng.IntN(8) {
			case 0:
				x[i] = -rng.Float64() * 0x1p-30
			case 1:
				x[i] = -700 * rng.Float64()
			case 2:
				x[i] = []float64{0, math.Copysign(0, -1), -5e-324, math.Nextafter(-700, 0)}[rng.IntN(4)]
			default:
				x[i] = math.Log(rng.Float64())
			}
			if n%100 == 0 {
				x[i] *= float64(int(1) << rng.IntN(20))
			}
			lowest = min(lowest, x[i])
		}
		want := make([]uint64, len(x))
		for i, v := range x {
			want[i] = math.Float64bits(expNeg(v))
		}
		got := slices.Clone(x)
		expNegAll(got, lowest)
		for i, v := range got {
			require.Equal(t, want[i], math.Float64bits(v), "exp(%v)", x[i])
		}
	}
}

func TestExpAtTheEdges(t *testing.T) {
	require.Equal(t, 1.0, expNeg(0))
	require.Equal(t, 1.0, expNeg(math.Copysign(0, -1)))
	require.Equal(t, 0.0, expNeg(math.Inf(-1)))
	require.Equal(t, 0.0, expNeg(-746))
	require.Equal(t, 0.0, expNeg(-1e300))
	require.True(t, math.IsNaN(expNeg(math.NaN())))
	require.Equal(t, 1.0, expNeg(-5e-324))
	require.Equal(t, math.SmallestNonzeroFloat64, expNeg(-745))
	for x := -745.0; x < -690; x += 0.37 { // into the subnormal numbers
		require.InDelta(t, math.Exp(x), expNeg(x), math.Exp(x)*1e-15+5e-324, "exp(%v)", x)
	}
}

// Every bit of every weight at temperatures 1 and 1.5 is pinned: another
// architecture or compiler must give the same.
func TestWeightsAreTheSameBitsEverywhere(t *testing.T) {
	hash := func(temperature float64) Hash128 {
		var b []byte
		table := newHalfWeights(temperature)
		for h := range 0x7c00 {
			bits := math.Float64bits(table.weight(halfValue(uint16(h))))
			for range 8 {
				b = append(b, byte(bits))
				bits >>= 8
			}
		}
		return HashBytes(b)
	}
	require.Equal(t, Hash128{Lo: 0xaa1b320030861c71, Hi: 0xb09276c6b5d7308b}, hash(1))
	require.Equal(t, Hash128{Lo: 0xad7dafd16bf745d2, Hi: 0xd7159e51c03d67e1}, hash(1.5))
}
