package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
)

// readOften reads a key ten thousand times a second of virtual time, until that is over, and lets see each answer.
func readOften(t *testing.T, c *tiercache.Cache[string, string], key string, d time.Duration, see func(e tiercache.Entry[string])) {
	t.Helper()
	for range d / (10 * time.Millisecond) {
		for range 100 {
			e, err := c.GetEntry(t.Context(), key)
			require.NoError(t, err)
			see(e)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// A hot key is rebuilt before its value's soft end: while it is read, nobody waits for the source, which takes half a second, and nobody meets a
// value past its end. A key that is not hot is left to its readers. Broken by: Beat without refresh (readers meet stale values); refresh for
// every key of which memory has a copy.
func TestHotKeyIsRebuiltAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"hot": "v", "cold": "v"})
		var cold atomic.Int64
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = 10 * time.Second })
		_, err := c.Get(t.Context(), "hot")
		require.NoError(t, err)
		s.before(func(_ context.Context, key string) error {
			if key == "cold" {
				cold.Add(1)
			}
			<-time.After(500 * time.Millisecond)
			return nil
		})
		_, err = c.Get(t.Context(), "cold")
		require.NoError(t, err)
		began := time.Now()
		readOften(t, c, "hot", 50*time.Second, func(e tiercache.Entry[string]) {
			if e.Stale || e.Tier != tiercache.Memory {
				t.Fatalf("after %v an answer of %v, age %v, stale %v: want fresh ones from memory", time.Since(began), e.Tier, e.Age, e.Stale)
			}
		})
		require.Equal(t, 50*time.Second, time.Since(began), "nobody waited")
		loads := s.loads.Load() - 1 - cold.Load()
		require.GreaterOrEqual(t, loads, int64(5), "in 50 s, each 8 s to 9 s after the last")
		require.LessOrEqual(t, loads, int64(6))
		require.Equal(t, uint64(loads), c.Stats().RefreshesAhead)
		require.Equal(t, uint64(1), c.Stats().HotKeys)
		require.Equal(t, int64(1), cold.Load(), "what nobody asks for is not loaded again")
		top := c.HotKeys(1)
		require.Equal(t, "hot", top[0].Key)
		require.True(t, top[0].Hot)
	})
}

// A rebuild ahead that fails is tried once a life: readers go on with the value that they have, and never learn of it. Broken by: due without
// tried (the source is asked at each beat until the value's end).
func TestFailedRebuildAheadLeavesTheValueAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"hot": "v"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = 10 * time.Second })
		_, err := c.Get(t.Context(), "hot")
		require.NoError(t, err)
		s.before(func(context.Context, string) error { return errors.New("down") })
		readOften(t, c, "hot", 9900*time.Millisecond, func(e tiercache.Entry[string]) {
			if e.Stale || e.Tier != tiercache.Memory {
				t.Fatalf("an answer of %v, stale %v: want the value", e.Tier, e.Stale)
			}
		})
		require.Equal(t, int64(2), s.loads.Load(), "the first, and one try ahead")
		require.Zero(t, c.Stats().RefreshesAhead)
	})
}

// A key that is read often among many others stays in memory that is far too small for them: after three seconds the source is asked for it no
// more, though thirty other keys are read between two of its reads and memory has room for twelve. Broken
// by: Pin left out of Heat and of Beat (then nothing is pinned; the policy alone keeps the key here too).
func TestHotKeyStaysInMemoryThatIsFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSource(nil)
		row := strings.Repeat("v", 10<<10)
		var ofHot atomic.Int64
		var heard atomic.Int32
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Load = func(_ context.Context, key string) (string, error) {
				if key == "hot" {
					ofHot.Add(1)
				}
				return row, nil
			}
			o.MemoryBytes = 128 << 10
			o.Hooks = &tiercache.Hooks{Hot: func(_ uint64, hot bool, rate float64) {
				if hot && rate > 100 {
					heard.Add(1)
				}
			}}
		})
		other := 0
		read := func(d time.Duration) {
			for range d / (4 * time.Millisecond) {
				_, err := c.Get(t.Context(), "hot")
				require.NoError(t, err)
				for range 30 {
					other++
					_, err = c.Get(t.Context(), fmt.Sprint(other))
					require.NoError(t, err)
				}
				<-time.After(4 * time.Millisecond)
			}
		}
		read(3 * time.Second)
		before := ofHot.Load()
		require.Equal(t, int32(1), heard.Load(), "Hooks.Hot is told of it, and of no other")
		read(time.Second)
		require.LessOrEqual(t, ofHot.Load()-before, int64(1))
		require.Equal(t, uint64(1), c.Stats().HotPinned)
	})
}

// A key that memory answers from its first read on is hot within two seconds, at 200 reads a second of 400, which come in turn with those of 200
// other keys: though no more of them leaves memory, it is pinned and will be rebuilt ahead. Broken by: memoryHit without Answered.
func TestKeyThatMemoryAnswersFromTheStartIsHot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := map[string]string{"hot": "v"}
		for i := range 200 {
			keys[fmt.Sprint(i)] = "v"
		}
		c := openAlone(t, newSource(keys), nil)
		for key := range keys {
			_, err := c.Get(t.Context(), key)
			require.NoError(t, err)
		}
		<-time.After(10 * time.Second)
		loads := c.Stats().Loads
		for i := range 400 {
			for _, key := range []string{"hot", fmt.Sprint(i % 200)} {
				_, err := c.Get(t.Context(), key)
				require.NoError(t, err)
			}
			<-time.After(5 * time.Millisecond)
		}
		require.Equal(t, loads, c.Stats().Loads, "memory answered all")
		top := c.HotKeys(1)
		require.NotEmpty(t, top)
		require.Equal(t, "hot", top[0].Key)
		require.True(t, top[0].Hot)
		require.EqualValues(t, 1, c.Stats().HotKeys)
		require.EqualValues(t, 1, c.Stats().HotPinned)
	})
}

// One process of the fleet rebuilds a hot key ahead, the others are given what it stored before their own copy ends, and no reader waits for
// Redis; what is loaded ahead while the key is invalidated is kept nowhere (P2). Broken by: judge without pastAhead (nobody rebuilds it), and
// without naming what is replaced (each finds it again: nobody either); claim without its lease being revoked is TestStorm's.
func TestOneProcessRebuildsAHotKeyAhead(t *testing.T) {
	t.Parallel()
	onRedis(t, func(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
		s := newSource(map[string]string{"k": "old"})
		o := options(t.Name(), s)
		o.TTL, o.MemoryTTL, o.RefreshAhead = 150*time.Second, 150*time.Second, 0.01 // ahead: from 1.5 s on
		var fleet []*process
		var beats []func()
		for range 3 {
			p := openProcess(t, client(t), o)
			get(t, p, "old")
			fleet, beats = append(fleet, p), append(beats, tiercache.HeatForTest(p.Cache, "k"))
		}
		s.write("k", "new") // unnoticed: only who loads again sees it
		news := map[*process]bool{}
		require.Eventually(t, func() bool {
			for i, p := range fleet {
				if e, err := p.GetEntry(t.Context(), "k"); err != nil || e.Stale || e.Tier != tiercache.Memory {
					return false // a reader waited; seen below
				} else if e.Value == "new" {
					news[p] = true
				} else {
					beats[i]()
				}
			}
			return len(news) == len(fleet)
		}, 20*time.Second, 5*time.Millisecond)
		require.Equal(t, int64(2), s.loads.Load(), "the first, and one ahead for all")

		loading, goOn := make(chan struct{}), make(chan struct{})
		s.after(func(string) {
			s.after(nil)
			close(loading)
			<-goOn
		})
		require.Eventually(t, func() bool {
			beats[0]()
			select {
			case <-loading:
				return true
			default:
				return false
			}
		}, 20*time.Second, 5*time.Millisecond)
		s.write("k", "newest")
		require.NoError(t, fleet[1].Invalidate(t.Context(), "k"))
		close(goOn)
		get(t, fleet[1], "newest")
		require.NoError(t, fleet[0].Close()) // waits for what it loads
		get(t, fleet[1], "newest")
		require.Eventually(t, func() bool { // the event is on its way
			v, err := fleet[2].Get(t.Context(), "k")
			return err == nil && v == "newest"
		}, 20*time.Second, time.Millisecond)
		get(t, openProcess(t, client(t), o), "newest")
	})
}

// P7: Redis does not answer the acquire of a rebuild ahead. Who joined it, since the copy ended meanwhile, is not told of that: the source is well.
// Broken by: errGaveWay left out where a rebuild ahead ends with errShared.
func TestGetThatJoinsARebuildAheadIsNotToldOfRedis(t *testing.T) {
	t.Parallel()
	s := newSource(map[string]string{"k": "row"})
	o := lasting(t.Name(), s)
	o.TTL, o.MaxStale, o.RefreshAhead = time.Second, -1, 0.5
	rdb := redistest.Shared(t).Client(t)
	teach(t, rdb)
	p := openHasty(t, rdb, o)
	warm(t, p)
	beat := tiercache.HeatForTest(p.Cache, "k")
	requireGet(t, p, "k", "row")
	asking, answer := p.wire.hold(t, before, "acquire")
	defer answer()
	eventually(t, func() bool {
		beat()
		select {
		case <-asking: // to rebuild it ahead; for a reader, if the machine stood still until the copy had ended
			return true
		default:
			_, _ = p.Get(t.Context(), "k")
			return false
		}
	}, "it is rebuilt ahead")
	eventually(t, func() bool {
		e, err := p.GetEntry(t.Context(), "k")
		require.NoError(t, err)
		return e.Tier != tiercache.Memory
	}, "the copy has ended")
}

func get(t *testing.T, p *process, want string) {
	t.Helper()
	v, err := p.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, want, v)
}
