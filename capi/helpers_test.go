package capi

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/cdata"
	"github.com/apache/arrow/go/v17/arrow/float16"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
	"toedit/editor/prior"
	"toedit/editor/scorer/scorertest"
)

// trackUsage fails the test if the library holds anything at its end that it did not hold before. Call it first.
func trackUsage(t testing.TB) {
	before := GetUsage()
	t.Cleanup(func() { assert.Equal(t, before, GetUsage(), "bytes, exports and handles") })
}

// vocabulary is the bundled prior's. Its id 0 is special.
const vocabulary = 4096

// openBundled opens the bundled prior for the time of a test.
func openBundled(t testing.TB) uint64 { return openFolder(t, scorertest.BundledPrior(t)) }

func openFolder(t testing.TB, folder string) uint64 {
	h, err := OpenPrior(folder, "")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, Close(h)) })
	return h
}

func fingerprint(t testing.TB, priorHandle uint64) string {
	p, err := lookup[*prior.Prior](priorHandle)
	require.NoError(t, err)
	return p.Fingerprint()
}

// eager is a policy that changes every candidate, of which makeScores makes many.
var eager = func() editor.Policy {
	p := editor.PaperPolicy()
	p.Bands, p.K, p.ExcludeOriginal = editor.UpFrom(0.9), 4, true
	return p
}()

func openPolicy(t testing.TB, priorHandle uint64, p editor.Policy) uint64 {
	text, err := json.Marshal(p)
	require.NoError(t, err)
	h, err := OpenEditor(priorHandle, string(text))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, Close(h)) })
	return h
}

// bundledEditor is an editor for the bundled prior, and that prior's fingerprint.
func bundledEditor(t testing.TB, p editor.Policy) (handle uint64, print string) {
	h := openBundled(t)
	return openPolicy(t, h, p), fingerprint(t, h)
}

// fromJSON makes an array, as arrow-go reads JSON.
func fromJSON(t testing.TB, dt arrow.DataType, text string) arrow.Array {
	a, _, err := array.FromJSON(memory.DefaultAllocator, dt, strings.NewReader(text))
	require.NoError(t, err, text)
	return a
}

func asJSON(t testing.TB, v any) string {
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return string(text)
}

// Types of token columns.
var (
	elements   = []arrow.DataType{arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint32}
	listOf     = func(e arrow.DataType, _ int) arrow.DataType { return arrow.ListOf(e) }
	largeOf    = func(e arrow.DataType, _ int) arrow.DataType { return arrow.LargeListOf(e) }
	fixedOf    = func(e arrow.DataType, n int) arrow.DataType { return arrow.FixedSizeListOf(int32(n), e) }
	containers = map[string]func(e arrow.DataType, n int) arrow.DataType{"list": listOf, "large_list": largeOf, "fixed_size_list": fixedOf}
)

var i32, i64 = arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64

// rowScores is a document's scores, as a scores column holds them. NaN in logp is null.
type rowScores struct {
	logp          []float32
	pos, ids      []int32
	topLogp       []float32
	k             int32
	hash          uint64
	prior         string
	valid         bool
	nullPositions bool // topk_pos is null
}

func hashOf(ids []uint32) editor.Hash128 { return editor.HashBytes(littleEndian(ids)) }

// makeScores invents scores in which about half of the tokens have P >= 0.9, with k tokens for each of these.
func makeScores(r *rand.Rand, ids []uint32, print string, k int) rowScores {
	s := rowScores{logp: make([]float32, len(ids)), k: int32(k), hash: hashOf(ids).Lo, prior: print, valid: true}
	for i, id := range ids {
		p := 0.9 + 0.0999*r.Float64()
		if r.IntN(2) == 0 {
			p = 0.9 * r.Float64()
		}
		s.logp[i] = float32(math.Log(p))
		if p < 0.9 {
			continue
		}
		s.pos = append(s.pos, int32(i))
		left := 1 - p
		for j := range k {
			top := int32(id)
			q := p
			if j > 0 {
				top = int32((int(id) + 1 + j*7) % vocabulary)
				q = left * 0.6
				left -= q
			}
			s.ids = append(s.ids, top)
			s.topLogp = append(s.topLogp, float16.New(float32(math.Log(q))).Float32())
		}
	}
	return s
}

var scoresType = arrow.StructOf(
	arrow.Field{Name: "logp", Type: arrow.ListOf(arrow.PrimitiveTypes.Float32), Nullable: true},
	arrow.Field{Name: "topk_pos", Type: arrow.ListOf(i32), Nullable: true},
	arrow.Field{Name: "topk_ids", Type: arrow.ListOf(i32), Nullable: true},
	arrow.Field{Name: "topk_logp", Type: arrow.ListOf(arrow.PrimitiveTypes.Float32), Nullable: true},
	arrow.Field{Name: "k", Type: i32, Nullable: true},
	arrow.Field{Name: "ids_hash", Type: arrow.PrimitiveTypes.Uint64, Nullable: true},
	arrow.Field{Name: "prior", Type: arrow.BinaryTypes.String, Nullable: true},
)

func scoresArray(rows []rowScores) arrow.Array {
	b := array.NewStructBuilder(memory.DefaultAllocator, scoresType)
	list := func(i int) *array.ListBuilder { return b.FieldBuilder(i).(*array.ListBuilder) }
	for _, r := range rows {
		b.Append(r.valid)
		list(0).Append(true)
		for _, v := range r.logp {
			f := list(0).ValueBuilder().(*array.Float32Builder)
			if v != v {
				f.AppendNull()
			} else {
				f.Append(v)
			}
		}
		list(1).Append(!r.nullPositions)
		list(1).ValueBuilder().(*array.Int32Builder).AppendValues(r.pos, nil)
		list(2).Append(true)
		list(2).ValueBuilder().(*array.Int32Builder).AppendValues(r.ids, nil)
		list(3).Append(true)
		list(3).ValueBuilder().(*array.Float32Builder).AppendValues(r.topLogp, nil)
		b.FieldBuilder(4).(*array.Int32Builder).Append(r.k)
		b.FieldBuilder(5).(*array.Uint64Builder).Append(r.hash)
		b.FieldBuilder(6).(*array.StringBuilder).Append(r.prior)
	}
	return b.NewArray()
}

// randomRows makes token rows of the given lengths, without the special id 0.
func randomRows(r *rand.Rand, lengths ...int) [][]uint32 {
	rows := make([][]uint32, len(lengths))
	for i, n := range lengths {
		rows[i] = make([]uint32, n)
		for j := range rows[i] {
			rows[i][j] = 1 + uint32(r.IntN(vocabulary-1))
		}
	}
	return rows
}

func allScores(r *rand.Rand, rows [][]uint32, print string, k int) []rowScores {
	scores := make([]rowScores, len(rows))
	for i := range rows {
		scores[i] = makeScores(r, rows[i], print, k)
	}
	return scores
}

// counts mirrors struct toedit_counts.
type counts struct {
	Rows, EmptyRows, OverlongRows, Tokens, Unscored, Protected, Candidates, Unselected, Truncated, Changes, Dropped, Masked int64
	Expected                                                                                                                float64
}

// change is a row of the log.
type change struct {
	row, position, old, new int64
	logp                    float32
}

// edited is what Edit returned, imported by arrow-go.
type edited struct {
	out    *array.Struct
	log    []change
	counts counts
}

// call runs Edit on a batch, with out-parameters full of garbage, and checks what must hold whatever comes back: the
// inputs were released once each, and after an error nothing is passed out.
func call(t testing.TB, handle, seed uint64, epoch uint32, b *foreignBatch) (*edited, error) {
	t.Helper()
	return callIn(t, handle, editor.Epoch{Seed: seed, Epoch: epoch}, b)
}

// callIn is call for any generation.
func callIn(t testing.TB, handle uint64, ep editor.Epoch, b *foreignBatch) (*edited, error) {
	t.Helper()
	arrays, schemas := cSlice[cArray](t, 2), cSlice[cSchema](t, 2)
	totals := cSlice[counts](t, 1)
	fill(arrays)
	fill(schemas)
	fill(totals)
	wasReleased := [2]bool{b.array.release == 0, b.schema.release == 0}
	err := Edit(handle, ep.Seed, ep.Epoch, ep.Generation, EditArgs{
		Batch: addr(b.array.cArray), Schema: addr(b.schema.cSchema),
		Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
		Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]),
		Counts: addr(&totals[0]),
	})
	for i, n := range []int64{*b.arrayReleases, *b.schemaReleases} {
		want := int64(1)
		if wasReleased[i] {
			want = 0
		}
		require.Equal(t, want, n, "releases of the %s", []string{"array", "schema"}[i])
	}
	require.Zero(t, b.array.release)
	require.Zero(t, b.schema.release)
	b.clobber()
	if err != nil {
		require.Equal(t, []cArray{{}, {}}, arrays, "arrays after %v", err)
		require.Equal(t, []cSchema{{}, {}}, schemas)
		require.Equal(t, counts{}, totals[0])
		return nil, err
	}
	e := &edited{out: importOut(t, &arrays[0], &schemas[0]), counts: totals[0]}
	log := importOut(t, &arrays[1], &schemas[1])
	column := func(i int) []int64 { return log.Field(i).(*array.Int64).Int64Values() }
	for i := range log.Len() {
		e.log = append(e.log, change{column(0)[i], column(1)[i], column(2)[i], column(3)[i], log.Field(4).(*array.Float32).Value(i)})
	}
	return e, nil
}

func mustEdit(t testing.TB, handle, seed uint64, epoch uint32, b *foreignBatch) *edited {
	t.Helper()
	e, err := call(t, handle, seed, epoch, b)
	require.NoError(t, err)
	return e
}

func fill[T any](values []T) {
	var zero T
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), len(values)*int(unsafe.Sizeof(zero)))
	for i := range b {
		b[i] = 0xFF
	}
}

// importOut takes an exported struct array over into arrow-go, until the end of the test.
func importOut(t testing.TB, a *cArray, s *cSchema) *array.Struct {
	t.Helper()
	_, out, err := cdata.ImportCArray(cdata.ArrayFromPtr(uintptr(unsafe.Pointer(a))), cdata.SchemaFromPtr(uintptr(unsafe.Pointer(s))))
	require.NoError(t, err)
	t.Cleanup(out.Release)
	return out.(*array.Struct)
}

// column is a field of a struct array by its name.
func columnOf(t testing.TB, s *array.Struct, name string) arrow.Array {
	t.Helper()
	i, ok := s.DataType().(*arrow.StructType).FieldIdx(name)
	require.True(t, ok, "no column %s", name)
	return s.Field(i)
}

// values reads a list column of integers.
func values(t testing.TB, column arrow.Array) [][]int64 {
	t.Helper()
	lists := column.(array.ListLike)
	rows := make([][]int64, lists.Len())
	for i := range rows {
		start, end := lists.ValueOffsets(i)
		rows[i] = []int64{}
		for j := start; j < end; j++ {
			var v int64
			switch a := lists.ListValues().(type) {
			case *array.Int32:
				v = int64(a.Value(int(j)))
			case *array.Int64:
				v = a.Value(int(j))
			case *array.Uint16:
				v = int64(a.Value(int(j)))
			case *array.Uint32:
				v = int64(a.Value(int(j)))
			default:
				require.Fail(t, fmt.Sprintf("values of type %T", a))
			}
			rows[i] = append(rows[i], v)
		}
	}
	return rows
}

// reference edits rows with package editor alone.
type reference struct {
	rows      [][]uint32
	scores    []rowScores
	key       func(int) editor.Hash128
	offset    func(int) uint64
	protected func(row, i int) bool
}

func (r reference) edit(t testing.TB, p editor.Policy, seed uint64, epoch uint32) (rows [][]int64, log []change, total counts) {
	t.Helper()
	return r.editIn(t, p, editor.Epoch{Seed: seed, Epoch: epoch})
}

// editIn is edit for any generation.
func (r reference) editIn(t testing.TB, p editor.Policy, ep editor.Epoch) (rows [][]int64, log []change, total counts) {
	t.Helper()
	e, err := editor.New(p, editor.Vocabulary{ModelSize: vocabulary, TokenizerSize: vocabulary, Special: []uint32{0}})
	require.NoError(t, err)
	rows = [][]int64{}
	for i, ids := range r.rows {
		s := r.scores[i]
		d := editor.Document{IDs: ids, Hash: hashOf(ids), Key: hashOf(ids), Scores: editor.Scores{
			LogP: s.logp, TopPos: s.pos, TopIDs: s.ids, TopLogP: s.topLogp, K: int(s.k), IDsHash: s.hash}}
		if slices.ContainsFunc(s.logp, func(v float32) bool { return v != v }) {
			d.Scores.Valid = make([]byte, len(ids)/8+1)
			d.Scores.LogP = slices.Clone(s.logp)
			for j, v := range s.logp {
				if v == v {
					d.Scores.Valid[j/8] |= 1 << (j % 8)
				} else {
					d.Scores.NullCount++
					d.Scores.LogP[j] = 0
				}
			}
		}
		if r.key != nil {
			d.Key = r.key(i)
		}
		if r.offset != nil {
			d.Offset = r.offset(i)
		}
		if r.protected != nil {
			d.Protected = make([]bool, len(ids))
			for j := range ids {
				d.Protected[j] = r.protected(i, j)
			}
		}
		var plan editor.Plan
		c, err := e.Plan(ep, &d, &plan)
		require.NoError(t, err)
		row := slices.Clone(ids)
		editor.Apply(row, plan.Edits)
		wide := []int64{}
		for _, id := range row {
			wide = append(wide, int64(id))
		}
		rows = append(rows, wide)
		for _, x := range plan.Edits {
			log = append(log, change{int64(i), int64(d.Offset) + int64(x.Pos), int64(x.Old), int64(x.New), x.LogP})
		}
		total.Rows++
		if len(ids) == 0 {
			total.EmptyRows++
		}
		total.Tokens += c.Tokens
		total.Unscored += c.Unscored
		total.Protected += c.Protected
		total.Candidates += c.Candidates
		total.Changes += c.Changes
		total.Expected += c.Expected
	}
	return rows, log, total
}

// requireKind checks an error's kind and that its message holds every part.
func requireKind(t testing.TB, err error, kind Kind, parts ...string) {
	t.Helper()
	var known *Error
	require.ErrorAs(t, err, &known)
	require.Equal(t, kind.String(), known.Kind.String(), "%v", err)
	for _, part := range parts {
		require.Contains(t, err.Error(), part)
	}
	require.True(t, strings.HasPrefix(err.Error(), kind.String()+": "))
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
