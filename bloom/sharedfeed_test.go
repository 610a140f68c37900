package bloom

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/segment"
)

// feedStore serves a filter that has no rows, and what change feeds have told.
type feedStore struct {
	SegmentStore
	layout *Segmented
	raw    []byte
	words  uint64
	lag    time.Duration
	asking func() // before the answer of each question
}

func (s *feedStore) AskSegments(_ context.Context, asks []segment.Ask) ([]byte, [][]int64, error) {
	if s.asking != nil {
		s.asking()
	}
	replies := make([][]int64, len(asks))
	for i, a := range asks {
		replies[i] = make([]int64, len(a.Fields)/2)
		stamp := int64(s.layout.stamp(a.Number, stampSealed)) //nolint:gosec // the same 64 bits
		copy(replies[i], []int64{segmentMagic, stamp, stamp})
	}
	return s.raw, replies, nil
}

func (s *feedStore) EditSegments(_ context.Context, edits ...segment.Edit) ([]bool, error) {
	return make([]bool, len(edits)), nil
}

func (s *feedStore) TurnSegments(_ context.Context, t segment.Turn) (segment.Head, bool, error) {
	if t.How == segment.Feed {
		s.words, s.lag = s.words+1, t.Lag
	}
	return segment.Head{Serving: s.raw, Fed: s.words, Lag: s.lag}, true, nil
}

// A guard of a filter in Redis that relies on a change feed believes it only while the feed's word is young enough: not before one that was told since it
// first read the head, by one that is as old as the reading before it, not by fewer words than it knew, which are of a head that Redis lost. What
// it hears while a question is under way does not vouch for the answer. Without a feed nothing of this counts.
// Broken by: young without until 0; heard with asked instead of read, with != for >; Absent with known behind ask.
func TestFeedOfAFilterInRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Capacity: 1000, FalsePositiveRate: 1e-9, Form: InRedis}
		layout := newTestSegmented(t, o)
		raw, err := layout.MarshalBinary()
		require.NoError(t, err)
		st := &feedStore{layout: layout, raw: raw}
		g, err := NewSharedGuard(o, st)
		require.NoError(t, err)
		const bound = 10 * time.Second
		g.RelyOnFeed(bound)
		keep := func() State {
			t.Helper()
			require.NoError(t, g.Keep(t.Context()))
			return g.State()
		}
		absent := func() bool { return g.Absent(t.Context(), "none")[0] }
		require.NoError(t, g.Fed(t.Context(), 0))
		require.Equal(t, Lagging, keep(), "told before it read anything")
		require.False(t, absent())
		patient, err := NewSharedGuard(o, st)
		require.NoError(t, err)
		patient.RelyOnFeed(10 * dayBefore)
		require.NoError(t, patient.Keep(t.Context()))
		require.Equal(t, Lagging, patient.State(), "not known is no matter of time")
		patient.Close()
		time.Sleep(time.Second)
		require.Equal(t, Lagging, keep(), "nothing was told since")

		time.Sleep(3 * time.Second)
		require.NoError(t, g.Fed(t.Context(), 2*time.Second))
		require.Equal(t, Believed, keep())
		require.True(t, absent())
		time.Sleep(5 * time.Second)
		require.Equal(t, Believed, keep(), "two of lag, three since the reading before, and five")
		time.Sleep(time.Millisecond)
		require.Equal(t, Lagging, g.State())
		require.False(t, absent())

		require.NoError(t, g.Fed(t.Context(), time.Minute))
		require.Equal(t, Lagging, keep(), "told now, of long ago")
		st.words = 0 // Redis lost the head
		require.NoError(t, g.Fed(t.Context(), 0))
		require.Equal(t, Lagging, keep(), "nobody knows when")
		require.NoError(t, g.Fed(t.Context(), 0))
		require.Equal(t, Believed, keep())

		time.Sleep(bound + time.Second)
		require.Equal(t, Lagging, keep())
		st.asking = func() {
			st.asking = nil
			require.NoError(t, g.Fed(t.Context(), 0))
			require.Equal(t, Believed, keep())
		}
		require.False(t, absent(), "it lagged when it asked")
		require.True(t, absent())

		other, err := NewSharedGuard(o, st)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.NoError(t, other.Keep(t.Context()))
		require.True(t, other.Absent(t.Context(), "none")[0])
		g.Close()
		other.Close()
	})
}

// buildStore is a store of segments that are always there, and whose head tells the second builder's name once it is overtaken.
type buildStore struct {
	feedStore
	building  []byte
	builder   uint64
	overtaken bool
}

func (s *buildStore) EditSegments(_ context.Context, edits ...segment.Edit) ([]bool, error) {
	made := make([]bool, len(edits))
	for i := range made {
		made[i] = true
	}
	return made, nil
}

func (s *buildStore) BeginFilter(context.Context, time.Duration) (string, uint64, bool, error) {
	return "", 1, true, nil
}

func (s *buildStore) Announced(_ context.Context, cursor string) ([]string, []time.Duration, string, bool, error) {
	return nil, nil, cursor, true, nil
}

func (s *buildStore) TurnSegments(_ context.Context, t segment.Turn) (segment.Head, bool, error) {
	if t.How == segment.Begin {
		s.building, s.builder = t.Layout, t.Builder
	}
	h := segment.Head{Building: s.building, Builder: s.builder}
	if s.overtaken {
		h.Builder++
	}
	return h, true, nil
}

// A builder that was overtaken notices within seconds, and not at the end of its scan. Broken by: tend without its look at the head.
func TestOvertakenBuilderEndsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &buildStore{}
		g, err := NewSharedGuard(Options{Capacity: 1000, Form: InRedis}, st)
		require.NoError(t, err)
		began := time.Now()
		_, err = g.Build(t.Context(), func(yield func(string, error) bool) {
			for yield("row", nil) { // a scan without an end
				st.overtaken = time.Since(began) > time.Minute
			}
		}, BuildOptions{RowsPerSecond: 10})
		require.ErrorIs(t, err, ErrOvertaken)
		require.Less(t, time.Since(began), time.Minute+2*tendEvery)
		g.Close()
	})
}
