package scorer

import "toedit/editor/prior"

// window is one pass of the model over a part of a document.
type window struct {
	prefix     bool // the BOS id is put in front
	start      int  // the first of the document's tokens that is read; the last is end-1, which is only a target
	first, end int  // the tokens that it scores: [first, end)
}

// positions is how many positions the model reads.
func (w window) positions() int { return w.end - 1 - w.start + w.before() }

// before is how many inputs stand before the document's tokens.
func (w window) before() int {
	if w.prefix {
		return 1
	}
	return 0
}

// output is the index, among the window's positions, of the one that predicts token t.
func (w window) output(t int) int { return t - w.start + w.before() - 1 }

// windowsOf cuts a document into windows: each token is scored by exactly one of them, but for a first token that has
// nothing before it and, with prior.WindowsOff, for what lies beyond the context. They follow from the document's length
// and from whether it begins with the BOS id alone, so a token's score never depends on anything outside the document.
func windowsOf(p *prior.Prior, doc []uint32) []window {
	n, context := len(doc), p.ContextLength
	always := p.BOS.Rule == "always" && n > 0
	first := window{prefix: always && doc[0] != *p.BOS.ID}
	if !first.prefix {
		first.first = 1 // nothing stands before it
	}
	first.end = min(n, context+1-first.before())
	if first.first >= first.end {
		return nil // empty, or a single token with nothing before it
	}
	windows := []window{first}
	switch p.Reading.Windows {
	case prior.WindowsRolling:
		for done := first.end; done < n; {
			// The BOS id stands in front of every window where the model is used to it.
			w := window{prefix: always, start: done - p.Reading.MinContext, first: done}
			w.end = min(n, w.start+context+1-w.before())
			windows = append(windows, w)
			done = w.end
		}
	case prior.WindowsLMEval:
		for done := first.end; done < n; {
			// One token of context, but for the last window, which is moved back until it is full.
			w := window{first: done, end: min(n, done+context)}
			w.start = w.end - context - 1
			windows = append(windows, w)
			done = w.end
		}
	}
	return windows
}

// piece is a window of one of the request's rows.
type piece struct {
	window
	row  int
	base int // where the window's document begins in the row
}

// piecesOf cuts a row into its documents and those into windows. starts are where documents begin behind the first one,
// ascending.
func piecesOf(p *prior.Prior, row int, ids []uint32, starts []int32) []piece {
	var pieces []piece
	add := func(from, to int) {
		for _, w := range windowsOf(p, ids[from:to]) {
			pieces = append(pieces, piece{w, row, from})
		}
	}
	from := 0
	if !p.Reading.CrossDocuments {
		for _, start := range starts {
			add(from, int(start))
			from = int(start)
		}
	}
	add(from, len(ids))
	return pieces
}

// Window is one pass of the model over a part of a row, for those who make scores by other means than a Scorer: it reads the
// row's tokens [Start, End-1), with the BOS id in front where Prefix says so, and scores [First, End).
type Window struct {
	Start, First, End int
	Prefix            bool
}

// WindowsOf is how a prior reads a row whose documents begin at starts (and at 0).
func WindowsOf(p *prior.Prior, ids []uint32, starts []int32) []Window {
	pieces := piecesOf(p, 0, ids, starts)
	windows := make([]Window, len(pieces))
	for i, w := range pieces {
		windows[i] = Window{Start: w.base + w.start, First: w.base + w.first, End: w.base + w.end, Prefix: w.prefix}
	}
	return windows
}
