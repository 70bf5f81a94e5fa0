package capi

import (
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/stretchr/testify/assert"

	"toedit/editor"
)

// with is eager with changes.
func with(change func(*editor.Policy)) editor.Policy {
	p := eager
	change(&p)
	return p
}

// Roles select tokens by a mask, of padded rows too; a policy that does not ask leaves the column alone.
func TestEditRoles(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	rows := randomRows(newRand(8), 40, 40)
	scores := allScores(newRand(9), rows, fingerprint(t, prior), 4)
	assistant := func(i int) bool { return i%7 > 3 }
	ids, padding, roles := make([][]int64, 2), make([][]int64, 2), make([][]int64, 2)
	for i, row := range rows {
		for j, id := range row {
			ids[i] = append(ids[i], 0, int64(id))
			padding[i] = append(padding[i], 0, 1)
			roles[i] = append(roles[i], 1, map[bool]int64{true: 1}[assistant(j)])
		}
	}
	for _, c := range []struct {
		policy    editor.Policy
		protected func(_, i int) bool
	}{
		{eager, nil},
		{with(func(p *editor.Policy) { p.ProtectAssistant = true }), func(_, i int) bool { return assistant(i) }},
		{with(func(p *editor.Policy) { p.ProtectPrompt = true }), func(_, i int) bool { return !assistant(i) }},
	} {
		e := mustEdit(t, openPolicy(t, prior, c.policy), 3, 4, newForeign(t, structOfColumns(t,
			namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, ids))},
			namedColumn{"scores", scoresArray(scores)},
			namedColumn{"attention_mask", maskArray(t, arrow.PrimitiveTypes.Int8, padding)},
			namedColumn{"assistant_masks", maskArray(t, arrow.PrimitiveTypes.Int64, roles)})))
		_, log, total := reference{rows: rows, scores: scores, protected: c.protected}.edit(t, c.policy, 3, 4)
		assert.Equal(t, log, e.log)
		assert.Equal(t, total, e.counts)
		assert.Positive(t, e.counts.Changes)
		assert.Equal(t, c.protected != nil, e.counts.Protected > 0)
	}
}

func TestEditRolesMustBeThere(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	for field, p := range map[string]editor.Policy{
		"protect_assistant": with(func(p *editor.Policy) { p.ProtectAssistant = true }),
		"protect_prompt":    with(func(p *editor.Policy) { p.ProtectPrompt = true }),
	} {
		for _, ids := range []string{`[[1, 2]]`, `[]`} {
			rows := [][]uint32{{1, 2}}
			scores := scoresArray(allScores(newRand(1), rows, fingerprint(t, prior), 4))
			if ids == `[]` {
				scores = scoresArray(nil)
			}
			_, err := call(t, openPolicy(t, prior, p), 0, 0, newForeign(t, structOfColumns(t,
				namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), ids)}, namedColumn{"scores", scores})))
			requireKind(t, err, Input, "no column assistant_masks, which the policy's "+field+" needs", "return_assistant_tokens_mask=True")
		}
	}
}

// A token that shares a character with a range is protected. Padding, whose offsets mean nothing, is not looked at.
func TestEditCharacterRanges(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	rows := randomRows(newRand(10), 30, 30, 0, 30)
	scores := allScores(newRand(11), rows, print, 4)
	ids, padding, offsets := make([][]int64, 4), make([][]int64, 4), make([][]int64, 4)
	for i, row := range rows {
		ids[i], padding[i], offsets[i] = []int64{0}, []int64{0}, []int64{-5, -9}
		for j, id := range row { // three characters each, every third one none
			ids[i], padding[i] = append(ids[i], int64(id)), append(padding[i], 1)
			start := int64(3 * j)
			end := start + 3
			if j%3 == 2 {
				end = start
			}
			offsets[i] = append(offsets[i], start, end)
		}
	}
	ranges := [][]int64{{0, 1, 2, 3, 12, 13, 20, 20, 24, 30, 1000, 1 << 60}, {}, {4, 5}, {4, 4, 5, 5, 6, 9, 9, 9, 9, 10, 28, 28, 28, 28, 28, 29}}
	within := []map[int]bool{{0: true, 4: true, 9: true}, {}, {}, {3: true, 9: true}}
	// Token 8 of row 0 is [24, 24), as is token 2 of row 3 [6, 6): no character.
	for _, element := range []arrow.DataType{i32, i64} {
		if element == i32 {
			ranges[0][11] = 2000
		}
		for _, listed := range []func(arrow.DataType) arrow.DataType{func(e arrow.DataType) arrow.DataType { return arrow.ListOf(e) }, func(e arrow.DataType) arrow.DataType { return arrow.LargeListOf(e) }} {
			e := mustEdit(t, handle, 5, 6, newForeign(t, structOfColumns(t,
				namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, ids))},
				namedColumn{"scores", scoresArray(scores)},
				namedColumn{"attention_mask", maskArray(t, arrow.PrimitiveTypes.Int8, padding)},
				namedColumn{"protected_ranges", fromJSON(t, listed(element), asJSON(t, ranges))},
				namedColumn{"offset_mapping", fromJSON(t, listed(element), asJSON(t, offsets))})))
			_, log, total := reference{rows: rows, scores: scores, protected: func(row, i int) bool { return within[row][i] }}.edit(t, eager, 5, 6)
			assert.Equal(t, log, e.log)
			assert.Equal(t, total, e.counts)
			assert.Positive(t, e.counts.Changes)
			assert.Positive(t, e.counts.Protected)
		}
	}
}

// What is wrong with ranges and offsets is said with its row and value.
func TestEditCharacterRangesErrors(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	rows := [][]uint32{{1, 2}, {3, 4}}
	good := `[[0, 2, 2, 4], [0, 1, 1, 2]]`
	for _, c := range []struct {
		ranges, offsets string
		parts           []string
	}{
		{`[[], [0, 1, -1, 4]]`, good, []string{"row 1: protected_ranges[1] is [-1, 4)", "counted from 0"}},
		{`[[3, 2], []]`, good, []string{"row 0: protected_ranges[0] is [3, 2)", "must not end before it begins"}},
		{`[[], [5, 8, 1, 2]]`, good, []string{"row 1: protected_ranges[1] is [1, 2), but the one before it ends at 8", "ascend"}},
		{`[[], [1, 3, 2, 4]]`, good, []string{"row 1: protected_ranges[1] is [2, 4), but the one before it ends at 3", "not overlap"}},
		{`[[], [1]]`, good, []string{"row 1: protected_ranges has 1 numbers"}},
		{`[null, []]`, good, []string{"row 0: protected_ranges is null"}},
		{`[[], [1, null]]`, good, []string{"row 1: protected_ranges[1] is null"}},
		{`[[], []]`, `[[0, 2, 2, 4], [0, 1]]`, []string{"row 1: offset_mapping has 2 numbers, but input_ids has 2 tokens"}},
		{`[[], []]`, `[[0, 2, 4, 3], [0, 1, 1, 2]]`, []string{"row 0: offset_mapping[1] is [4, 3)"}},
		{`[[], []]`, `[[-1, 2, 4, 3], [0, 1, 1, 2]]`, []string{"row 0: offset_mapping[0] is [-1, 2)"}},
		{`[[], []]`, ``, []string{"protected_ranges, but no column offset_mapping", "return_offsets_mapping=True"}},
	} {
		columns := []namedColumn{
			{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
			{"scores", scoresArray(allScores(newRand(1), rows, print, 4))},
			{"protected_ranges", fromJSON(t, arrow.ListOf(i64), c.ranges)},
		}
		if c.offsets != "" {
			columns = append(columns, namedColumn{"offset_mapping", fromJSON(t, arrow.ListOf(i64), c.offsets)})
		}
		_, err := call(t, handle, 0, 0, newForeign(t, structOfColumns(t, columns...)))
		requireKind(t, err, Input, c.parts...)
	}
}

// Masks that are not as long as their ids are refused, whether the policy asks for them or not.
func TestMasksMustFit(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	rows := [][]uint32{{1, 2}, {3, 4}}
	for _, name := range []string{"attention_mask", "protected_mask", "special_tokens_mask", "assistant_masks"} {
		_, err := call(t, handle, 0, 0, newForeign(t, structOfColumns(t,
			namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
			namedColumn{"scores", scoresArray(allScores(newRand(1), rows, print, 4))},
			namedColumn{name, fromJSON(t, arrow.ListOf(i64), `[[1, 1], [1, 1, 0]]`)})))
		requireKind(t, err, Input, "row 1: "+name+" has 3 values, but input_ids has 2")
	}
}
