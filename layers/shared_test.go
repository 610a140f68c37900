package layers

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// counting counts the decodings.
type counting struct {
	Codec
	decoded *atomic.Int64
}

func (c counting) Decode(data []byte, v any) error {
	c.decoded.Add(1)
	return c.Codec.Decode(data, v)
}

// plant puts raw at the world's key, as another version of this library might have.
func (w *world) plant(e envelope) {
	value, _ := w.keys()
	require.NoError(w.t, w.rdb.Set(w.t.Context(), value, e.String(), time.Minute).Err())
}

// standing is an envelope that is fresh now and of the generation known.
func (w *world) standing() envelope {
	_, err := w.known(w.t.Context())
	require.NoError(w.t, err)
	now := serverTime(w.t.(*testing.T), w.rdb).UnixMilli()
	return envelope{
		codec: Raw.ID(), schema: 7, generation: w.generation.Load(), stored: now, soft: now + 60_000, hard: now + 60_000,
		token: NewToken(), payload: "v",
	}
}

// Property: what this cache cannot read is foreign: a miss that names its moment, so that it is replaced, once, although Redis takes it
// for fresh.
func TestForeignDataIsReplacedOnce(t *testing.T) {
	for name, spoil := range map[string]func(e *envelope){
		"another schema":           func(e *envelope) { e.schema = 8 },
		"another codec":            func(e *envelope) { e.codec = JSON.ID() },
		"compressed":               func(e *envelope) { e.flags = flagCompressed },
		"of a later version":       func(e *envelope) { e.flags = 128 },
		"too large":                func(e *envelope) { e.payload = strings.Repeat("v", MaxValueBytes+1) },
		"a long key's":             func(e *envelope) { e.flags, e.id = flagLongKey, "k" },
		"of a generation to come":  func(e *envelope) { e.generation += 1 << 40 },
		"of an absurd generation":  func(e *envelope) { e.generation = 1 << 63 },
		"stored in the far future": func(e *envelope) { e.stored = -1 },
		"stored at no time":        func(e *envelope) { e.stored = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			e := w.standing()
			w.plant(e)
			w.holds("v")
			spoil(&e)
			w.plant(e)
			got := w.reads()
			require.Equal(t, Foreign, got.Kind)
			require.Empty(t, got.Value)
			require.Equal(t, e.stored, got.Stored)
			if e.stored > 0 { // else Redis sees what is wrong, too
				found := w.acquire(NewToken())
				require.Equal(t, Found, found.Verdict)
				require.Equal(t, Foreign, w.Decode(found).Kind)
			}
			l := w.granted(NewToken(), instead(got.Stored))
			w.fills(l, "v1", Stored)
			w.holds("v1")
			require.Empty(t, w.bad)
		})
	}
}

// Property: a value whose payload cannot be decoded is foreign.
func TestUndecodableDataIsForeign(t *testing.T) {
	w := newWorld(t, false)
	e := w.standing()
	e.codec, e.payload = JSON.ID(), "{"
	w.plant(e)
	s := NewShared[map[string]int](w.Space, JSON, 7, Limits{})
	got, err := s.Get(t.Context(), w.id, Mark{})
	require.NoError(t, err)
	require.Equal(t, Foreign, got.Kind)
	require.Equal(t, e.stored, got.Stored)
}

// Property: a long key's value is answered only to its own full key, whatever its hash says.
func TestALongKeyIsComparedInFull(t *testing.T) {
	w := newWorld(t, false)
	w.id = strings.Repeat("a", longKey+1)
	w.fills(w.granted(NewToken()), "v", Stored)
	w.holds("v")
	e := w.standing()
	e.flags, e.id = flagLongKey, strings.Repeat("b", longKey+1)
	w.plant(e)
	require.Equal(t, Foreign, w.reads().Kind)
	e.flags, e.id = 0, ""
	w.plant(e)
	require.Equal(t, Foreign, w.reads().Kind)
	w.invalidates(Once, "")
	w.invalidates(Announce, "")
	require.Equal(t, Marker, w.reads().Kind)
	require.Empty(t, w.bad)
}

// Property: a value of a greater generation than this process knows is answered once Redis has confirmed it, and then what is older is gone.
func TestAGreaterGenerationIsConfirmedFirst(t *testing.T) {
	for name, read := range map[string]func(w *world, s *Shared[string]) Reading[string]{
		"get": func(w *world, s *Shared[string]) Reading[string] {
			got, err := s.Get(w.t.Context(), w.id, Mark{})
			require.NoError(w.t, err)
			return got
		},
		"get many": func(w *world, s *Shared[string]) Reading[string] {
			got, errs := s.GetMany(w.t.Context(), []string{"other", w.id}, make([]Mark, 2))
			require.NoError(w.t, errs[1])
			return got[1]
		},
		"acquire": func(w *world, s *Shared[string]) Reading[string] {
			a := s.Acquire(w.t.Context(), Ask{ID: w.id, Token: NewToken()})[0]
			require.NoError(w.t, a.Err)
			require.Equal(w.t, Found, a.Verdict)
			return s.Decode(a)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			var cleared atomic.Int64
			_, b := w.process(w.Name(), Events{Cleared: func() { cleared.Add(1) }})
			old, err := b.known(t.Context())
			require.NoError(t, err)
			require.NoError(t, w.Move(t.Context()))
			w.fills(w.granted(NewToken()), "v", Stored)
			b.ear.do(func() { b.generation.Store(old) }) // as if the event had not come
			cleared.Store(0)
			got := read(w, b)
			require.Equal(t, Value, got.Kind)
			require.Equal(t, "v", got.Value)
			require.Equal(t, w.generation.Load(), b.generation.Load())
			require.Positive(t, cleared.Load())
			require.Empty(t, w.bad)
		})
	}
}

// Property: one reply is decoded once, however many share it, and each is given its moments in local time.
func TestAReplyIsDecodedOnce(t *testing.T) {
	w := newWorld(t, false)
	var n atomic.Int64
	s := NewShared[string](w.Space, counting{JSON, &n}, 7, Limits{})
	e := w.standing()
	e.codec, e.payload = JSON.ID(), `"v"`
	e.soft -= 30_000
	sent := time.Now()
	reading := func(q *request) (got Reading[string]) {
		s.reading(t.Context(), w.id, q, &got)
		return got
	}
	q := &request{raw: e.String(), reply: &reply{now: e.stored + 1000, sent: sent, keep: true}, shared: &sharing{}}
	for range 5 {
		got := reading(q)
		require.Equal(t, Reading[string]{Entry: Entry[string]{
			Value: "v", Born: sent.Add(-time.Second), Soft: sent.Add(29 * time.Second), Hard: sent.Add(59 * time.Second), Size: 3,
		}, Kind: Value, Keep: true, Stored: e.stored}, got)
	}
	require.EqualValues(t, 1, n.Load())
	require.Equal(t, Nothing, reading(&request{}).Kind)
	q = &request{raw: e.String(), reply: &reply{now: e.hard, sent: sent, keep: true}}
	require.Equal(t, Nothing, reading(q).Kind, "at its hard end")
	q = &request{raw: e.String(), reply: &reply{now: e.stored - 5000, sent: sent}}
	got := reading(q)
	require.Equal(t, sent, got.Born, "a server whose clock went back")
	require.False(t, got.Keep)
}

// Property: version, cost and absence come back as they were stored; lives are counted from the storing.
func TestAnEntryComesBack(t *testing.T) {
	w := newWorld(t, false)
	want := Entry[string]{Value: "v", Version: 5, Cost: 3 * time.Millisecond}
	w.want(w.fill(w.granted(NewToken()), want).Result == Stored, "not stored")
	got := w.reads()
	require.Equal(t, Value, got.Kind)
	require.Equal(t, want.Value, got.Value)
	require.Equal(t, want.Version, got.Version)
	require.Equal(t, want.Cost, got.Cost)
	require.Equal(t, 1, got.Size)
	require.Equal(t, testHard-testSoft, got.Hard.Sub(got.Soft))
	require.Equal(t, testSoft, got.Soft.Sub(got.Born))
	require.False(t, got.Born.After(time.Now()))
	require.Empty(t, w.bad)
}

// Property: what cannot be stored says why, before anything is sent.
func TestEncodeRefuses(t *testing.T) {
	s := NewShared[string](&Space{}, Raw, 0, Limits{EncodedBytes: 4})
	_, err := s.Encode(Lease{}, Entry[string]{Value: "12345"}, Lives{})
	require.ErrorIs(t, err, ErrTooLarge)
	long := strings.Repeat("k", longKey+1)
	f, err := s.Encode(Lease{ID: long}, Entry[string]{Value: "1234"}, Lives{Soft: 2, Hard: 1})
	require.NoError(t, err, "the key in front does not count")
	require.Equal(t, byte(flagLongKey), f.Flags)
	require.Equal(t, f.Soft, f.Hard)
	_, err = NewShared[chan int](&Space{}, JSON, 0, Limits{}).Encode(Lease{}, Entry[chan int]{}, Lives{})
	require.ErrorIs(t, err, ErrEncode)
}
