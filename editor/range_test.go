package editor

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLongestRange(t *testing.T) {
	const x, o = true, false
	for _, c := range []struct {
		barred []bool
		want   idRange
	}{
		{nil, idRange{}},
		{[]bool{x, x}, idRange{}},
		{[]bool{o, o}, idRange{0, 2}},
		{[]bool{x, o, o, x, o, o, o, x}, idRange{4, 3}},
		{[]bool{o, o, o, x, o, o}, idRange{0, 3}},
	} {
		assert.Equal(t, c.want, longestRange(c.barred))
	}
	r := rand.New(rand.NewPCG(9, 9))
	for range 300 {
		barred := make([]bool, r.IntN(60))
		for i := range barred {
			barred[i] = r.IntN(5) == 0
		}
		plain := longestRange(barred)
		for id := range uint32(70) {
			if plain.has(id) {
				require.False(t, barred[id])
			}
		}
		require.False(t, plain.has(1<<31), "a negative id")
	}
}
