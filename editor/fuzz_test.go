package editor

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// fuzzReader makes a document of whatever bytes there are; zeros follow.
type fuzzReader struct{ data []byte }

func (r *fuzzReader) byte() byte {
	if len(r.data) == 0 {
		return 0
	}
	b := r.data[0]
	r.data = r.data[1:]
	return b
}

func (r *fuzzReader) uint32() uint32 {
	var b [4]byte
	for i := range b {
		b[i] = r.byte()
	}
	return binary.LittleEndian.Uint32(b[:])
}

// logp is a likely log probability, a float16 value, or any float32.
func (r *fuzzReader) logp() float32 {
	b := r.byte()
	switch b >> 6 {
	case 0:
		return -float32(b&63) / 4096
	case 1:
		return toHalf(-math.Exp(float64(b&63)/4 - 8))
	case 2:
		return -float32(b & 63)
	}
	switch b & 63 {
	case 0:
		return float32(math.Inf(-1))
	case 1:
		return math.Float32frombits(r.uint32())
	case 2:
		return math.Float32frombits(r.uint32() &^ (1<<13 - 1))
	}
	return -0x1p-12
}

func (r *fuzzReader) policy() Policy {
	flags := r.byte()
	p := PaperPolicy()
	p.Bands = UpFrom([]float64{0.99, 0.5, 1e-3, 1}[flags&3])
	p.K = []int{8, 8, 1, 3}[flags>>2&3]
	p.Temperature = []float64{1, 1.5, 1e-3, 5e-324}[flags>>4&3]
	p.ExcludeOriginal = flags>>6&1 == 0
	p.ProtectSpecial = flags>>7 == 0
	flags = r.byte()
	p.TopP = []float64{1, 0.99, 0.9, 0.5}[flags&3]
	p.RejectionTries = []int{0, 0, 1, 8}[flags>>2&3]
	p.EditProbability = []float64{1, 1, 0.5, 0.01}[flags>>4&3]
	p.MaxEditRate = []float64{1, 1, 0.1, 0.02}[flags>>6&3]
	flags = r.byte()
	p.MaxEditOrder = []string{OrderHighest, OrderRandom}[flags&1]
	p.ProtectFirst = []int{0, 0, 0, 3}[flags>>1&3]
	if flags>>3&1 != 0 {
		p.Bands = append(p.Bands, Band{Low: 1e-4, High: p.Bands[0].Low / 2, Closed: flags>>4&1 != 0, Action: Action(flags >> 5 % 3)})
	}
	for b := r.byte(); b&15 != 0; b-- {
		p.ProtectedIDs = append(p.ProtectedIDs, int64(r.byte()%testModelSize))
	}
	return p
}

func (r *fuzzReader) document() *Document {
	length := int(r.byte() % 80)
	d := &Document{Offset: uint64(r.byte()), Key: HashInt64(int64(r.byte()))}
	s := &d.Scores
	s.K = []int{8, 8, 8, 9, 16, 3, 0, -1}[r.byte()&7]
	flags := r.byte()
	if flags&1 != 0 {
		s.ValidOffset = int(r.byte() % 30)
		s.Valid = make([]byte, (s.ValidOffset+length+7)/8)
		for i := range s.Valid {
			s.Valid[i] = ^r.byte()
		}
	}
	if flags&2 != 0 {
		d.Protected = make([]bool, length)
	}
	for i := range length {
		b := r.byte()
		d.IDs = append(d.IDs, uint32(b&127))
		s.LogP = append(s.LogP, r.logp())
		if d.Protected != nil {
			d.Protected[i] = b > 250
		}
		if b&128 != 0 && i > 0 {
			continue
		}
		s.TopPos = append(s.TopPos, int32(i))
		for j := range max(s.K, 0) {
			id := int32(r.byte() & 127)
			if j == 0 && b&64 != 0 {
				id = int32(d.IDs[i])
			}
			s.TopIDs = append(s.TopIDs, id)
			s.TopLogP = append(s.TopLogP, r.logp())
		}
	}
	d.Hash = hashIDs(d.IDs)
	s.IDsHash = d.Hash.Lo
	// Then some damage.
	for n := flags >> 5; n > 0; n-- {
		b := r.byte()
		switch b & 7 {
		case 0:
			s.IDsHash++
		case 1:
			s.LogP = s.LogP[:len(s.LogP)/2]
		case 2:
			s.TopIDs = append(s.TopIDs, int32(r.uint32()))
		case 3:
			s.ValidOffset = int(int32(r.uint32()))
		default:
			if len(s.TopPos) > 0 {
				s.TopPos[int(b>>3)%len(s.TopPos)] = int32(r.uint32()) >> (r.byte() & 31)
			}
			if len(s.TopIDs) > 0 {
				s.TopIDs[int(b>>3)%len(s.TopIDs)] = int32(r.uint32()) >> (r.byte() & 31)
			}
		}
	}
	return d
}

// Whatever the document, Plan gives an error and nothing else, or a sound
// plan; the same whether it takes the short ways or the long ones; and it
// changes none of its inputs.
func FuzzPlan(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x41\x00\x20\x00\x00\x00\x00 any text makes some document, with tokens in the band and without"))
	editors := map[string]*Editor{}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &fuzzReader{data}
		p := r.policy()
		name := fmt.Sprintf("%+v", p)
		e := editors[name]
		if e == nil {
			var err error
			e, err = New(p, testVocabulary)
			require.NoError(t, err)
			if len(editors) < 256 {
				editors[name] = e
			}
		}
		d := r.document()
		ids, logp := slices.Clone(d.IDs), slices.Clone(d.Scores.LogP)

		var plan, slow Plan
		counts, err := e.Plan(Epoch{Seed: 1}, d, &plan)
		require.Equal(t, ids, d.IDs)
		require.True(t, slices.EqualFunc(logp, d.Scores.LogP, func(a, b float32) bool {
			return math.Float32bits(a) == math.Float32bits(b)
		}))

		want, slowErr := e.planSlowly(Epoch{Seed: 1}, d, &slow)
		require.Equal(t, slowErr, err)
		require.Equal(t, want, counts)
		require.True(t, slices.Equal(slow.Edits, plan.Edits))
		if err != nil {
			require.Equal(t, Counts{}, counts)
			require.Empty(t, plan.Edits)
			return
		}
		requireSound(t, e, d, plan.Edits, counts)
	})
}

// planSlowly is Plan without its short ways.
func (e *Editor) planSlowly(ep Epoch, d *Document, plan *Plan) (Counts, error) {
	if err := d.Scores.check(d, e.leastK()); err != nil {
		return Counts{}, err
	}
	protected := d.Protected
	if e.protects {
		protected = e.protect(d, plan)
	}
	counts, err := e.findAll(d, protected, plan)
	if err != nil {
		return Counts{}, err
	}
	e.limitAmount(ep, d, plan, &counts)
	for _, f := range plan.found {
		edit := Edit{Pos: f.pos, Old: d.IDs[f.pos], New: d.IDs[f.pos], LogP: d.Scores.LogP[f.pos], Band: f.band, Action: e.policy.Bands[f.band].Action}
		switch edit.Action {
		case Drop:
			counts.Dropped++
		case MaskLoss:
			counts.Masked++
		case Resample:
			block := Philox4x64(ep.key(purposeDraw), [4]uint64{0, uint64(f.pos) + d.Offset, d.Key.Lo, d.Key.Hi})
			drawn, err := e.drawOne(&d.Scores, int(f.stored), edit.Old, uniform(block[0]), plan)
			if err != nil {
				plan.Edits = nil
				return Counts{}, err
			}
			counts.Expected += 1 - drawn.keep
			if drawn.truncated {
				counts.Truncated++
			}
			if drawn.id == edit.Old {
				continue
			}
			edit.New = drawn.id
			counts.Changes++
		}
		plan.Edits = append(plan.Edits, edit)
	}
	return counts, nil
}
