package bloom

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A guard that relies on a change feed believes its filter only while the feed's word is young enough: not before the first one that was told
// since it reads the announcements, not by one whose lag is too long, not by one that only a filter under way has read; every word is as old as the
// reading before it. One word more, and it is believed again. Another guard does not care.
// Broken by: young without feed; without fed 0; follow without its look at belief.
func TestFeedThatFallsBehindLetsEverythingPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 10 * time.Second
		st, g, other := stored(t, "a"), newTestGuard(t), newTestGuard(t)
		g.RelyOnFeed(bound)
		st.feed(time.Second) // nobody knows when
		time.Sleep(3 * time.Second)
		require.NoError(t, g.Adopt(t.Context(), st))
		require.NoError(t, other.Adopt(t.Context(), st))
		require.Equal(t, Lagging, g.State(), "nothing was told since")
		patient := newTestGuard(t)
		patient.RelyOnFeed(10 * dayBefore)
		require.NoError(t, patient.Adopt(t.Context(), st))
		require.Equal(t, Lagging, patient.State(), "not known is no matter of time")
		require.False(t, g.Absent("none"))
		require.True(t, other.Absent("none"))

		catchUp := func(after time.Duration) State {
			time.Sleep(after)
			require.NoError(t, g.CatchUp(t.Context(), st))
			return g.State()
		}
		st.feed(time.Second)
		require.Equal(t, Believed, catchUp(time.Second))
		require.True(t, g.Absent("none"))
		st.announce("row")
		for range 8 {
			require.Equal(t, Believed, catchUp(time.Second))
		}
		require.False(t, g.Absent("row"))
		require.Equal(t, Lagging, catchUp(time.Second), "ten seconds and one after what it told of, and none of its word was read twice")
		require.False(t, g.Absent("none"))
		st.feed(bound)
		require.Equal(t, Lagging, catchUp(time.Second), "told now, of long ago")
		st.feed(time.Second)
		require.Equal(t, Believed, catchUp(time.Second))

		for range bound / time.Second {
			catchUp(time.Second)
		}
		require.Equal(t, Lagging, g.State(), "of what was announced it knows")
		_, err := g.Build(t.Context(), func(yield func(string, error) bool) {
			time.Sleep(tendEvery)
			require.True(t, yield("a", nil)) // from then on it is known up to when the filter under way has read
			require.Equal(t, Lagging, catchUp(tendEvery))
			st.feed(time.Second)
			require.True(t, yield("b", nil))
			require.Equal(t, Lagging, g.State())
		}, BuildOptions{RowsPerSecond: 1000}, st)
		require.NoError(t, err)
		require.Equal(t, Lagging, g.State(), "the word was read for the filter under way")
		st.feed(time.Second)
		require.Equal(t, Believed, catchUp(time.Second))
	})
}

// Without a store the feed's word comes by Fed. Broken by: Fed without lag.
func TestFeedOfOneProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGuard(t)
		g.RelyOnFeed(10 * time.Second)
		_, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{}, nil)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Equal(t, Lagging, g.State())
		g.Fed(4 * time.Second)
		g.Fed(5 * time.Second) // an older word changes nothing
		time.Sleep(6 * time.Second)
		require.Equal(t, Believed, g.State())
		time.Sleep(time.Second)
		require.Equal(t, Lagging, g.State())
	})
}
