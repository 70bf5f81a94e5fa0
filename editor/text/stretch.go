package text

import "toedit/editor/vocab"

// Stretch is a run of tokens that edits of the text touch, to be tokenised anew, with a word that they do not touch on either
// side: whoever tokenises the new text of the stretch by itself sees there that it fits between its neighbours.
type Stretch struct {
	First, End  int  // its tokens
	Left, Right int  // how many of them, at either end, are not touched
	Old, New    Span // its bytes in the text before and after the edits
}

// Stretches appends to dst what the edits at places touch, in ascending order. The row, whose tokens may be another tokenizer's
// than the edits', was aligned.
func (r *Row) Stretches(dst []Stretch, t *vocab.Table, places []Place) []Stretch {
	own, shift := len(dst), 0
	token := 0
	for _, p := range places {
		if !p.Made {
			continue
		}
		for token < len(r.Spans) && r.Spans[token].End <= p.Start {
			token++
		}
		end := token
		for end < len(r.Spans) && r.Spans[end].Start < p.End {
			end++
		}
		// What is written may join on to the token before it.
		touched := r.wordStart(t, token-1)
		s := Stretch{First: r.wordStart(t, touched-1)}
		untouched := r.wordEnd(t, end)
		s.End = r.wordEnd(t, untouched+1)
		s.Left, s.Right = touched-s.First, s.End-untouched
		s.Old = Span{r.edge(s.First, 0), r.edge(s.End, len(r.Text))}
		grown := p.Length - (p.End - p.Start)
		if last := len(dst) - 1; last >= own && s.First < dst[last].End {
			before := &dst[last]
			before.End, before.Right = s.End, s.Right
			before.Old.End = s.Old.End
			before.New.End = s.Old.End + shift + grown
		} else {
			s.New = Span{s.Old.Start + shift, s.Old.End + shift + grown}
			dst = append(dst, s)
		}
		shift += grown
	}
	return dst
}

// edge is where a stretch that begins or ends at a token is cut; the ends of the text are never cut off.
func (r *Row) edge(token, textEnd int) int {
	if token == 0 || token == len(r.Spans) {
		return textEnd
	}
	return r.Spans[token].Start
}

// wordStart is the last token up to the given one that begins a word, or the first token.
func (r *Row) wordStart(t *vocab.Table, token int) int {
	for token = min(token, len(r.IDs)-1); token > 0 && t.Traits(r.IDs[token])&vocab.BeginsWord == 0; {
		token--
	}
	return max(token, 0)
}

// wordEnd is the first token from the given one on that begins a word, or the end of the tokens.
func (r *Row) wordEnd(t *vocab.Table, token int) int {
	for token < len(r.IDs) && t.Traits(r.IDs[token])&vocab.BeginsWord == 0 {
		token++
	}
	return min(token, len(r.IDs))
}
