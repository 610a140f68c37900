package tiercache_test

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/redistest"
)

// filterHook notes what Hooks.Filter is told.
type filterHook struct {
	mu   sync.Mutex
	told []string
}

func (h *filterHook) hooks() *tiercache.Hooks {
	return &tiercache.Hooks{Filter: func(state, due string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.told = append(h.told, state+"/"+due)
	}}
}

func (h *filterHook) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.told)
}

func TestShadowFilterBlocksNothing(t *testing.T) {
	// With FilterAudit 1 a built filter answers nothing: what it calls absent is loaded and counted, by Get and GetMany; the first row found
	// that it lacks is counted, told and logged once, and ends what it says until the next build. Broken by: audits drawing below 1; load and
	// loadMany without foundInSource.
	synctest.Test(t, func(t *testing.T) {
		for name, find := range map[string]func(c *tiercache.Cache[string, string], key string){
			"Get": func(c *tiercache.Cache[string, string], key string) { wantValue(t, c, key, "v") },
			"GetMany": func(c *tiercache.Cache[string, string], key string) {
				found, err := c.GetMany(t.Context(), []string{key, "none of many"})
				require.NoError(t, err)
				require.Equal(t, map[string]string{key: "v"}, found)
			},
		} {
			s, h, log := newSource(map[string]string{"k": "v"}), &filterHook{}, &lines{}
			c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
				o.Filter, o.FilterAudit = bloom.Options{Capacity: 1000, FalsePositiveRate: 1e-9}, 1
				o.Hooks, o.Logger = h.hooks(), slog.New(slog.NewTextHandler(log, nil))
				o.LoadMany = func(ctx context.Context, keys []string) (map[string]string, error) {
					rows := map[string]string{}
					for _, key := range keys {
						if v, err := s.load(ctx, key); err == nil {
							rows[key] = v
						}
					}
					return rows, nil
				}
			})
			_, err := c.BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
			require.NoError(t, err)
			wantAbsent(t, c, "none")
			stats := c.Stats()
			require.Zero(t, stats.Filtered, name)
			require.EqualValues(t, 1, stats.FilterAudit, name)
			require.EqualValues(t, 1, stats.FilterAsked, name)
			require.EqualValues(t, 1, s.loads.Load(), name)
			require.EqualValues(t, 1, stats.FilterState, name)

			s.write("unannounced", "v")
			find(c, "unannounced")
			stats = c.Stats()
			require.EqualValues(t, 1, stats.FilterWrong, name)
			require.EqualValues(t, 3, stats.FilterState, name)
			require.EqualValues(t, 1, stats.FilterDue, name)
			require.Equal(t, []string{"believed/", "doubted/doubted"}, h.all(), name)
			require.Equal(t, 1, log.count("level=ERROR"), name)
			require.Zero(t, log.count("unannounced"), "keys are not logged")
			wantAbsent(t, c, "another")
			require.EqualValues(t, 1, c.Stats().FilterOpen, name)

			_, err = c.BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
			require.NoError(t, err)
			require.Equal(t, []string{"believed/", "doubted/doubted", "believed/"}, h.all(), name)
		}
	})
}

// A row that was inserted without a word is found by the audit although the filter blocks it, in whatever process that is; then no process of the
// fleet believes the filter, nor one that starts, until another is built. Broken by: audits returning false; keepFilter without refute.
func TestAuditFindsARowThatNobodyAnnounced(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(map[string]string{"k": "v"}), redistest.Name(t)
		o := filterOptions(name, s)
		o.FilterAudit, o.AbsentTTL = 0.2, -1
		p := openPeers(t, 2, client, o)
		buildFilter(t, s, p)
		s.write("unannounced", "v")
		asking(t, func() bool {
			_, err := p[0].Get(t.Context(), "unannounced")
			return err == nil
		}, "one request in five is loaded all the same")
		require.NotZero(t, p[0].Stats().FilterAudit)
		p = append(p, openPeer(t, client(t), o))
		for i, p := range p {
			eventually(t, func() bool {
				state := p.Stats().FilterState
				return state == uint64(bloom.Doubted) || i == 2 && state == uint64(bloom.Unbuilt)
			}, "process %d believes it no more", i)
			requireGet(t, p, "unannounced", "v")
		}
		require.EqualValues(t, 1, p[0].Stats().FilterWrong)
		require.Zero(t, p[1].Stats().FilterWrong)

		buildFilter(t, s, p)
		for _, p := range p {
			eventually(t, func() bool { return p.Stats().FilterState == uint64(bloom.Believed) }, "the next filter is believed")
		}
	})
}

// A row that another process announced, and that is loaded here before this process has heard of it, is no false negative.
// Broken by: keepFilter refuting before it has caught up.
func TestAnnouncedRowIsNoFalseNegative(t *testing.T) {
	onDoors(t, func(t *testing.T, client func(*testing.T, *door) redis.UniversalClient) {
		s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
		o := filterOptions(name, s)
		var d door
		p := []*peer{openPeer(t, client(t, new(door)), o), openPeer(t, client(t, &d), o)}
		buildFilter(t, s, p)
		p[1].deafen(t, &d, p[0].rdb)
		for i := range 20 {
			key := "new " + strconv.Itoa(i)
			require.NoError(t, p[0].Announce(t.Context(), key))
			s.write(key, "row")
			requireGet(t, p[1], key, "row")
		}
		d.open()
		eventually(t, func() bool { return p[1].Stats().FilterRows >= 21 }, "it has caught up")
		require.EqualValues(t, bloom.Believed, p[1].Stats().FilterState)
		require.Zero(t, p[1].Stats().FilterWrong)
	})
}

// A filter past its capacity says so once, in hooks, log and Stats, goes on being right about every row, and says no more once it was built larger.
// Broken by: tellFilter not comparing with what was told; Due without Overfull.
func TestOverfullFilterAsksForARebuild(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		h, log := &filterHook{}, &lines{}
		o := filterOptions(name, s)
		o.Filter = bloom.Options{Capacity: 100}
		o.Hooks, o.Logger = h.hooks(), slog.New(slog.NewTextHandler(log, nil))
		p := openPeer(t, client(t), o)
		_, err := p.BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
		require.NoError(t, err)
		require.Zero(t, p.Stats().FilterDue)
		require.EqualValues(t, 100, p.Stats().FilterSize)
		require.Zero(t, p.Stats().FilterFill)
		require.NotZero(t, p.Stats().FilterBytes)
		keys := make([]string, 200)
		for i := range keys {
			keys[i] = strconv.Itoa(i)
		}
		require.NoError(t, p.Announce(t.Context(), keys...))
		require.EqualValues(t, 1, p.Stats().FilterDue)
		require.InDelta(t, 160_000, p.Stats().FilterRate, 100_000, "16 % of absent keys pass")
		require.InDelta(t, 750_000, p.Stats().FilterFill, 100_000)
		require.InDelta(t, 200, p.Stats().FilterRows, 40) // six standard deviations
		want := []string{"believed/", "believed/overfull"}
		eventually(t, func() bool { return slices.Equal(h.all(), want) }, "it is told")
		for _, key := range keys {
			s.write(key, "v")
		}
		for _, key := range keys {
			requireGet(t, p, key, "v")
		}
		require.Equal(t, want, h.all(), "once")
		require.Equal(t, 1, log.count("overfull"), "once")
		require.Zero(t, p.Stats().FilterWrong)
	})
}
