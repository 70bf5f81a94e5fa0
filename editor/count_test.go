package editor

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// The vector loop and the portable one must agree on everything a float32 can be, at every length and alignment.
func TestCountBelowIsThePortableCount(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	special := []float32{0, float32(math.Copysign(0, -1)), 1, -1, float32(math.Inf(1)), float32(math.Inf(-1)),
		float32(math.NaN()), math.Float32frombits(0xffc00000), math.Float32frombits(0xff800001), math.Float32frombits(1)}
	for _, bound := range []float32{float32(math.Copysign(0, -1)), Log32Bound(0.99), Log32Bound(0.001), Log32Bound(5e-324), float32(math.Inf(-1))} {
		limit := bandLimit(bound)
		values := make([]float32, 200)
		for i := range values {
			switch r.IntN(4) {
			case 0:
				values[i] = special[r.IntN(len(special))]
			case 1:
				values[i] = math.Float32frombits(r.Uint32())
			case 2: // at the bound and beside it
				values[i] = math.Float32frombits(math.Float32bits(bound) + uint32(r.IntN(3)) - 1)
			default:
				values[i] = -r.Float32() * 2
			}
		}
		for from := range 20 {
			for to := from; to <= len(values); to++ {
				want := 0
				for _, v := range values[from:to] {
					want += int(below(limit, v))
				}
				require.Equal(t, want, countBelow(limit, values[from:to]), "bound %v, values %d to %d", bound, from, to)
				require.Equal(t, want, countBelowPortable(limit, values[from:to]))
			}
		}
	}
}
