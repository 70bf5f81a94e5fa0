package editor

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// The vector code must find what readEight finds, in whatever stands there: ids that are old, repeated, barred or no ids at all, and
// all that a float32 can be. It may leave a candidate with an id outside the plain range to readEight.
func TestReadEightsIsReadEight(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	for k := 1; k <= 8; k++ {
		for _, stored := range []int{8, 11} {
			e := newEditor(t, func(p *Policy) { p.K, p.ProtectedIDs = k, []int64{5} })
			d := randomDocument(rng, 300)
			s := &d.Scores
			s.K = stored
			n := len(s.TopPos)
			s.TopIDs, s.TopLogP = make([]int32, n*stored), make([]float32, n*stored)
			plan := &Plan{eights: make([]eight, n), common: make([]bool, n)}
			for j, pos := range s.TopPos {
				plan.candidates = append(plan.candidates, int32(j))
				for i := range stored {
					id, logp := int32(rng.IntN(testModelSize)), toHalf(-12*rng.Float64())
					if i == 0 {
						id = int32(d.IDs[pos])
					}
					switch rng.IntN(12 * stored) {
					case 0:
						id = int32(d.IDs[pos])
					case 1:
						id = int32(rng.Uint32())
					case 2, 3:
						logp = float32(math.Copysign(0, float64(rng.IntN(2))-0.5))
					case 4:
						logp = math.Float32frombits(rng.Uint32())
					case 5:
						logp = -math.Float32frombits(0x7f800000 - uint32(rng.IntN(2)))
					case 6: // the ends of the table, and what would have the indexes behind it
						logp = halfOf([]uint32{0, halfCount - 1, halfCount, oneIndex, nothingIndex}[rng.IntN(5)])
					}
					s.TopIDs[j*stored+i], s.TopLogP[j*stored+i] = id, logp
				}
			}
			found := e.readEights(d, plan)
			common, left := 0, 0
			for j := range s.TopPos {
				var want eight
				ids, logp := s.TopIDs[j*stored:], s.TopLogP[j*stored:]
				ok := e.readEight(&want, ids, logp, d.IDs[s.TopPos[j]])
				if plan.common[j] {
					common++
					require.True(t, ok, "ids %v, log probabilities %v", ids[:8], logp[:8])
					require.Equal(t, want, plan.eights[j])
				} else if ok {
					left++
					outside := false
					for _, id := range ids[1:k] {
						outside = outside || !e.plain.has(uint32(id))
					}
					require.True(t, outside || found == 0, "ids %v, log probabilities %v", ids[:8], logp[:8])
				}
			}
			require.Equal(t, common, found)
			require.Greater(t, common+left, n/4)
			require.Less(t, common+left, n)
		}
	}
}
