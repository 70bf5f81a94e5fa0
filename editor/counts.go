package editor

// Counts says what a plan met and did. Candidates and Changes are two numbers:
// most candidates draw the token they already are.
type Counts struct {
	Tokens     int64
	Scored     int64   // tokens with a log probability
	Unscored   int64   // tokens without: null in the scores
	Protected  int64   // tokens in the band that may not be edited
	Candidates int64   // tokens in the band that may
	Changes    int64   // candidates whose id differs after the draw
	Expected   float64 // sum over candidates of one minus the probability of keeping
}

// Add adds the counts of another document. The order in which documents are
// added decides the last bits of Expected.
func (c *Counts) Add(o Counts) {
	c.Tokens += o.Tokens
	c.Scored += o.Scored
	c.Unscored += o.Unscored
	c.Protected += o.Protected
	c.Candidates += o.Candidates
	c.Changes += o.Changes
	c.Expected += o.Expected
}
