package tiercache_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/redistest"
)

// P6: with FilterFeed a filter says nothing until a change feed has told, to whichever process, of all commits until lately; the rows that it tells
// of are found by all. Broken by: Feed without Announce; New without RelyOnFeed; Feed without AppendFed, without Fed.
func TestFilterThatReliesOnAFeed(t *testing.T) {
	onForms(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], s *source) {
		o.FilterFeed, o.AbsentTTL = time.Minute, -1
		p := openPeers(t, 2, client, o)
		_, err := p[0].BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
		require.NoError(t, err)
		eventually(t, func() bool { return p[1].Stats().FilterRows > 0 }, "the filter was fetched")
		for _, p := range p {
			require.EqualValues(t, bloom.Lagging, p.Stats().FilterState)
			requireAbsent(t, p, "none")
			require.Zero(t, p.Stats().Filtered, "nothing was told yet")
		}
		s.write("foreign", "v") // by a writer that knows nothing of the cache
		require.NoError(t, p[0].Feed(t.Context(), 0, "foreign"))
		for _, p := range p {
			asking(t, func() bool {
				require.NoError(t, p.Feed(t.Context(), 0)) // the first word that a process reads may be of before it read anything
				return p.Stats().FilterState == uint64(bloom.Believed)
			}, "the word is heard")
			requireAbsent(t, p, "none")
			require.EqualValues(t, 1, p.Stats().Filtered)
			requireGet(t, p, "foreign", "v")
			require.Zero(t, p.Stats().FilterWrong)
		}
	})
}

// P6: a row that was read before the change feed told of it is no fault of the filter, for that is what the bound allows; one that the feed has never
// told of, though it says to have told all, is.
// Broken by: take without told; Told always true.
func TestAuditWaitsForTheFeed(t *testing.T) {
	for form, name := range []string{"per process", "in Redis"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each reading of the feed's word takes a second
			if name == "in Redis" {
				needSegments(t)
			}
			s := newSource(map[string]string{"row": "v"})
			o := filterOptions(redistest.Name(t), s)
			o.Filter.Form, o.FilterFeed, o.FilterAudit, o.AbsentTTL = bloom.Form(form), time.Minute, 1, -1
			p := openPeer(t, redistest.Shared(t).Client(t), o)
			_, err := p.BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
			require.NoError(t, err)
			told := func() {
				t.Helper()
				asking(t, func() bool {
					require.NoError(t, p.Feed(t.Context(), 0))
					return p.Stats().FilterState == uint64(bloom.Believed)
				}, "the word is heard")
			}
			told()
			s.write("late", "v") // by a writer that knows nothing of the cache
			requireGet(t, p, "late", "v")
			require.EqualValues(t, 1, p.Stats().FilterAudit)
			for range 2 {
				p.wire.reset()
				asking(t, func() bool { return p.wire.count("segments")+p.wire.count("xrange") > 0 }, "the filter is kept")
			}
			require.Zero(t, p.Stats().FilterWrong, "it was not told yet")
			require.NoError(t, p.Feed(t.Context(), 0, "late"))
			for range 3 { // the word after the first whose age is known
				p.wire.reset()
				require.NoError(t, p.Feed(t.Context(), 0))
				asking(t, func() bool { return p.wire.count("segments")+p.wire.count("xrange") > 1 }, "the word is heard")
			}
			require.Zero(t, p.Stats().FilterWrong)
			require.EqualValues(t, bloom.Believed, p.Stats().FilterState)

			s.write("never", "v")
			requireGet(t, p, "never", "v")
			asking(t, func() bool {
				require.NoError(t, p.Feed(t.Context(), 0))
				return p.Stats().FilterState == uint64(bloom.Doubted)
			}, "it is a fault once all was told")
			require.EqualValues(t, 1, p.Stats().FilterWrong)
		})
	}
}

func TestFeedRefusesWhatMakesNoSense(t *testing.T) {
	// Feed needs a Filter and a lag that is not negative, and ends with Close.
	c := openAlone(t, newSource(nil), nil)
	require.ErrorContains(t, c.Feed(t.Context(), 0), "no Filter")
	o := filterOptions("alone", newSource(nil))
	c = openCache(t, o)
	require.ErrorContains(t, c.Feed(t.Context(), -1), "negative")
	require.NoError(t, c.Feed(t.Context(), 0, "k"))
}
