package tiercache_test

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// inRedis is a filter in Redis that lets as good as no absent key pass.
var inRedis = bloom.Options{Capacity: 1000, FalsePositiveRate: 1e-9, Form: bloom.InRedis}

// needSegments skips a test on the embedded server, which cannot read bits.
func needSegments(t *testing.T) {
	t.Helper()
	if redistest.Shared(t).Embedded() {
		t.Skip("the embedded server has no BITFIELD_RO")
	}
}

// segmentKeys are the keys of all segments of the cache of this name, of whichever filter.
func segmentKeys(t *testing.T, rdb redis.UniversalClient, name string) []string {
	t.Helper()
	var mu sync.Mutex
	var keys []string
	masters(t, rdb, func(ctx context.Context, node *redis.Client) error {
		all := node.Scan(ctx, 0, "tc:"+name+":filter:*", 10_000).Iterator()
		for all.Next(ctx) {
			if !strings.HasSuffix(all.Val(), ":new") {
				mu.Lock()
				keys = append(keys, all.Val())
				mu.Unlock()
			}
		}
		return all.Err()
	})
	return keys
}

func headKey(name string) string { return "{tc:" + name + ":filter:new}:segments" }

// The filter in Redis that one process built answers for all of them, by one more round trip each time and for many keys together; a row
// that was announced is found by every process at once, no event needed; what the filter says is kept in neither tier, and everything that it has
// in Redis has an expiry.
func TestFilterInRedisAnswersForEveryProcess(t *testing.T) {
	needSegments(t)
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(map[string]string{"k": "row", "j": "row"}), redistest.Name(t)
		o := lasting(name, s)
		o.Filter, o.FilterAudit = inRedis, -1
		p := openPeers(t, 3, client, o)
		requireAbsent(t, p[0], "nobody")
		require.EqualValues(t, 1, s.loads.Load(), "none is built: the source is asked")
		require.NoError(t, p[1].Announce(t.Context(), "early"))
		buildFilter(t, s, p)
		for _, p := range p {
			require.EqualValues(t, 2, p.Stats().FilterRows)
			require.EqualValues(t, 64, p.Stats().FilterSegments)
			for n := range 3 {
				p.wire.reset()
				requireAbsent(t, p, "no one")
				require.EqualValues(t, n+1, p.Stats().Filtered)
				require.Equal(t, 1, p.wire.count("bitfield_ro"), "no tier answers it")
			}
			p.wire.reset()
			found, err := p.GetMany(t.Context(), []string{"no one", "k", "none", "null"})
			require.NoError(t, err)
			require.Equal(t, map[string]string{"k": "row"}, found)
			require.EqualValues(t, 6, p.Stats().Filtered)
			require.Equal(t, 1, p.wire.count("hget"), "one question for all")
			require.Zero(t, ttl(t, p.rdb, valueKey(name, "no one"))+2, "nothing stands in Redis")
		}
		for i, by := range p {
			key := "new" + strconv.Itoa(i)
			require.NoError(t, by.Announce(t.Context(), key))
			s.write(key, "row")
			for _, p := range p {
				requireGet(t, p, key, "row")
			}
		}
		s.write("early", "row")
		requireGet(t, p[0], "early", "row") // announced before the build, inserted behind its back

		require.Len(t, segmentKeys(t, p[0].rdb, name), 64)
		seen := requireAllExpire(t, p[0].rdb, name)
		require.True(t, seen["segments"] && seen["63"], "the head and the segments were looked at: %v", seen)
		buildFilter(t, s, p)
		for _, p := range p {
			requireAbsent(t, p, "no one")
			requireGet(t, p, "new0", "row")
		}
		requireAllExpire(t, p[0].rdb, name)
	})
}

// unbelieved fails unless every absent key reaches the source.
func unbelieved(t *testing.T, p *peer, s *source, why string) {
	t.Helper()
	for i := range 20 {
		before := s.loads.Load()
		requireAbsent(t, p, fmt.Sprintf("%s %d", why, i))
		require.Equal(t, before+1, s.loads.Load(), why)
	}
}

// The trap of bitmaps in Redis: what is missing answers 0, which would be "no such row". Here nothing that Redis lost, or never had, makes a
// row absent: no filter built, one segment deleted, damaged or of another type, the head deleted, everything flushed, also when later announcements
// come to what was lost. The other segments go on, and how many are lost can be seen. SCRIPT FLUSH does no harm.
func TestFilterInRedisSaysNothingOfWhatRedisLost(t *testing.T) {
	t.Parallel()
	needSegments(t)
	server := redistest.Start(t)
	s, name := newSource(nil), redistest.Name(t)
	for i := range 300 {
		s.write("row"+strconv.Itoa(i), "row")
	}
	o := lasting(name, s)
	o.Filter, o.FilterAudit, o.MemoryTTL, o.AbsentTTL = inRedis, -1, -1, -1
	p := openPeer(t, server.Client(t), o)
	unbelieved(t, p, s, "never built")
	allFound := func(why string) {
		t.Helper()
		for i := range 300 {
			got, err := p.Get(t.Context(), "row"+strconv.Itoa(i))
			require.NoError(t, err, "%s: row %d", why, i)
			require.Equal(t, "row", got)
		}
	}
	build := func() {
		t.Helper()
		require.NoError(t, p.Clear(t.Context()))
		buildFilter(t, s, []*peer{p})
		requireAbsent(t, p, "nobody")
		require.NotZero(t, p.Stats().Filtered)
	}
	for _, harm := range []struct {
		why string
		do  func(key string) error
	}{
		{"deleted", func(key string) error { return p.rdb.Del(t.Context(), key).Err() }},
		{"cut short", func(key string) error { return p.rdb.Set(t.Context(), key, "short", time.Hour).Err() }},
		{"damaged", func(key string) error { return p.rdb.SetRange(t.Context(), key, 9, "xx").Err() }},
		{"of another type", func(key string) error {
			return p.rdb.Eval(t.Context(), "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 1)", []string{key}).Err()
		}},
	} {
		build()
		keys := segmentKeys(t, p.rdb, name)
		hurt := ""
		for _, key := range keys {
			if strings.HasSuffix(key, ":17") && ttl(t, p.rdb, key) > time.Hour.Milliseconds() { // of the filter that is asked
				hurt = key
			}
		}
		require.NotEmpty(t, hurt)
		require.NoError(t, harm.do(hurt))
		filtered := p.Stats().Filtered
		const asked = 1500 // so many that some are of each segment
		for i := range asked {
			requireAbsent(t, p, harm.why+strconv.Itoa(i))
		}
		passed := asked - (p.Stats().Filtered - filtered)
		require.Positive(t, passed, "%s: its keys pass", harm.why)
		require.Less(t, passed, uint64(asked/5), "%s: the others go on", harm.why)
		eventually(t, func() bool { return p.Stats().FilterUnknown == 1 }, "%s is seen", harm.why)
		for i := range 300 {
			require.NoError(t, p.Announce(t.Context(), "row"+strconv.Itoa(i)), "%s: what is there is announced to", harm.why)
		}
		require.NoError(t, p.Clear(t.Context()))
		allFound(harm.why)
	}
	build()
	server.ScriptFlush()
	require.NoError(t, p.Announce(t.Context(), "row0"))
	requireAbsent(t, p, "nobody")
	allFound("SCRIPT FLUSH")

	require.NoError(t, p.rdb.Del(t.Context(), headKey(name)).Err())
	unbelieved(t, p, s, "no head")
	build()
	server.FlushAll()
	unbelieved(t, p, s, "flushed")
	require.NoError(t, p.Announce(t.Context(), "row0"))
	unbelieved(t, p, s, "flushed and announced to")
	allFound("flushed")
}

// Race: 1. A reader knows the filter. 2. Redis loses the head, or the fleet moves to another filter, and the reader has not heard. 3. A row is announced:
// its bits go into nothing that the reader asks. 4. The insert commits. 5. The reader asks. It must not say "absent" by the filter it knows.
func TestReaderOfAFilterThatIsNotServedSaysNothing(t *testing.T) {
	t.Parallel()
	needSegments(t)
	onDoors(t, func(t *testing.T, client func(*testing.T, *door) redis.UniversalClient) {
		s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
		o := lasting(name, s)
		o.Filter, o.FilterAudit, o.FilterFirst = inRedis, -1, true // else the marker would let it pass
		var d door
		writer, reader := openPeer(t, client(t, new(door)), o), openPeer(t, client(t, &d), o)
		buildFilter(t, s, []*peer{writer, reader})
		requireAbsent(t, reader, "new")
		stands, resume := reader.wire.hold(t, before, "segments")
		await(t, stands, "it is about to look which filter is served")
		require.NoError(t, writer.rdb.Del(t.Context(), headKey(name)).Err())
		require.NoError(t, writer.Announce(t.Context(), "new"))
		s.write("new", "row")
		requireGet(t, reader, "new", "row")
		resume()

		buildFilter(t, s, []*peer{writer, reader})
		requireAbsent(t, reader, "newer")
		stands, resume = reader.wire.hold(t, before, "segments")
		await(t, stands, "again")
		for range 2 { // the second time the filter that it knows is not even the old one
			_, err := writer.BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
			require.NoError(t, err)
		}
		require.NoError(t, writer.Announce(t.Context(), "newer"))
		s.write("newer", "row")
		requireGet(t, reader, "newer", "row")
		resume()
	})
}

// Race: 1. A builder fills a segment. 2. Redis loses the segment, or what it had last acknowledged of it, as a replica that takes over. 3. The builder
// goes on and calls it complete. The build fails instead, and the filter before it stays in force.
func TestBuildEndsWhenRedisLosesAPartOfIt(t *testing.T) {
	needSegments(t)
	server := redistest.Shared(t)
	for _, harm := range []string{"lost", "older"} {
		t.Run(harm, func(t *testing.T) {
			s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
			o := lasting(name, s)
			o.Filter, o.FilterAudit = inRedis, -1
			p := openPeer(t, server.Client(t), o)
			buildFilter(t, s, []*peer{p})
			served, _ := p.rdb.HGet(t.Context(), headKey(name), "serving").Result()
			before := segmentKeys(t, p.rdb, name)
			rows := func(yield func(string, error) bool) {
				key, older := "", ""
				for i := range 30_000 { // several times as many as are sent together
					switch i {
					case 10_000:
						for _, k := range segmentKeys(t, p.rdb, name) {
							if !strings.HasPrefix(k, before[0][:strings.LastIndex(before[0], ":")]) {
								key = k
							}
						}
						older = p.rdb.Dump(t.Context(), key).Val()
						require.NotEmpty(t, older)
					case 20_000:
						require.NoError(t, p.rdb.Del(t.Context(), key).Err())
						if harm == "older" {
							require.NoError(t, p.rdb.Restore(t.Context(), key, time.Hour, older).Err())
						}
					}
					if !yield("row"+strconv.Itoa(i), nil) {
						return
					}
				}
			}
			_, err := p.BuildFilter(t.Context(), rows, bloom.BuildOptions{})
			require.ErrorIs(t, err, bloom.ErrSegmentLost)
			after, err := p.rdb.HGet(t.Context(), headKey(name), "serving").Result()
			require.NoError(t, err)
			require.Equal(t, served, after)
			requireAbsent(t, p, "nobody")
			require.EqualValues(t, 1, p.Stats().Filtered)
		})
	}
}

// While Redis hangs, and where segments may not be read, a Get goes to the source, no longer than the budget later; afterwards the filter answers again.
func TestGetPassesAFilterInRedisThatCannotBeAsked(t *testing.T) {
	needSegments(t)
	server := redistest.Start(t)
	s, name := newSource(map[string]string{"k": "row", "j": "row"}), redistest.Name(t)
	admin := server.Client(t)
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "reader", "on", ">secret", "~*", "&*", "+@all").Err())
	var failed atomic.Int64
	o := lasting(name, s)
	o.Filter, o.FilterAudit, o.FilterFirst = inRedis, -1, true
	o.Hooks = &tiercache.Hooks{SharedError: func(op string, _ error) {
		if op == "filter" {
			failed.Add(1)
		}
	}}
	shared, err := layers.NewRedis(t.Context(), server.Client(t, func(o *redis.Options) { o.Username, o.Password = "reader", "secret" }), layers.RedisOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shared.Close()) })
	o.Shared = shared
	c, err := tiercache.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = c.BuildFilter(t.Context(), rowsOf(s), bloom.BuildOptions{})
	require.NoError(t, err)
	absent := func() bool {
		before := s.loads.Load()
		_, err := c.Get(t.Context(), "nobody"+strconv.FormatInt(before, 10)+strconv.FormatUint(c.Stats().Filtered, 10))
		require.ErrorIs(t, err, tiercache.ErrNotFound)
		return s.loads.Load() == before
	}
	eventually(t, absent, "the filter answers")

	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "reader", "-bitfield_ro").Err())
	require.False(t, absent(), "not allowed to read")
	eventually(t, func() bool { return failed.Load() > 0 }, "it is told")
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "reader", "+bitfield_ro").Err())
	eventually(t, absent, "allowed again")

	server.Stop()
	got, err := c.Get(t.Context(), "k")
	server.Continue()
	require.NoError(t, err)
	require.Equal(t, "row", got)
	eventually(t, absent, "it answers again")
}

// A filter in Redis that one process doubts says nothing there from that moment on, and nothing in any process soon after, nor in one that starts
// later, until another is built.
func TestDoubtedFilterInRedisIsAskedByNobody(t *testing.T) {
	needSegments(t)
	s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
	o := lasting(name, s)
	o.Filter, o.FilterAudit = inRedis, -1
	server := redistest.Shared(t)
	p := openPeers(t, 2, func(t *testing.T) redis.UniversalClient { t.Helper(); return server.Client(t) }, o)
	buildFilter(t, s, p)
	for _, p := range p {
		requireAbsent(t, p, "nobody")
		require.EqualValues(t, 1, p.Stats().Filtered)
	}
	tiercache.DoubtForTest(p[0].Cache)
	require.EqualValues(t, bloom.Doubted, p[0].Stats().FilterState)
	require.EqualValues(t, 1, p[0].Stats().FilterDue)
	unbelieved(t, p[0], s, "doubted here")
	eventually(t, func() bool { return p[1].Stats().FilterState == uint64(bloom.Unbuilt) }, "the other has heard")
	unbelieved(t, p[1], s, "doubted elsewhere")
	late := openPeer(t, server.Client(t), o)
	unbelieved(t, late, s, "started later")
	require.EqualValues(t, 1, p[0].Stats().Filtered, "and the doubt stays")
	buildFilter(t, s, append(p, late))
	for _, p := range append(p, late) {
		requireAbsent(t, p, "no one")
		require.NotZero(t, p.Stats().Filtered)
	}
}

// On a real server a full filter in Redis lets no more absent keys pass than was asked for, and not far fewer: its segments have room for a share of
// the keys that is greater than the mean.
func TestFilterInRedisPassesAsManyAsAsked(t *testing.T) {
	needSegments(t)
	const rows, asked, rate = 10_000, 20_000, 0.01
	s := newSource(nil)
	for i := range rows {
		s.write("row"+strconv.Itoa(i), "row")
	}
	o := lasting(redistest.Name(t), s)
	o.Filter, o.FilterAudit, o.FilterFirst = bloom.Options{Capacity: rows, FalsePositiveRate: rate, Form: bloom.InRedis}, -1, true
	p := openPeer(t, redistest.Shared(t).Client(t), o)
	buildFilter(t, s, []*peer{p})
	before := p.Stats()
	for i := 0; i < asked; i += 1000 {
		keys := make([]string, 1000)
		for n := range keys {
			keys[n] = "none" + strconv.Itoa(i+n)
		}
		_, err := p.GetMany(t.Context(), keys)
		require.NoError(t, err)
	}
	after := p.Stats()
	require.EqualValues(t, asked, after.FilterAsked-before.FilterAsked)
	passed := asked - (after.Filtered - before.Filtered)
	require.Less(t, float64(passed), rate*asked+5*math.Sqrt(rate*asked), "five standard deviations more")
	require.Greater(t, float64(passed), 0.3*rate*asked)
	t.Logf("%d of %d passed", passed, asked)
}

// FilterAudit holds for a filter in Redis: at 1 it blocks nothing, in Get and in GetMany; a row that is announced between the filter's answer and its load
// is no fault; one that nobody announced makes the filter be asked by nobody, until another is built.
// Broken by: audits in filteredBy (the absent key is blocked); refuteShared without asking again (the announced row is a fault); Doubt in it.
func TestAuditOfAFilterInRedis(t *testing.T) {
	needSegments(t)
	s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
	o := lasting(name, s)
	o.Filter, o.FilterAudit, o.AbsentTTL = inRedis, 1, -1
	server := redistest.Shared(t)
	p := openPeers(t, 2, func(t *testing.T) redis.UniversalClient { t.Helper(); return server.Client(t) }, o)
	buildFilter(t, s, p)
	unbelieved(t, p[0], s, "shadow")
	got, err := p[0].GetMany(t.Context(), []string{"none 1", "none 2", "k"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"k": "row"}, got)
	require.Zero(t, p[0].Stats().Filtered)
	require.EqualValues(t, 22, p[0].Stats().FilterAudit)

	for i := range 5 {
		key := fmt.Sprint("announced meanwhile ", i)
		s.before(func(ctx context.Context, _ string) error {
			err := p[1].Announce(ctx, key)
			s.write(key, "row")
			return err
		})
		requireGet(t, p[0], key, "row")
		s.before(nil)
	}
	require.EqualValues(t, 27, p[0].Stats().FilterAudit)
	requireGet(t, p[0], "k", "row")

	s.write("unannounced", "row")
	requireGet(t, p[0], "unannounced", "row")
	eventually(t, func() bool { return p[0].Stats().FilterState == uint64(bloom.Doubted) }, "it is doubted")
	require.EqualValues(t, 1, p[0].Stats().FilterWrong)
	eventually(t, func() bool { return p[1].Stats().FilterState == uint64(bloom.Unbuilt) }, "the other has heard")
	buildFilter(t, s, p)
	require.EqualValues(t, bloom.Believed, p[1].Stats().FilterState)
	require.EqualValues(t, 1, p[0].Stats().FilterWrong)
}
