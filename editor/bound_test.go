package editor

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLogOfIsAccurate(t *testing.T) {
	require.Equal(t, 0.0, logOf(1))
	require.Equal(t, -math.Ln2, logOf(0.5))
	require.Equal(t, -4*math.Ln2, logOf(0.0625))
	require.Equal(t, -0x1p-53, logOf(1-0x1p-53))
	require.InDelta(t, -744.4400719213812, logOf(5e-324), 1e-12)
	rng := rand.New(rand.NewPCG(4, 4))
	for range 200 {
		x := math.Pow(rng.Float64(), 8)
		require.InEpsilon(t, math.Log(x), logOf(x), 2.3e-16, "ln %v", x)
		// And as the inverse of the exponential.
		ln := logOf(x)
		back, _ := bigExp(ln).Float64()
		require.InEpsilon(t, x, back, 2.3e-16*max(1, -ln), "e**ln %v", x)
	}
}

func TestLog32BoundIsTheSmallest(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 300 {
		threshold := []float64{0.99, 0.9, 0.5, 1e-30, 1 - 0x1p-53, 5e-324}[i%6]
		if i >= 6 {
			threshold = 1 - math.Pow(rng.Float64(), 5)
		}
		ln := logOf(threshold)
		v := Log32Bound(threshold)
		require.GreaterOrEqual(t, float64(v), ln)
		require.Less(t, float64(math.Nextafter32(v, float32(math.Inf(-1)))), ln)
	}
	require.Equal(t, float32(0), Log32Bound(1))
}

// below is the band test for every log probability, and catches the rest.
func TestBelow(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	nan := float32(math.NaN())
	for _, threshold := range []float64{1, 0.99, 0.5, 1e-9} {
		bound := Log32Bound(threshold)
		limit := bandLimit(bound)
		check := func(v float32) {
			want := !(v <= 0) || v >= bound
			if want != (below(limit, v) == 1) {
				t.Fatalf("%v (%08x) at threshold %v", v, math.Float32bits(v), threshold)
			}
		}
		for _, v := range []float32{
			0, float32(math.Copysign(0, -1)), bound, math.Nextafter32(bound, 1), math.Nextafter32(bound, -1e9),
			nan, -nan, math.Float32frombits(0x7f800001), math.Float32frombits(0xff800001), math.Float32frombits(0xffffffff),
			math.Float32frombits(0x7fffffff), float32(math.Inf(1)), float32(math.Inf(-1)), 1, 1e-45, -1e-45,
		} {
			check(v)
		}
		for range 100000 {
			check(math.Float32frombits(rng.Uint32()))
		}
	}
}
