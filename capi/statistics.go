package capi

import (
	"encoding/json"
	"runtime"

	"github.com/apache/arrow/go/v17/arrow"

	"toedit/editor"
)

// Statistics counts what editing a batch meets and does, without the edited batch. It takes what Edit takes, and fills
// documents with a struct array, a row a document:
//   - an int64 column for each of documentColumns, which are as in the totals,
//   - histogram (fixed_size_list<int64>[10]): scored tokens by P in ten intervals,
//   - margins (large_list<int64>): scored tokens around the edges of the policy's bands, as the totals list them.
//
// The totals are JSON; its fields are those of statistics below.
func Statistics(handle, seed uint64, epoch uint32, batch, schema, documents, documentsSchema Address) (totals string, err error) {
	defer releaseBoth(batch, schema)
	missing := zeroOut(documents, documentsSchema)
	err = guarded(func() error {
		if missing != nil {
			return missing
		}
		e, in, err := importEdit(handle, batch, schema)
		if err != nil {
			return err
		}
		m := newMeasured(e.scale())
		if in.rows > 0 {
			ep := editor.Epoch{Seed: seed, Epoch: epoch}
			m, err = withTokens(in.ids.values, tokenVisitor[*measured]{
				int64:  func(v []int64) (*measured, error) { return measure(in, e, ep, v) },
				int32:  func(v []int32) (*measured, error) { return measure(in, e, ep, v) },
				uint16: func(v []uint16) (*measured, error) { return measure(in, e, ep, v) },
				uint32: func(v []uint32) (*measured, error) { return measure(in, e, ep, v) },
			})
			if err != nil {
				return err
			}
		}
		text, err := m.totals(e)
		if err != nil {
			return err
		}
		if err := export(m.column(), documents, documentsSchema); err != nil {
			return err
		}
		totals = text
		return nil
	})
	return totals, err
}

// statistics are the totals of many documents. All numbers are integers, so that sums are the same in any order.
type statistics struct {
	Version      int             `json:"version"`
	Prior        string          `json:"prior"`
	Policy       json.RawMessage `json:"policy"`
	Rows         int             `json:"rows"`
	EmptyRows    int             `json:"empty_rows"`
	OverlongRows int             `json:"overlong_rows"`
	Tokens       int64           `json:"tokens"`
	Scored       int64           `json:"scored"`
	Unscored     int64           `json:"unscored"`
	Protected    int64           `json:"protected"`
	Candidates   int64           `json:"candidates"`
	Unselected   int64           `json:"unselected"`
	Truncated    int64           `json:"truncated"`
	Changes      int64           `json:"changes"`
	Dropped      int64           `json:"dropped"`
	Masked       int64           `json:"masked"`
	Impossible   int64           `json:"impossible"`
	Expected     int64           `json:"expected_units"` // of editor.ExpectedUnit
	LogP         int64           `json:"logp_units"`     // of editor.LogPUnit
	Edges        []float64       `json:"edges"`
	Intervals    []int64         `json:"intervals"` // between the edges
	Near         []margin        `json:"near"`
}

type margin struct {
	Edge  float64 `json:"edge"`
	Delta float64 `json:"delta"`
	Count int64   `json:"count"`
}

// measured is what was measured in a part of the rows.
type measured struct {
	scale                 *editor.Scale
	document, total       *editor.Statistics
	rows, empty, overlong int
	// Of documents, one after the other.
	numbers         [len(documentColumns)][]int64
	tenths, margins []int64
}

// documentColumns are the numbers of a document, in the order of numbersOf.
var documentColumns = [...]string{
	"tokens", "scored", "unscored", "protected", "candidates", "unselected", "truncated", "changes", "dropped", "masked",
	"impossible", "expected_units", "logp_units",
}

func numbersOf(s *editor.Statistics) [len(documentColumns)]int64 {
	c := s.Counts()
	return [...]int64{
		c.Tokens, c.Scored, c.Unscored, c.Protected, c.Candidates, c.Unselected, c.Truncated, c.Changes, c.Dropped, c.Masked,
		s.Impossible(), s.ExpectedUnits(), s.LogPUnits(),
	}
}

func newMeasured(scale *editor.Scale) *measured {
	return &measured{
		scale:    scale,
		document: editor.NewStatistics(scale),
		total:    editor.NewStatistics(scale),
	}
}

// measure measures every row.
func measure[T tokenID](in *editInput, e *openEditor, ep editor.Epoch, values []T) (*measured, error) {
	threads, parts := in.share(runtime.GOMAXPROCS(0))
	all := make([]*measured, len(parts)-1)
	err := inParallel(threads, len(all), func(p int) error {
		s := e.scratch.Get().(*scratch)
		defer e.giveBack(s)
		m := newMeasured(e.scale())
		all[p] = m
		for i := parts[p]; i < parts[p+1]; i++ {
			start, end := in.ids.row(i)
			if err := read(&s.doc, i, values[start:end], in.mask, e.vocabulary); err != nil {
				return err
			}
			s.reset()
			if _, err := in.plan(i, e, ep, s); err != nil {
				return err
			}
			if err := m.add(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, behind := range all[1:] {
		if err := all[0].append(behind); err != nil {
			return nil, err
		}
	}
	return all[0], nil
}

// add adds the one row that the scratch has planned.
func (m *measured) add(s *scratch) error {
	counts := s.counts
	counts.Expected = s.expected[0]
	m.document.Reset()
	m.document.Add(&s.edited, counts)
	for i, n := range numbersOf(m.document) {
		m.numbers[i] = append(m.numbers[i], n)
	}
	m.tenths = m.document.AppendTenths(m.tenths)
	m.margins = m.document.AppendMargins(m.margins)
	m.rows++
	m.empty += s.empty
	m.overlong += s.overlong
	return m.total.Merge(m.document)
}

// append takes over what was measured in the part behind.
func (m *measured) append(o *measured) error {
	for i := range m.numbers {
		m.numbers[i] = append(m.numbers[i], o.numbers[i]...)
	}
	m.tenths = append(m.tenths, o.tenths...)
	m.margins = append(m.margins, o.margins...)
	m.rows += o.rows
	m.empty += o.empty
	m.overlong += o.overlong
	return m.total.Merge(o.total)
}

// column is the documents as they go out.
func (m *measured) column() *column {
	i64 := arrow.PrimitiveTypes.Int64
	documents := structOf(m.rows)
	for i, name := range documentColumns {
		documents.children = append(documents.children, copiedColumn(name, i64, m.numbers[i]))
	}
	margins := len(m.scale.Margins())
	offsets := newOffsets[int64](m.rows, func(row int) int { return (row + 1) * margins })
	documents.children = append(documents.children,
		listColumnOf("histogram", arrow.FixedSizeListOf(10, i64), m.rows, buffer{}, copiedColumn("", i64, m.tenths)),
		listColumnOf("margins", arrow.LargeListOf(i64), m.rows, offsets, copiedColumn("", i64, m.margins)),
	)
	return documents
}

// totals are the statistics of all documents, as JSON.
func (m *measured) totals(e *openEditor) (string, error) {
	policy, err := json.Marshal(e.policy)
	if err != nil {
		return "", err
	}
	c := m.total.Counts()
	s := statistics{
		Version: 1, Prior: e.fingerprint, Policy: policy,
		Rows: m.rows, EmptyRows: m.empty, OverlongRows: m.overlong,
		Tokens: c.Tokens, Scored: c.Scored, Unscored: c.Unscored, Protected: c.Protected,
		Candidates: c.Candidates, Unselected: c.Unselected, Truncated: c.Truncated,
		Changes: c.Changes, Dropped: c.Dropped, Masked: c.Masked,
		Impossible: m.total.Impossible(), Expected: m.total.ExpectedUnits(), LogP: m.total.LogPUnits(),
		Edges: editor.HistogramEdges(), Intervals: m.total.AppendHistogram(nil),
		Near: []margin{},
	}
	counts := m.total.AppendMargins(nil)
	for i, around := range m.scale.Margins() {
		s.Near = append(s.Near, margin{around.Edge, around.Delta, counts[i]})
	}
	text, err := json.Marshal(s)
	return string(text), err
}
