package scorer

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor/prior"
)

var bosID = uint32(7)

func reader(context int, rule string, r prior.Reading) *prior.Prior {
	return &prior.Prior{ContextLength: context, BOS: prior.BOS{Rule: rule, ID: &bosID}, Reading: r}
}

// document is n tokens, which begin with the BOS id or not.
func document(n int, begun bool) []uint32 {
	doc := make([]uint32, n)
	if n > 0 && begun {
		doc[0] = bosID
	}
	return doc
}

// Within the context there is one window, which is what a model reads: everything but the last token.
func TestASingleWindow(t *testing.T) {
	for _, windows := range []string{prior.WindowsRolling, prior.WindowsLMEval, prior.WindowsOff} {
		for _, c := range []struct {
			rule  string
			n     int
			begun bool
			want  []window
		}{
			{"always", 0, false, nil},
			{"always", 1, false, []window{{true, 0, 0, 1}}},
			{"always", 1, true, nil},
			{"always", 2, true, []window{{false, 0, 1, 2}}},
			{"always", 5, false, []window{{true, 0, 0, 5}}},
			{"always", 6, true, []window{{false, 0, 1, 6}}},
			{"never", 0, false, nil},
			{"never", 1, false, nil},
			{"never", 6, false, []window{{false, 0, 1, 6}}},
			{"never", 6, true, []window{{false, 0, 1, 6}}},
		} {
			p := reader(5, c.rule, prior.Reading{Windows: windows, MinContext: 2})
			got := windowsOf(p, document(c.n, c.begun))
			assert.Equal(t, c.want, got, "%s %+v", windows, c)
			for _, w := range got {
				assert.LessOrEqual(t, w.positions(), 5)
			}
		}
	}
	assert.Empty(t, windowsOf(&prior.Prior{ContextLength: 5, BOS: prior.BOS{Rule: "never"}}, []uint32{0}), "no BOS id at all")
}

func TestRollingWindowsByHand(t *testing.T) {
	// With a context of 4 the model reads BOS a b c and is asked for a b c d; then BOS c d, for e and so on.
	p := reader(4, "always", prior.Reading{Windows: prior.WindowsRolling, MinContext: 2})
	assert.Equal(t, []window{{true, 0, 0, 4}, {true, 2, 4, 6}, {true, 4, 6, 7}}, windowsOf(p, document(7, false)))
	// Without one it reads a b c d for b c d e; then d e f g for f g h.
	p = reader(4, "never", prior.Reading{Windows: prior.WindowsRolling, MinContext: 2})
	assert.Equal(t, []window{{false, 0, 1, 5}, {false, 3, 5, 8}, {false, 6, 8, 9}}, windowsOf(p, document(9, false)))
	p = reader(4, "never", prior.Reading{Windows: prior.WindowsOff})
	assert.Equal(t, []window{{false, 0, 1, 5}}, windowsOf(p, document(9, false)))
}

// lm-evaluation-harness's windows of 10 tokens for a model of 4 positions, as its loglikelihood_rolling makes them:
// (EOT 0 1 2 -> 0 1 2 3), (3 4 5 6 -> 4 5 6 7), (5 6 7 8 -> 8 9).
func TestLMEvalWindowsByHand(t *testing.T) {
	p := reader(4, "always", prior.Reading{Windows: prior.WindowsLMEval})
	assert.Equal(t, []window{{true, 0, 0, 4}, {false, 3, 4, 8}, {false, 5, 8, 10}}, windowsOf(p, document(10, false)))
}

// Every token is scored once, windows fit the context, and each scored token has its context before it.
func TestWindowsScoreEveryTokenOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		context := 2 + r.IntN(40)
		reading := prior.Reading{Windows: prior.WindowsRolling, MinContext: 1 + r.IntN(context-1)}
		least := reading.MinContext
		if r.IntN(3) == 0 {
			reading, least = prior.Reading{Windows: prior.WindowsLMEval}, 1
		}
		p := reader(context, []string{"always", "never"}[r.IntN(2)], reading)
		doc := document(r.IntN(200), r.IntN(2) == 0)
		next := 0
		if len(doc) > 0 && (p.BOS.Rule == "never" || doc[0] == bosID) {
			next = 1
		}
		for i, w := range windowsOf(p, doc) {
			require.Equal(t, next, w.first, "%+v", w)
			require.Less(t, w.first, w.end)
			require.LessOrEqual(t, w.positions(), context)
			require.GreaterOrEqual(t, w.start, 0)
			require.GreaterOrEqual(t, w.output(w.first), 0)
			require.Equal(t, w.positions(), w.output(w.end))
			if i > 0 {
				require.GreaterOrEqual(t, w.first-w.start, least)
			} else {
				require.Zero(t, w.start)
			}
			next = w.end
		}
		if len(doc) > 1 {
			require.Equal(t, len(doc), next)
		}
	}
}

// A packed row is the windows of its documents, one after the other.
func TestPiecesOfAPackedRow(t *testing.T) {
	p := reader(4, "always", prior.Reading{Windows: prior.WindowsRolling, MinContext: 2})
	row := document(12, true)
	row[9] = bosID
	got := piecesOf(p, 3, row, []int32{2, 9})
	var want []piece
	for _, part := range []struct{ from, to int }{{0, 2}, {2, 9}, {9, 12}} {
		for _, w := range windowsOf(p, row[part.from:part.to]) {
			want = append(want, piece{w, 3, part.from})
		}
	}
	assert.Equal(t, want, got)
	p.Reading.CrossDocuments = true
	assert.Equal(t, piecesOf(p, 3, row, nil), piecesOf(p, 3, row, []int32{2, 9}))
}
