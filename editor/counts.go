package editor

// Counts says what a plan met and did. Candidates and Changes are two numbers:
// most candidates draw the token they already are.
type Counts struct {
	Tokens     int64
	Scored     int64   // tokens with a log probability
	Unscored   int64   // tokens without: null in the scores
	Protected  int64   // tokens in a band that may not be edited
	Candidates int64   // tokens in a band that may
	Unselected int64   // candidates that MaxEditRate or EditProbability left alone
	Truncated  int64   // candidates that stay because too little of the distribution is stored to find the TopP of it
	Changes    int64   // candidates whose id differs after the draw
	Dropped    int64   // candidates taken out
	Masked     int64   // candidates whose label is to be -100
	Expected   float64 // sum over candidates that are drawn of one minus the probability of keeping
}

// Add adds the counts of another document. The order in which documents are
// added decides the last bits of Expected.
func (c *Counts) Add(o Counts) {
	c.Tokens += o.Tokens
	c.Scored += o.Scored
	c.Unscored += o.Unscored
	c.Protected += o.Protected
	c.Candidates += o.Candidates
	c.Unselected += o.Unselected
	c.Truncated += o.Truncated
	c.Changes += o.Changes
	c.Dropped += o.Dropped
	c.Masked += o.Masked
	c.Expected += o.Expected
}
