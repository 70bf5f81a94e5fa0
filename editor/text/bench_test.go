package text

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func BenchmarkSplice(b *testing.B) {
	table := spelling("the", " the", " a", "ing", ",", " of", "\n", " tokens")
	chance := rand.New(rand.NewPCG(1, 2))
	r := Row{}
	var edits []Edit
	for i := range 512 {
		id := uint32(chance.IntN(table.Size()))
		r.IDs = append(r.IDs, id)
		r.Text += string(table.Bytes(id))
		if chance.IntN(100) == 0 {
			edits = append(edits, Edit{Pos: i, New: 5})
		}
	}
	var dst []byte
	var places []Place
	for b.Loop() {
		require.True(b, r.Align(table))
		dst, places = r.Splice(dst[:0], places[:0], table, edits)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/token")
}
