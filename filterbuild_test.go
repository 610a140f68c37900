package tiercache_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// heldScan is a scan of one row that says when it has begun and waits until it may end.
type heldScan struct {
	begun, end chan struct{}
	scans      atomic.Int64
}

func newHeldScan() *heldScan {
	return &heldScan{begun: make(chan struct{}, 10), end: make(chan struct{})}
}

func (h *heldScan) rows(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		h.scans.Add(1)
		h.begun <- struct{}{}
		select {
		case <-h.end:
			yield("row", nil)
		case <-ctx.Done():
			yield("", context.Cause(ctx))
		}
	}
}

type built struct {
	report bloom.BuildReport
	err    error
}

// build calls BuildFilter and returns what it will return.
func (h *heldScan) build(ctx context.Context, p *peer) chan built {
	done := make(chan built, 1)
	go func() {
		report, err := p.BuildFilter(ctx, h.rows(ctx), bloom.BuildOptions{})
		done <- built{report, err}
	}()
	return done
}

// waitsForLock waits until n processes wait for the lock of the build.
func waitsForLock(t *testing.T, rdb redis.UniversalClient, name string, n int) {
	t.Helper()
	asking(t, func() bool {
		members, err := rdb.ZRange(t.Context(), "tc::lock:{"+name+"}", 0, -1).Result()
		require.NoError(t, err)
		waiting := 0
		for _, m := range members {
			if strings.HasPrefix(m, "x:") {
				waiting++
			}
		}
		return waiting >= n
	}, "they wait for the lock")
}

// onForms runs test with the options of either form of filter, on one server and on a cluster.
func onForms(t *testing.T, test func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], s *source)) {
	t.Helper()
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		for name, form := range map[string]bloom.Form{"per process": bloom.PerProcess, "in Redis": bloom.InRedis} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // they wait for locks
				if form == bloom.InRedis {
					needSegments(t)
				}
				s := newSource(map[string]string{"row": "v"})
				o := filterOptions(redistest.Name(t), s)
				o.Filter.Form = form
				test(t, client, o, s)
			})
		}
	})
}

func filterOptions(name string, s *source) tiercache.Options[string, string] {
	o := lasting(name, s)
	o.Filter, o.FilterAudit = bloom.Options{Capacity: 1000, FalsePositiveRate: 1e-9}, -1 // a test that is about audits says so
	return o
}

// One process of the fleet builds: others that are asked to, in this process too, wait and believe what it stored, without a scan; a later
// call scans again. No key of the lock is without an expiry. Broken by: buildShared without the lock; without its second look.
func TestOneProcessBuildsTheFilterForAll(t *testing.T) {
	onForms(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], _ *source) {
		p, h, name := openPeers(t, 3, client, o), newHeldScan(), o.Name
		first := h.build(t.Context(), p[0])
		await(t, h.begun, "the scan begins")
		others := []chan built{h.build(t.Context(), p[1]), h.build(t.Context(), p[2]), h.build(t.Context(), p[0])}
		waitsForLock(t, p[0].rdb, name, len(others))
		requireAllExpire(t, p[0].rdb, name)
		close(h.end)
		b := await(t, first, "the build")
		require.NoError(t, b.err)
		require.False(t, b.report.Adopted)
		require.EqualValues(t, 1, b.report.Rows)
		for _, other := range others {
			b := await(t, other, "another's build")
			require.NoError(t, b.err)
			require.True(t, b.report.Adopted)
			require.Zero(t, b.report.Rows)
		}
		require.EqualValues(t, 1, h.scans.Load())
		for _, p := range p {
			requireAbsent(t, p, "none")
			require.NotZero(t, p.Stats().Filtered)
		}
		b = await(t, h.build(t.Context(), p[1]), "a later build")
		require.NoError(t, b.err)
		require.False(t, b.report.Adopted)
		require.EqualValues(t, 2, h.scans.Load())
	})
}

// A builder that fails is followed by the next that waits, which scans. Broken by: buildShared taking any filter that stands for the one it
// waited for.
func TestBuilderThatFailsIsFollowedByAnother(t *testing.T) {
	onForms(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], _ *source) {
		p := openPeers(t, 2, client, o)
		before, h := newHeldScan(), newHeldScan()
		close(before.end)
		require.NoError(t, await(t, before.build(t.Context(), p[0]), "a filter from before").err)

		ctx, cancel := context.WithCancel(t.Context())
		first := h.build(ctx, p[0])
		await(t, h.begun, "the scan begins")
		second := h.build(t.Context(), p[1])
		waitsForLock(t, p[0].rdb, o.Name, 1)
		cancel()
		require.ErrorIs(t, await(t, first, "the build").err, context.Canceled)
		await(t, h.begun, "the other's scan begins")
		close(h.end)
		b := await(t, second, "the other's build")
		require.NoError(t, b.err)
		require.False(t, b.report.Adopted)
		require.EqualValues(t, 1, b.report.Rows)
	})
}

// Race: 1. A builds. 2. Redis loses A's lock. 3. B builds and stores. 4. A notices that the lock is lost: its build ends
// and nothing of it stands, while B's is believed. Broken by: buildShared without the lock's context.
func TestBuilderThatLostItsLockStoresNothing(t *testing.T) {
	t.Parallel()
	onForms(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], _ *source) {
		p := openPeers(t, 2, client, o)
		h := newHeldScan()
		lost := make(chan built, 1)
		go func() {
			report, err := p[0].BuildFilter(t.Context(), func(yield func(string, error) bool) {
				h.begun <- struct{}{}
				for yield("old", nil) { // a scan without an end: only the build's own context ends it
				}
			}, bloom.BuildOptions{RowsPerSecond: 1000})
			lost <- built{report, err}
		}()
		await(t, h.begun, "the scan begins")
		require.NoError(t, p[0].rdb.Del(t.Context(), "tc::lock:{"+o.Name+"}").Err())
		close(h.end)
		require.NoError(t, await(t, h.build(t.Context(), p[1]), "the other's build").err)
		require.ErrorIs(t, await(t, lost, "the build that lost its lock").err, rebuild.ErrLeaseLost)
		eventually(t, func() bool { return p[0].Stats().FilterRows > 0 }, "the other's filter was fetched")
		requireAbsent(t, p[0], "none")
		requireAbsent(t, p[0], "old")
		require.EqualValues(t, 2, p[0].Stats().Filtered)
	})
}

// pagesOf is a scan of a source in the order of its keys, so many to a page.
func pagesOf(s *source, size int) func(context.Context, string) ([]string, string, error) {
	return func(_ context.Context, after string) (keys []string, next string, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, key := range slices.Sorted(maps.Keys(s.rows)) {
			if key <= after {
				continue
			}
			if len(keys) == size {
				return keys, keys[size-1], nil
			}
			keys = append(keys, key)
		}
		return keys, "", nil
	}
}

// Race: 1. A builds, and its scan passes the place of a row. 2. A stores a checkpoint. 3. The row is announced by a third process, and commits.
// 4. A's scan is cut off. 5. The process that waits for the lock goes on from A's checkpoint, without the pages in it. No process
// calls the row absent, and everything in Redis has an expiry.
func TestBuildThatWasCutOffIsGoneOnWithByAnotherProcess(t *testing.T) {
	onForms(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], s *source) {
		name := o.Name
		s.remove("row")
		for i := 10; i < 30; i++ {
			s.write(strconv.Itoa(i), "row")
		}
		p := openPeers(t, 3, client, o)
		begun, cut, lost := make(chan struct{}), make(chan struct{}), errors.New("connection lost")
		first, second := make(chan built, 1), make(chan built, 1)
		go func() {
			report, err := p[0].BuildFilterFrom(t.Context(), func(ctx context.Context, after string) ([]string, string, error) {
				if after == "19" {
					close(begun)
					<-cut
					return nil, "", lost
				}
				return pagesOf(s, 2)(ctx, after)
			}, bloom.BuildOptions{Checkpoint: 1})
			first <- built{report, err}
		}()
		await(t, begun, "the scan is in its middle")
		var asked []string
		go func() {
			report, err := p[1].BuildFilterFrom(t.Context(), func(ctx context.Context, after string) ([]string, string, error) {
				asked = append(asked, after)
				return pagesOf(s, 2)(ctx, after)
			}, bloom.BuildOptions{Expected: 20})
			second <- built{report, err}
		}()
		waitsForLock(t, p[0].rdb, name, 1)
		requireAllExpire(t, p[0].rdb, name)
		require.NoError(t, p[2].Announce(t.Context(), "1"))
		s.write("1", "row") // before every place of the scan
		close(cut)
		require.ErrorIs(t, await(t, first, "the build that is cut off").err, lost)
		b := await(t, second, "the build that goes on")
		require.NoError(t, b.err)
		require.False(t, b.report.Adopted)
		require.NotZero(t, b.report.Resumed)
		require.EqualValues(t, 20, b.report.Rows, "the one that was announced is not among those that were read")
		require.NotContains(t, asked, "")
		for _, p := range p {
			eventually(t, func() bool { return p.Stats().FilterRows > 0 }, "it has the filter")
			requireAbsent(t, p, "none")
			require.NotZero(t, p.Stats().Filtered)
			requireGet(t, p, "1", "row")
			for i := 10; i < 30; i++ {
				requireGet(t, p, strconv.Itoa(i), "row")
			}
		}
		requireAllExpire(t, p[0].rdb, name)
		left, err := p[0].rdb.Exists(t.Context(), "{tc:"+name+":filter}:unfinished").Result()
		require.NoError(t, err)
		require.Zero(t, left, "nothing is left of it")
		building, err := p[0].rdb.HMGet(t.Context(), headKey(name), "building", "builder", "left").Result()
		require.NoError(t, err)
		require.Equal(t, []any{nil, nil, nil}, building)
	})
}

// Close ends a build under way, also one that waits for the lock, with ErrClosed; no goroutine stays. Broken by: buildShared without
// untilClosed.
func TestCloseEndsABuild(t *testing.T) {
	onForms(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string], _ *source) {
		p := openPeers(t, 2, client, o)
		h, scanning := newHeldScan(), make(chan built, 1)
		go func() {
			_, err := p[0].BuildFilter(t.Context(), func(yield func(string, error) bool) {
				h.begun <- struct{}{}
				for i := 0; yield(strconv.Itoa(i), nil); i++ {
				}
			}, bloom.BuildOptions{RowsPerSecond: 10_000})
			scanning <- built{err: err}
		}()
		await(t, h.begun, "the scan begins")
		waiting := h.build(t.Context(), p[1])
		waitsForLock(t, p[0].rdb, o.Name, 1)
		require.NoError(t, p[1].Close())
		require.ErrorIs(t, await(t, waiting, "the build that waits").err, tiercache.ErrClosed)
		require.NoError(t, p[0].Close())
		require.ErrorIs(t, await(t, scanning, "the build under way").err, tiercache.ErrClosed)
	})
}

// busySpace is a Space in which another row is announced each time that the announcements are read, as far as busy goes: faster than anybody asks.
type busySpace struct {
	*layers.Space
	busy, reads int
}

func (s *busySpace) read(ctx context.Context) error {
	if s.reads++; s.reads >= s.busy {
		return nil
	}
	return s.AppendAnnounced(ctx, "row "+strconv.Itoa(s.reads))
}

func (s *busySpace) Announced(ctx context.Context, cursor string) ([]string, []time.Duration, string, bool, error) {
	keys, lags, next, whole, err := s.Space.Announced(ctx, cursor)
	return keys, lags, next, whole, errors.Join(err, s.read(ctx))
}

func (s *busySpace) AnnouncedUntil(ctx context.Context, cursor string) ([]string, []time.Duration, string, bool, bool, error) {
	keys, lags, next, end, whole, err := s.Space.AnnouncedUntil(ctx, cursor)
	return keys, lags, next, end, whole, errors.Join(err, s.read(ctx))
}

// P6, P7: rows are announced faster than the announcements can be read one question after the other, as where Redis is slow. Whoever reads them ends
// all the same: a build, a process that fetches the filter, and the chores of one that has it, behind which invalidations wait that Redis is owed; and the
// filter is believed, and has every row that was announced before it was brought up to date.
// Broken by: in announcedUntil, no AnnouncedUntil; in Space.AnnouncedUntil, an end that is always reached.
func TestReadingAnnouncementsEndsHoweverFastTheyCome(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		name, rdb := redistest.Name(t), client(t)
		shared, err := layers.NewRedis(t.Context(), rdb, layers.RedisOptions{WriteTimeout: 10 * time.Second})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, shared.Close()) })
		space, err := shared.Open(layers.SpaceOptions{Name: name, Window: time.Second, LeaseTime: time.Second, PendTime: time.Second})
		require.NoError(t, err)
		t.Cleanup(space.Close)
		st := &busySpace{Space: space, busy: 50}
		ended := func(what string) {
			t.Helper()
			require.Less(t, st.reads, st.busy, what)
			st.reads = 0
		}
		rows := func(yield func(string, error) bool) { yield("row", nil) }
		o := bloom.Options{Capacity: 5000, FalsePositiveRate: 1e-9}

		g, err := bloom.NewGuard(o)
		require.NoError(t, err)
		_, err = g.Build(t.Context(), rows, bloom.BuildOptions{}, st)
		require.NoError(t, err)
		ended("a build")
		other, err := bloom.NewGuard(o)
		require.NoError(t, err)
		require.NoError(t, other.Adopt(t.Context(), st))
		ended("who fetches it")
		many := make([]string, 2500) // several pages
		for i := range many {
			many[i] = "many " + strconv.Itoa(i)
		}
		require.NoError(t, space.AppendAnnounced(t.Context(), many...))
		require.NoError(t, g.CatchUp(t.Context(), st))
		ended("who has it")
		for _, key := range slices.Concat(many, []string{"row", "row 1"}) {
			require.False(t, g.Absent(key), key)
		}
		require.True(t, g.Believed())

		if redistest.Shared(t).Embedded() {
			return // it cannot read bits
		}
		o.Form = bloom.InRedis
		s, err := bloom.NewSharedGuard(o, st)
		require.NoError(t, err)
		t.Cleanup(s.Close)
		_, err = s.Build(t.Context(), rows, bloom.BuildOptions{})
		require.NoError(t, err)
		ended("a build in Redis")
		keys := slices.Concat(many, []string{"row", "row 1"})
		for i, absent := range s.Absent(t.Context(), keys...) {
			require.False(t, absent, keys[i])
		}
	})
}
