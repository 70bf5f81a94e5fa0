package capi

import (
	"errors"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"

	"toedit/editor"
)

// columnCopy is a list column on its way out: a copy of one that came in, into which edits are written.
type columnCopy interface {
	fill(row int) // copies a row, before anything is set in it
	set(row, at int, value int64)
	remove(places []place)
	column(name string, t arrow.DataType) *column // hands the memory over
	free()                                        // or gives it up
}

// copiedList is a columnCopy of element type T.
type copiedList[T tokenID] struct {
	list   *listColumn
	rows   int
	source []T
	first  int // where row 0 begins in the source
	buffer buffer
	values []T
	ends   []int // where each row ends in values; nil: where it does in the source
}

// place is a value of a list column.
type place struct{ row, at int }

// newCopiedList makes room for a copy of so many rows.
func newCopiedList[T tokenID](list *listColumn, rows int, values []T) *copiedList[T] {
	first, _ := list.row(0)
	_, end := list.row(rows - 1)
	c := &copiedList[T]{list: list, rows: rows, source: values, first: first}
	c.buffer, c.values = newBuffer[T](end - first)
	return c
}

func (c *copiedList[T]) fill(row int) {
	start, end := c.list.row(row)
	copy(c.values[start-c.first:], c.source[start:end])
}

func (c *copiedList[T]) set(row, at int, value int64) {
	start, _ := c.list.row(row)
	c.values[start-c.first+at] = T(value)
}

// row is the values of a row.
func (c *copiedList[T]) row(i int) []T {
	start, end := c.list.row(i)
	return c.values[start-c.first : end-c.first]
}

// remove takes values out, which are given in ascending order. Nothing may be set afterwards.
func (c *copiedList[T]) remove(places []place) {
	if len(places) == 0 {
		return
	}
	c.ends = make([]int, c.rows)
	to := 0
	for row := range c.rows {
		start, end := c.list.row(row)
		from := start
		for ; len(places) > 0 && places[0].row == row; places = places[1:] {
			gone := start + places[0].at
			to += copy(c.values[to:], c.values[from-c.first:gone-c.first])
			from = gone + 1
		}
		to += copy(c.values[to:], c.values[from-c.first:end-c.first])
		c.ends[row] = to
	}
	c.values = c.values[:to]
}

// end is where a row ends in the values.
func (c *copiedList[T]) end(row int) int {
	if c.ends != nil {
		return c.ends[row]
	}
	_, end := c.list.row(row)
	return end - c.first
}

func (c *copiedList[T]) free() { c.buffer.free() }

func (c *copiedList[T]) column(name string, t arrow.DataType) *column {
	var offsets buffer
	switch t.ID() {
	case arrow.LIST:
		offsets = newOffsets[int32](c.rows, c.end)
	case arrow.LARGE_LIST:
		offsets = newOffsets[int64](c.rows, c.end)
	}
	list := t.(arrow.ListLikeType)
	return listColumnOf(name, list, c.rows, offsets, valueColumn("", list.Elem(), len(c.values), c.buffer))
}

// newOffsets makes offsets that begin at 0, as the copied values do.
func newOffsets[T int32 | int64](rows int, end func(row int) int) buffer {
	b, offsets := newBuffer[T](rows + 1)
	offsets[0] = 0
	for i := range rows {
		offsets[i+1] = T(end(i))
	}
	return b
}

// keptColumn says which of each row's values are left: their indexes.
func keptColumn(list *listColumn, rows int, removed []place) *column {
	n := 0
	if rows > 0 {
		first, _ := list.row(0)
		_, end := list.row(rows - 1)
		n = end - first - len(removed)
	}
	values, kept := newColumn[int32]("", arrow.PrimitiveTypes.Int32, n)
	ends := make([]int, rows)
	to := 0
	for row := range rows {
		start, end := list.row(row)
		at := 0
		for at <= end-start {
			limit := end - start
			if len(removed) > 0 && removed[0].row == row {
				limit, removed = removed[0].at, removed[1:]
			}
			run := kept[to:][:limit-at]
			for i := range run {
				run[i] = int32(at + i)
			}
			to += len(run)
			at = limit + 1
		}
		ends[row] = to
	}
	offsets := newOffsets[int64](rows, func(row int) int { return ends[row] })
	return listColumnOf("kept", arrow.LargeListOf(arrow.PrimitiveTypes.Int32), rows, offsets, values)
}

// ignored is the label of tokens that no loss is taken of (the ignore_index of PyTorch's cross_entropy).
const ignored = -100

// labelColumn is a labels column. Labels follow the ids: where they are not -100 they must be the row's own tokens.
type labelColumn interface {
	// check refuses labels that are neither -100 nor the document's ids.
	check(row int, d *document) error
	// protect marks the document's tokens whose label is -100.
	protect(row int, d *document, marks []bool)
	ignores(row, at int) bool // whether the label is -100
	copy(rows int) columnCopy
}

// newLabelColumn looks up the labels, whose type was checked. nil where there are none.
func newLabelColumn(b *arrowBatch, ids *listColumn) (labelColumn, error) {
	c, err := b.list("labels")
	if c == nil || err != nil {
		return nil, err
	}
	if err := errors.Join(c.noNullValues(), c.sameLength(ids)); err != nil {
		return nil, err
	}
	if v, ok := c.values.(*array.Int32); ok {
		return &typedLabels[int32]{c, v.Int32Values()}, nil
	}
	return &typedLabels[int64]{c, c.values.(*array.Int64).Int64Values()}, nil
}

func checkLabelType(t arrow.DataType) error {
	list, ok := t.(arrow.ListLikeType)
	if !ok || list.Elem().ID() != arrow.INT32 && list.Elem().ID() != arrow.INT64 {
		return fail(Input, "labels is %s, but must be a list, large_list or fixed_size_list of int32 or int64", t)
	}
	return nil
}

type typedLabels[T int32 | int64] struct {
	*listColumn
	labels []T
}

func (l *typedLabels[T]) ignores(row, at int) bool {
	start, _ := l.row(row)
	return int64(l.labels[start+at]) == ignored
}

func (l *typedLabels[T]) protect(row int, d *document, marks []bool) {
	start, _ := l.row(row)
	for j := range marks {
		marks[j] = marks[j] || int64(l.labels[start+int(d.index(int32(j)))]) == ignored
	}
}

func (l *typedLabels[T]) check(row int, d *document) error {
	start, _ := l.row(row)
	for j, id := range d.ids {
		at := int(d.index(int32(j)))
		if label := int64(l.labels[start+at]); label != ignored && label != int64(id) {
			return fail(Input, "row %d: labels[%d] is %d, but input_ids[%d] is %d; labels must be the ids themselves or -100 (edit before labels are shifted)",
				row, at, label, at, id)
		}
	}
	return nil
}

func (l *typedLabels[T]) copy(rows int) columnCopy {
	return newCopiedList(l.listColumn, rows, l.labels)
}

// logBuilder collects the edit log of some rows.
type logBuilder struct {
	edits []editor.Edit
	rows  []loggedRow
}

// loggedRow says which row edits belong to: those up to end that no row before has.
type loggedRow struct {
	row    int
	offset uint64
	end    int
}

// dropped stands in the log for the new id of a token that was taken out.
const dropped = editor.NoID

// reset empties the log and keeps its memory for the next one.
func (l *logBuilder) reset() { l.edits, l.rows = l.edits[:0], l.rows[:0] }

func (l *logBuilder) add(row int, offset uint64, edits []editor.Edit) {
	if len(edits) > 0 {
		l.edits = append(l.edits, edits...)
		l.rows = append(l.rows, loggedRow{row, offset, len(l.edits)})
	}
}

// logColumns makes the edit log, a row for each edit, of logs that follow one another.
func logColumns(threads int, logs ...*logBuilder) *column {
	starts := make([]int, len(logs)+1)
	for p, l := range logs {
		starts[p+1] = starts[p] + len(l.edits)
	}
	n := starts[len(logs)]
	rowColumn, row := newColumn[int64]("row", arrow.PrimitiveTypes.Int64, n)
	positionColumn, position := newColumn[int64]("position", arrow.PrimitiveTypes.Int64, n)
	oldColumn, old := newColumn[int64]("old", arrow.PrimitiveTypes.Int64, n)
	newIDColumn, newID := newColumn[int64]("new", arrow.PrimitiveTypes.Int64, n)
	logpColumn, logp := newColumn[float32]("logp", arrow.PrimitiveTypes.Float32, n)
	bandColumn, band := newColumn[int32]("band", arrow.PrimitiveTypes.Int32, n)
	err := inParallel(threads, len(logs), func(p int) error {
		at, done := starts[p], 0
		for _, r := range logs[p].rows {
			edits := logs[p].edits[done:r.end]
			n := len(edits)
			rows, positions, olds, news := row[at:][:n], position[at:][:n], old[at:][:n], newID[at:][:n]
			logps, bands := logp[at:][:n], band[at:][:n]
			for i := range edits {
				e := &edits[i]
				rows[i], positions[i], olds[i] = int64(r.row), int64(r.offset)+int64(e.Pos), int64(e.Old)
				news[i] = int64(e.New)
				if e.Action == editor.Drop {
					news[i] = dropped
				}
				logps[i], bands[i] = e.LogP, int32(e.Band)
			}
			at, done = at+n, r.end
		}
		return nil
	})
	if err != nil { // a panic in another thread
		panic(err)
	}
	return structOf(n, rowColumn, positionColumn, oldColumn, newIDColumn, logpColumn, bandColumn)
}
