package editor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// randomEdits are edits of some of the ids, of every kind, in a log's form.
func randomEdits(rng *rand.Rand, ids []uint32, labels []int64) *LoggedGeneration {
	g := &LoggedGeneration{}
	for i, id := range ids {
		if rng.IntN(3) > 0 {
			continue
		}
		e := LoggedEdit{Pos: int64(i), Old: int64(id), New: int64(id), Action: Action(rng.IntN(3))}
		switch e.Action {
		case Drop:
			e.New = NoID
		case Resample:
			e.New = int64((id + 1 + uint32(rng.IntN(3))) % 5)
		}
		e.Context = labels != nil && labels[i] == ignoredLabel
		if e.Action != Resample || e.New != e.Old {
			g.Edits = append(g.Edits, e)
		}
	}
	if err := g.Seal(ids); err != nil {
		panic(err)
	}
	return g
}

// randomIDs are few different ids, so that neighbours are often equal, and labels that are the ids or -100.
func randomIDs(rng *rand.Rand, n int) (ids []uint32, labels []int64) {
	ids, labels = make([]uint32, n), make([]int64, n)
	for i := range ids {
		ids[i] = uint32(rng.IntN(5))
		labels[i] = int64(ids[i])
		if rng.IntN(4) == 0 {
			labels[i] = ignoredLabel
		}
	}
	return ids, labels
}

func TestRevertTakesBackWhatApplyDoes(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	for range 3000 {
		ids, labels := randomIDs(rng, rng.IntN(12))
		if rng.IntN(3) == 0 {
			labels = nil
		}
		mode := []string{LabelsEdited, LabelsOriginal}[rng.IntN(2)]
		r := NewReplay(ids, labels)
		var generations []*LoggedGeneration
		before := []Replay{*r}
		for range 1 + rng.IntN(4) {
			g := randomEdits(rng, r.IDs, r.Labels)
			require.NoError(t, r.Apply(g, mode))
			generations, before = append(generations, g), append(before, *r)
			if mode == LabelsEdited {
				for i, label := range r.Labels {
					require.Contains(t, []int64{int64(r.IDs[i]), ignoredLabel}, label)
				}
			}
		}
		edited := slices.Clone(r.IDs)
		back := NewReplay(r.IDs, r.Labels)
		for i, g := range slices.Backward(generations) {
			require.NoError(t, back.Revert(g))
			require.Equal(t, before[i].IDs, back.IDs)
			if mode == LabelsEdited {
				require.Equal(t, before[i].Labels, back.Labels)
			}
		}
		require.True(t, slices.Equal(labels, back.Labels), "labels that were kept are so after the last generation")
		again := NewReplay(back.IDs, nil)
		for _, g := range generations {
			require.NoError(t, again.Apply(g, mode))
		}
		require.Equal(t, edited, again.IDs)

		// Every id that is left is where it was taken from, and no other came from there.
		last := int32(-1)
		for i, from := range r.Source {
			require.Greater(t, from, last)
			last = from
			require.True(t, labels == nil || mode == LabelsEdited || r.Labels[i] == ignoredLabel || r.Labels[i] == labels[from])
		}
		require.Len(t, back.Source, len(ids))
	}
}

// logged is what the log of a plan holds.
func logged(t *testing.T, ids []uint32, edits []Edit) *LoggedGeneration {
	t.Helper()
	g := &LoggedGeneration{}
	for _, e := range edits {
		l := LoggedEdit{Pos: int64(e.Pos), Old: int64(e.Old), New: int64(e.New), Action: e.Action}
		if e.Action == Drop {
			l.New = NoID
		}
		g.Edits = append(g.Edits, l)
	}
	require.NoError(t, g.Seal(ids))
	return g
}

func TestEveryPlanCanBeReplayed(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	for name, change := range policies() {
		e := newEditor(t, change)
		for range 20 {
			d := randomDocument(rng, rng.IntN(200))
			edits, counts := mustPlan(t, e, Epoch{Seed: 3}, d)
			g := logged(t, d.IDs, edits)
			r := NewReplay(d.IDs, nil)
			require.NoError(t, r.Apply(g, LabelsEdited), name)
			require.Len(t, r.IDs, len(d.IDs)-int(counts.Dropped))
			if counts.Dropped == 0 {
				ids := slices.Clone(d.IDs)
				Apply(ids, edits)
				require.Equal(t, ids, r.IDs)
			}
			require.NoError(t, r.Revert(g), name)
			require.Equal(t, d.IDs, r.IDs)
		}
	}
}

// damage changes one thing in a generation.
func damage(rng *rand.Rand, g *LoggedGeneration) *LoggedGeneration {
	d := &LoggedGeneration{}
	*d = *g
	d.Edits = slices.Clone(g.Edits)
	other := func() int64 {
		return []int64{-1, 0, 1, 2, 3, 4, math.MinInt64, math.MaxInt64, math.MaxUint32 + 1, int64(rng.Uint64())}[rng.IntN(10)]
	}
	n := len(d.Edits)
	what := rng.IntN(11)
	if n == 0 {
		what = rng.IntN(3)
	}
	switch i := rng.IntN(max(n, 1)); what {
	case 0:
		d.IDsHash ^= 1 << rng.IntN(64)
	case 1:
		d.EditedHash ^= 1 << rng.IntN(64)
	case 2:
		d.EditsHash ^= 1 << rng.IntN(64)
	case 3:
		d.Edits[i].Pos = []int64{other(), int64(rng.IntN(12))}[rng.IntN(2)]
	case 4:
		d.Edits[i].Old = other()
	case 5:
		d.Edits[i].New = other()
	case 6:
		d.Edits[i].Action = Action(rng.IntN(3))
	case 7:
		d.Edits = slices.Delete(d.Edits, i, i+1)
	case 8:
		d.Edits = slices.Insert(d.Edits, i, d.Edits[i])
	case 9:
		d.Edits[i].Context = !d.Edits[i].Context
	default:
		j := rng.IntN(n)
		d.Edits[i], d.Edits[j] = d.Edits[j], d.Edits[i]
	}
	return d
}

func TestDamagedLogsAreRefusedOrDoTheSame(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	refused := 0
	for range 5000 {
		ids, labels := randomIDs(rng, 1+rng.IntN(12))
		g := randomEdits(rng, ids, labels)
		edited := NewReplay(ids, labels)
		require.NoError(t, edited.Apply(g, LabelsEdited))

		damaged := damage(rng, g)
		r := NewReplay(ids, labels)
		if err := r.Apply(damaged, LabelsEdited); err != nil {
			requireLogError(t, err)
			require.Equal(t, ids, r.IDs)
			refused++
		} else {
			require.Equal(t, edited, r)
		}
		back := NewReplay(edited.IDs, edited.Labels)
		if err := back.Revert(damaged); err != nil {
			requireLogError(t, err)
			require.Equal(t, edited.IDs, back.IDs)
		} else {
			require.Equal(t, ids, back.IDs)
			require.Equal(t, labels, back.Labels)
		}
	}
	require.Greater(t, refused, 3000)
}

func requireLogError(t *testing.T, err error) {
	t.Helper()
	var of *LogError
	require.ErrorAs(t, err, &of)
	require.Contains(t, []string{"ids_hash", "edited_hash", "edits_hash", "position", "old", "new"}, of.Field)
}

func TestLogErrorsSayWhatDiffers(t *testing.T) {
	ids := []uint32{7, 8, 9}
	edit := func(pos, before, after int64, a Action) LoggedEdit {
		return LoggedEdit{Pos: pos, Old: before, New: after, Action: a}
	}
	sealed := &LoggedGeneration{Edits: []LoggedEdit{edit(1, 8, 5, Resample), edit(2, 9, NoID, Drop)}}
	require.NoError(t, sealed.Seal(ids))
	with := func(edits ...LoggedEdit) *LoggedGeneration {
		g := *sealed
		g.Edits = edits
		return &g
	}
	apply := func(g *LoggedGeneration, ids ...uint32) error { return NewReplay(ids, nil).Apply(g, LabelsEdited) }
	revert := func(g *LoggedGeneration, ids ...uint32) error { return NewReplay(ids, nil).Revert(g) }
	for _, c := range []struct {
		err  error
		want string
	}{
		{apply(sealed, 7, 5), "these ids have " + fmt.Sprintf("%016x", sealed.EditedHash) + ": they are edited already"},
		{apply(sealed, 7, 6, 9), "(at index 1 stands 6, in the log 8); apply the log to the ids that were edited"},
		{apply(sealed, 7), "(the log has an edit at index 1, but there are 1 ids)"},
		{apply(sealed, 1, 8, 9), fmt.Sprintf("ids_hash is %016x, but these ids have %016x; apply", sealed.IDsHash, hashIDs([]uint32{1, 8, 9}).Lo)},
		{apply(with(edit(1, 8, 5, Resample)), 7, 8, 9), "rows of the log are missing or were changed"},
		{apply(with(edit(-1, 8, 5, Resample)), 7, 8, 9), "position is index -1 in edit 0 of the row"},
		{apply(with(edit(1, 8, 5, Resample), edit(1, 8, 5, Resample)), 7, 8, 9), "position is index 1 in edit 1 of the row"},
		{apply(with(edit(3, 8, 5, Resample)), 7, 8, 9), "position is index 3, but there are 3 ids"},
		{apply(with(edit(1, 7, 5, Resample)), 7, 8, 9), "old is 7 at index 1, but there stands 8"},
		{apply(with(edit(1, -5, 5, Resample)), 7, 8, 9), "old is -5 at index 1, which is no id"},
		{apply(with(edit(1, 8, 8, Resample)), 7, 8, 9), "new is 8 at index 1, where old is 8 and action is resample"},
		{apply(with(edit(1, 8, 5, Drop)), 7, 8, 9), "action is drop"},
		{apply(with(edit(1, 8, 5, MaskLoss)), 7, 8, 9), "action is mask_loss"},
		{apply(with(edit(1, 8, math.MaxUint32+1, Resample)), 7, 8, 9), "new is 4294967296"},
		{revert(sealed, 7, 8, 9), "they are not edited, or are reverted already"},
		{revert(sealed, 7, 6), "before anything else is done to them"},
		{revert(with(edit(1, 8, 5, Resample)), 7, 5), "but without the edits the ids have"},
		{revert(with(edit(1, 8, 6, Resample)), 7, 5), "new is 6 at index 1, but there stands 5"},
		{revert(with(edit(2, 8, 5, Resample)), 7, 5), "position is index 2, but without the edits there are only 2 ids"},
		{revert(with(edit(3, 8, NoID, Drop)), 7, 5), "position is index 3, but without the edits there are only 2 ids"},
	} {
		require.ErrorContains(t, c.err, c.want)
		requireLogError(t, c.err)
	}
	err := NewReplay(ids, []int64{7, 9, 9}).Apply(sealed, LabelsEdited)
	require.ErrorContains(t, err, `old is 8 at index 1, but the label there is 9`)
	require.NoError(t, NewReplay(ids, []int64{7, 9, 9}).Apply(sealed, LabelsOriginal))
	require.ErrorContains(t, with(edit(1, 7, 5, Resample)).Seal(ids), "old is 7 at index 1")
}

func TestRevertGivesLabelsBack(t *testing.T) {
	ids := []uint32{4, 5, 6, 7}
	labels := []int64{4, ignoredLabel, ignoredLabel, 7}
	g := &LoggedGeneration{Edits: []LoggedEdit{
		{Pos: 0, Old: 4, New: NoID, Action: Drop},
		{Pos: 1, Old: 5, New: NoID, Action: Drop, Context: true},
		{Pos: 2, Old: 6, New: 6, Action: MaskLoss, Context: true},
		{Pos: 3, Old: 7, New: 7, Action: MaskLoss},
	}}
	require.NoError(t, g.Seal(ids))
	r := NewReplay(ids, labels)
	require.NoError(t, r.Apply(g, LabelsEdited))
	require.Equal(t, []int64{ignoredLabel, ignoredLabel}, r.Labels)
	require.Equal(t, []int32{2, 3}, r.Source)
	require.NoError(t, r.Revert(g))
	require.Equal(t, labels, r.Labels)
	require.Equal(t, []int32{-1, -1, 2, 3}, r.Source)
}

// loggedEdits are edits as a file may hold them.
func (r *fuzzReader) loggedEdits() []LoggedEdit {
	var edits []LoggedEdit
	id := func() int64 {
		switch b := r.byte(); {
		case b < 200:
			return int64(b % 6)
		case b < 240:
			return NoID
		default:
			return int64(r.uint32())<<32 | int64(r.uint32())
		}
	}
	for n := r.byte() % 16; n > 0; n-- {
		flags := r.byte()
		e := LoggedEdit{Pos: id() + int64(len(edits)), Old: id(), New: id(), Action: Action(flags % 3), Context: flags>>2&1 != 0}
		switch flags >> 3 & 3 {
		case 0:
			e.New = map[Action]int64{Resample: e.New, Drop: NoID, MaskLoss: e.Old}[e.Action]
		case 1:
			e.Pos = int64(len(edits))
		}
		edits = append(edits, e)
	}
	return edits
}

// FuzzLog replays whatever edits there are on whatever ids: with the hashes that belong to them where they can be made, and
// with others. What is applied can be reverted, and what is refused changes nothing.
func FuzzLog(f *testing.F) {
	rng := rand.New(rand.NewPCG(8, 1))
	for n := range 8 {
		data := make([]byte, 20*n)
		for i := range data {
			data[i] = byte(rng.IntN(200))
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &fuzzReader{data}
		ids := make([]uint32, r.byte()%20)
		labels := make([]int64, len(ids))
		for i := range ids {
			b := r.byte()
			ids[i] = uint32(b % 6)
			labels[i] = int64(ids[i])
			if b > 200 {
				labels[i] = ignoredLabel
			}
		}
		g := &LoggedGeneration{Edits: r.loggedEdits()}
		for i := range g.Edits {
			if p := g.Edits[i].Pos; p >= 0 && p < int64(len(labels)) && r.byte() < 250 {
				g.Edits[i].Context = labels[p] == ignoredLabel
			}
		}
		if g.Seal(ids) != nil {
			g.IDsHash, g.EditedHash, g.EditsHash = hashIDs(ids).Lo, hashIDs(ids).Lo, g.hashEdits()
		}
		before := NewReplay(slices.Clone(ids), slices.Clone(labels))
		replay := NewReplay(ids, labels)
		applied := replay.Apply(g, LabelsEdited)
		require.Equal(t, before.IDs, ids, "the ids that came in are not written to")
		require.Equal(t, before.Labels, labels)
		if applied != nil {
			requireLogError(t, applied)
			require.Equal(t, before, replay)
		} else {
			require.NoError(t, replay.Revert(g))
			require.Equal(t, before.IDs, replay.IDs)
		}
		replay = NewReplay(ids, labels)
		if reverted := replay.Revert(g); reverted != nil {
			requireLogError(t, reverted)
			require.Equal(t, before, replay)
		} else {
			require.NoError(t, replay.Apply(g, LabelsOriginal))
			require.Equal(t, before.IDs, replay.IDs)
		}
	})
}
