package capi

import (
	"sort"

	"toedit/editor"
)

// roleColumn says which tokens are the assistant's.
type roleColumn struct {
	*flagColumn
	assistant bool // these are protected, else the others
}

// newRoleColumn looks up the column. nil where the policy does not ask; where it does, the column must be there.
func newRoleColumn(b *arrowBatch, ids *listColumn, p *editor.Policy) (*roleColumn, error) {
	flags, err := b.flags("assistant_masks", ids)
	if err != nil || !p.ProtectAssistant && !p.ProtectPrompt {
		return nil, err
	}
	if _, ok := b.types["assistant_masks"]; !ok {
		field := "protect_assistant"
		if p.ProtectPrompt {
			field = "protect_prompt"
		}
		return nil, fail(Input, "the batch has no column assistant_masks, which the policy's %s needs; make it with "+
			"tokenizer.apply_chat_template(..., return_dict=True, return_assistant_tokens_mask=True)", field)
	}
	return &roleColumn{flags, p.ProtectAssistant}, nil
}

// protect marks the document's tokens that are the assistant's, or those that are not.
func (c *roleColumn) protect(row int, d *document, marks []bool) {
	base, _ := c.row(row)
	for j := range marks {
		marks[j] = marks[j] || c.at(base+int(d.index(int32(j)))) == c.assistant
	}
}

// characterRanges are stretches of each row's text that are not edited, and the characters that its tokens stand for.
type characterRanges struct {
	ranges, offsets *numberColumn // start and end of each, one behind the other
}

// newCharacterRanges looks up the columns. nil where no ranges are given.
func newCharacterRanges(b *arrowBatch, ids *listColumn) (*characterRanges, error) {
	if _, ok := b.types["protected_ranges"]; !ok {
		return nil, nil
	}
	if _, ok := b.types["offset_mapping"]; !ok {
		return nil, fail(Input, "the batch has protected_ranges, but no column offset_mapping to say which characters its tokens stand for; "+
			"tokenizers make it with return_offsets_mapping=True")
	}
	if b.rows == 0 {
		return nil, nil
	}
	c := new(characterRanges)
	var err error
	if c.ranges, err = b.numbers("protected_ranges"); err != nil {
		return nil, err
	}
	if c.offsets, err = b.numbers("offset_mapping"); err != nil {
		return nil, err
	}
	for i := range b.rows {
		start, end := ids.row(i)
		if from, to := c.offsets.row(i); to-from != 2*(end-start) {
			return nil, fail(Input, "row %d: offset_mapping has %d numbers, but input_ids has %d tokens, with a start and an end each", i, to-from, end-start)
		}
		if from, to := c.ranges.row(i); (to-from)%2 != 0 {
			return nil, fail(Input, "row %d: protected_ranges has %d numbers, but each range has a start and an end", i, to-from)
		}
	}
	return c, nil
}

// pair is the i-th start and end of a row that begins at an index.
func (c *numberColumn) pair(first, i int) (start, end int64) {
	return c.at(first + 2*i), c.at(first + 2*i + 1)
}

// protect marks the document's tokens that share a character with a range.
func (c *characterRanges) protect(row int, d *document, marks []bool) error {
	first, end := c.ranges.row(row)
	n := (end - first) / 2
	last := int64(0)
	for i := range n {
		from, to := c.ranges.pair(first, i)
		switch {
		case from < 0:
			return fail(Input, "row %d: protected_ranges[%d] is [%d, %d); characters are counted from 0", row, i, from, to)
		case to < from:
			return fail(Input, "row %d: protected_ranges[%d] is [%d, %d); a range must not end before it begins", row, i, from, to)
		case from < last:
			return fail(Input, "row %d: protected_ranges[%d] is [%d, %d), but the one before it ends at %d; ranges must ascend and not overlap", row, i, from, to, last)
		}
		last = to
	}
	base, _ := c.offsets.row(row)
	for j := range marks {
		at := int(d.index(int32(j)))
		from, to := c.offsets.pair(base, at)
		if from < 0 || to < from {
			return fail(Input, "row %d: offset_mapping[%d] is [%d, %d); it must be the first character of the token, from 0 on, and the one behind its last", row, at, from, to)
		}
		// The first range that ends behind the token's start; ranges without a character may follow.
		for i := sort.Search(n, func(i int) bool { _, end := c.ranges.pair(first, i); return end > from }); i < n && from < to; i++ {
			start, end := c.ranges.pair(first, i)
			if start >= to {
				break
			}
			if start < end {
				marks[j] = true
				break
			}
		}
	}
	return nil
}
