package layers

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// filterSpace opens the space of name on client, as one more process would.
func filterSpace(t *testing.T, client redis.UniversalClient, name string, e Events) *Space {
	t.Helper()
	r, err := NewRedis(t.Context(), client, RedisOptions{Prefix: "tcf", WriteTimeout: 2 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	s, err := r.Open(SpaceOptions{Name: name, Events: e})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// filterServers are what the store must work on.
var filterServers = map[string]func(t *testing.T) redis.UniversalClient{"one server": filterOneServer, "cluster": filterCluster}

func filterOneServer(t *testing.T) redis.UniversalClient {
	t.Helper()
	return redistest.Shared(t).Client(t)
}

func filterCluster(t *testing.T) redis.UniversalClient {
	t.Helper()
	return redistest.SharedCluster(t).Client(t)
}

// requireExpiry fails unless key is there and will be gone after more than least.
func requireExpiry(t *testing.T, client redis.UniversalClient, key string, least time.Duration) {
	t.Helper()
	left, err := client.PTTL(t.Context(), key).Result()
	require.NoError(t, err)
	require.Greater(t, left, least, "expiry of %q", key)
}

func randomBytes(n int) []byte {
	data := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data)
	return data
}

// requireNoParts fails if a part of a snapshot is left on any node.
func requireNoParts(t *testing.T, client redis.UniversalClient, s *Space) {
	t.Helper()
	look := func(ctx context.Context, c *redis.Client) error {
		keys, err := c.Keys(ctx, "*part:*").Result()
		for _, key := range keys {
			if strings.HasPrefix(key, s.filterPartKey("")) {
				return fmt.Errorf("%q is left", key)
			}
		}
		return err
	}
	if cluster, ok := client.(*redis.ClusterClient); ok {
		require.NoError(t, cluster.ForEachMaster(t.Context(), look))
		return
	}
	require.NoError(t, look(t.Context(), client.(*redis.Client)))
}

// save stores a snapshot that nothing newer is in the way of.
func save(t *testing.T, s *Space, generation uint64, cursor string, snapshot []byte) {
	t.Helper()
	stored, err := s.SaveFilter(t.Context(), generation, cursor, snapshot)
	require.NoError(t, err)
	require.True(t, stored)
}

// Of two snapshots the one whose build began later stands, in whatever order they arrive; the word that a filter is doubted takes the place of
// its generation and of those before, and of no later one; generations grow from one beginning to the next, also in one millisecond and when
// the stream was lost. Nothing that was refused stays in Redis. Broken by: the comparison in filterplace.lua; generation without the sequence.
func TestOlderFilterDoesNotReplaceANewerOne(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			s := filterSpace(t, client, redistest.Name(t), Events{})
			var generations []uint64
			for range 4 {
				_, generation, _, err := s.BeginFilter(t.Context(), time.Minute)
				require.NoError(t, err)
				generations = append(generations, generation)
			}
			require.IsIncreasing(t, generations)
			now, err := client.Time(t.Context()).Result()
			require.NoError(t, err)
			require.InDelta(t, now.UnixMilli(), generations[3]>>12, 60_000)

			try := func(i int, snapshot []byte) bool {
				t.Helper()
				stored, err := s.SaveFilter(t.Context(), generations[i], "c=k", snapshot)
				require.NoError(t, err)
				requireNoParts(t, client, s)
				return stored
			}
			stands := func(i int, doubted bool, why string) {
				t.Helper()
				generation, isDoubted, err := s.StandingFilter(t.Context())
				require.NoError(t, err, why)
				require.Equal(t, generations[i], generation, why)
				require.Equal(t, doubted, isDoubted, why)
				data, of, _, err := s.LoadFilter(t.Context())
				require.NoError(t, err, why)
				if doubted {
					require.Nil(t, data, why)
					return
				}
				require.Equal(t, strconv.Itoa(i), string(data), why)
				require.Equal(t, generations[i], of, why)
			}
			require.True(t, try(1, []byte("1")))
			require.False(t, try(0, []byte("0")))
			stands(1, false, "the newer one")
			require.False(t, try(0, nil))
			stands(1, false, "another one is doubted")
			require.True(t, try(1, nil))
			stands(1, true, "it is doubted")
			requireExpiry(t, client, s.filterKey(), 23*time.Hour)
			require.False(t, try(1, []byte("1")))
			stands(1, true, "not stored again")
			require.True(t, try(2, []byte("2")))
			stands(2, false, "a later one")
			require.True(t, try(3, nil))
			stands(3, true, "all up to a later one")
		})
	}
}

// Race: 1. The script that puts a snapshot into its place runs, but its answer is lost. 2. It is asked for again, or looked at. It is stored, once.
// Broken by: filterplace.lua without the comparison of tokens.
func TestFilterPlacedTwiceIsStored(t *testing.T) {
	s := filterSpace(t, redistest.Shared(t).Client(t), redistest.Name(t), Events{})
	head := filterHead{generation: 7, cursor: "c=k", length: 4, token: [16]byte{1}}
	part := s.filterPartKey("x")
	require.NoError(t, s.filterPiece(t.Context(), part, 0, append(head.bytes(), "data"...)))
	for range 2 {
		stored, err := s.filterPlace(t.Context(), s.filterKey(), part, head, filterLife)
		require.NoError(t, err)
		require.True(t, stored)
	}
	head.token[0]++
	_, err := s.filterPlace(t.Context(), s.filterKey(), part, head, filterLife)
	require.ErrorIs(t, err, ErrFilterLost)
}

// A snapshot of any length comes back whole with its cursor, the last one stored wins, both keys have an expiry and no part stays.
func TestFilterSnapshotComesBackWhole(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			s := filterSpace(t, client, redistest.Name(t)+"{:}", Events{})
			data, _, cursor, err := s.LoadFilter(t.Context())
			require.NoError(t, err)
			require.Nil(t, data, "nothing stored yet")
			require.Empty(t, cursor)
			stands, doubted, err := s.StandingFilter(t.Context())
			require.NoError(t, err)
			require.Zero(t, stands)
			require.False(t, doubted)

			start, generation, whole, err := s.BeginFilter(t.Context(), time.Minute)
			require.NoError(t, err)
			require.True(t, whole)
			for _, n := range []int{0, 1, filterChunk, 2*filterChunk + 12345, 77} {
				want := randomBytes(n)
				save(t, s, generation, start, want)
				var of uint64
				data, of, cursor, err = s.LoadFilter(t.Context())
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, data), "%d bytes", n)
				require.NotNil(t, data)
				require.Equal(t, start, cursor)
				require.Equal(t, generation, of)
			}
			requireNoParts(t, client, s)
			requireExpiry(t, client, s.filterKey(), 23*time.Hour)
			requireExpiry(t, client, s.filterStreamKey(), 23*time.Hour)
			require.NoError(t, client.PExpire(t.Context(), s.filterKey(), time.Minute).Err())
			require.NoError(t, client.PExpire(t.Context(), s.filterStreamKey(), time.Minute).Err())
			require.NoError(t, s.KeepFilter(t.Context()))
			requireExpiry(t, client, s.filterKey(), 23*time.Hour)
			requireExpiry(t, client, s.filterStreamKey(), 23*time.Hour)
		})
	}
}

// Storing a filter tells the other processes, not the one that stored it.
func TestStoredFilterIsHeardOfByOthers(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			name := redistest.Name(t)
			heard, ready := make(chan struct{}, 10), make(chan struct{}, 10)
			var own atomic.Int64
			s := filterSpace(t, client, name, Events{Filter: func() { own.Add(1) }})
			filterSpace(t, client, name, Events{Filter: func() { heard <- struct{}{} }, Hear: func() { ready <- struct{}{} }})
			<-ready
			save(t, s, 1, "1-0=k", []byte("filter"))
			<-heard
			require.Zero(t, own.Load())
		})
	}
}

// onCommand is a hook that calls f after each command of a name.
type onCommand struct {
	name string
	f    func()
}

func (h onCommand) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (h onCommand) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == h.name {
			h.f()
		}
		return err
	}
}

func (h onCommand) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if cmd.Name() == h.name {
				h.f()
			}
		}
		return err
	}
}

// Race: 1. A process reads the first piece of a snapshot. 2. Another stores a new one of the same length. 3. The first reads on. It
// gets one of the two, whole, with its own cursor: never a mixture.
func TestFilterReplacedWhileItIsReadIsReadAgain(t *testing.T) {
	server, name := redistest.Shared(t), redistest.Name(t)
	writer := filterSpace(t, server.Client(t), name, Events{})
	older, newer := bytes.Repeat([]byte{1}, 3*filterChunk), bytes.Repeat([]byte{2}, 3*filterChunk)
	save(t, writer, 1, "older=k", older)

	client := server.Client(t)
	pieces := 0
	client.AddHook(onCommand{"getrange", func() {
		if pieces++; pieces == 2 { // the head, then the first piece
			save(t, writer, 2, "newer=k", newer)
		}
	}})
	data, _, cursor, err := filterSpace(t, client, name, Events{}).LoadFilter(t.Context())
	require.NoError(t, err)
	require.Equal(t, "newer=k", cursor)
	require.True(t, bytes.Equal(newer, data), "whole")
}

// A snapshot that vanishes or is replaced again and again is an error or none, never a part of one.
func TestFilterThatVanishesWhileItIsReadIsNotAnswered(t *testing.T) {
	server, name := redistest.Shared(t), redistest.Name(t)
	writer := filterSpace(t, server.Client(t), name, Events{})
	save(t, writer, 1, "c=k", randomBytes(3*filterChunk))
	client, other := server.Client(t), server.Client(t)
	pieces := 0
	client.AddHook(onCommand{"getrange", func() {
		if pieces++; pieces == 2 {
			require.NoError(t, other.Del(t.Context(), writer.filterKey()).Err())
		}
	}})
	data, _, _, err := filterSpace(t, client, name, Events{}).LoadFilter(t.Context())
	require.NoError(t, err)
	require.True(t, data == nil, "%d bytes", len(data))
}

// Redis loses the growing part in the middle: storing fails, and what stood before still stands.
func TestFilterPartLostWhileItIsStoredIsNoSnapshot(t *testing.T) {
	server, name := redistest.Shared(t), redistest.Name(t)
	before := filterSpace(t, server.Client(t), name, Events{})
	save(t, before, 1, "c=k", []byte("before"))
	client, other := server.Client(t), server.Client(t)
	pieces := 0
	client.AddHook(onCommand{"setrange", func() {
		if pieces++; pieces != 2 {
			return
		}
		parts, err := other.Keys(t.Context(), "*part:*").Result()
		require.NoError(t, err)
		for _, key := range parts {
			if strings.HasPrefix(key, before.filterPartKey("")) {
				requireExpiry(t, other, key, time.Minute)
				require.NoError(t, other.Del(t.Context(), key).Err())
			}
		}
	}})
	_, err := filterSpace(t, client, name, Events{}).SaveFilter(t.Context(), 2, "d=k", randomBytes(2*filterChunk))
	require.ErrorIs(t, err, ErrFilterLost)
	data, _, _, err := before.LoadFilter(t.Context())
	require.NoError(t, err)
	require.Equal(t, "before", string(data))
}

// Anything else in the snapshot's place is an error, not "no rows" and not "no snapshot".
func TestForeignFilterIsAnError(t *testing.T) {
	client := redistest.Shared(t).Client(t)
	s := filterSpace(t, client, redistest.Name(t), Events{})
	later := filterHead{length: 5, cursor: "c=k"}.bytes()
	later[4]++
	long := filterHead{length: 1 << 40, cursor: "c=k"}.bytes()
	for _, value := range []string{"x", strings.Repeat("x", 200), string(later) + "12345", string(long), string(filterHead{length: 6}.bytes()) + "12345"} {
		require.NoError(t, client.Set(t.Context(), s.filterKey(), value, time.Minute).Err())
		_, _, _, err := s.LoadFilter(t.Context())
		require.ErrorIs(t, err, ErrFilterForeign, "%.20q", value)
		_, _, err = s.StandingFilter(t.Context())
		require.ErrorIs(t, err, ErrFilterForeign, "%.20q", value)
	}
	require.NoError(t, client.Del(t.Context(), s.filterKey()).Err())
	require.NoError(t, client.LPush(t.Context(), s.filterKey(), "x").Err())
	_, _, _, err := s.LoadFilter(t.Context())
	require.ErrorContains(t, err, "WRONGTYPE")
	require.ErrorIs(t, err, ErrFilterForeign)
	save(t, s, 1, "c=k", []byte("it is replaced"))
	require.NoError(t, client.Set(t.Context(), s.filterKey(), strings.Repeat("x", 200), time.Minute).Err())
	save(t, s, 1, "c=k", []byte("it is replaced"))
	_, err = s.SaveFilter(t.Context(), 1, strings.Repeat("c", filterCursorBytes+1), nil)
	require.Error(t, err, "a cursor that does not fit")
}

// readAnnounced reads everything from cursor on.
func readAnnounced(t *testing.T, s *Space, cursor string) (ids []string, next string) {
	t.Helper()
	for {
		page, _, next, whole, err := s.Announced(t.Context(), cursor)
		require.NoError(t, err)
		require.True(t, whole)
		ids = append(ids, page...)
		if next == cursor {
			return ids, next
		}
		cursor = next
	}
}

// Every announcement is read once it was appended, in order, whatever its bytes, over many pages; the one at the cursor may come
// again. Appending up to 1,000 and reading what is new are one round trip each.
func TestAnnouncementsAreReadInOrder(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			s := filterSpace(t, client, redistest.Name(t), Events{})
			cursor, _, whole, err := s.BeginFilter(t.Context(), time.Minute)
			require.NoError(t, err)
			require.True(t, whole)
			ids, next := readAnnounced(t, s, cursor)
			require.Empty(t, ids)
			require.Equal(t, cursor, next)

			want := []string{"", "{a}:b", "\x00\xff", strings.Repeat("long", 2048)}
			for i := range 2500 {
				want = append(want, strconv.Itoa(i))
			}
			require.NoError(t, s.AppendAnnounced(t.Context(), want...))
			require.NoError(t, s.AppendAnnounced(t.Context()))
			ids, next = readAnnounced(t, s, cursor)
			pages := make([]string, 0, len(want))
			for i, id := range ids { // without the cursor's own that each page repeats
				if i == 0 || id != ids[i-1] {
					pages = append(pages, id)
				}
			}
			require.Equal(t, want, pages)
			require.NoError(t, s.AppendAnnounced(t.Context(), "one more"))
			ids, _ = readAnnounced(t, s, next)
			require.Equal(t, []string{"2499", "one more", "one more"}, ids, "the page after it has only the cursor's own")
			require.ErrorIs(t, s.AppendAnnounced(t.Context(), strings.Repeat("x", MaxKeyBytes+1)), ErrKeyTooLong)
		})
	}
}

// What change feeds tell is read once, after the announcements before it, and never with the cursor's own entry.
// Broken by: Announced without i > 0; fedLag without the time since.
func TestFeedsAreReadOnce(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			s := filterSpace(t, open(t), redistest.Name(t), Events{})
			cursor, _, _, err := s.BeginFilter(t.Context(), time.Minute)
			require.NoError(t, err)
			require.NoError(t, s.AppendAnnounced(t.Context(), "row"))
			require.NoError(t, s.AppendFed(t.Context(), 1500*time.Millisecond))
			ids, lags, next, whole, err := s.Announced(t.Context(), cursor)
			require.NoError(t, err)
			require.True(t, whole)
			require.Equal(t, []string{"row"}, ids)
			require.Len(t, lags, 1)
			require.Less(t, (lags[0] - 1500*time.Millisecond).Abs(), time.Second)
			ids, lags, again, whole, err := s.Announced(t.Context(), next)
			require.NoError(t, err)
			require.True(t, whole)
			require.Equal(t, next, again)
			require.Empty(t, ids)
			require.Empty(t, lags)

			now, _ := s.fedClock.now()
			s.fedClock.heard(now - time.Minute.Milliseconds()) // as if the network had kept it so long
			require.NoError(t, s.AppendFed(t.Context(), 0))
			_, lags, _, _, err = s.Announced(t.Context(), next)
			require.NoError(t, err)
			require.Len(t, lags, 1)
			require.Less(t, (lags[0] - time.Minute).Abs(), time.Second, "a word that comes late says how late")
		})
	}
}

// The first announcement makes the stream, with an expiry: nobody has to have built a filter for it to be kept.
func TestAnnouncementBeforeAnyBuildIsKept(t *testing.T) {
	client := redistest.Shared(t).Client(t)
	s := filterSpace(t, client, redistest.Name(t), Events{})
	require.NoError(t, s.AppendAnnounced(t.Context(), "early"))
	requireExpiry(t, client, s.filterStreamKey(), 23*time.Hour)
	cursor, _, whole, err := s.BeginFilter(t.Context(), time.Minute)
	require.NoError(t, err)
	require.True(t, whole)
	ids, _ := readAnnounced(t, s, cursor)
	require.Contains(t, ids, "early")
}

// A build begins with the first announcement within reach; older ones are left out.
func TestBuildReachesBackAsFarAsAsked(t *testing.T) {
	client := redistest.Shared(t).Client(t)
	s := filterSpace(t, client, redistest.Name(t), Events{})
	now, err := client.Time(t.Context()).Result()
	require.NoError(t, err)
	for _, age := range []time.Duration{2 * time.Minute, 30 * time.Second, 10 * time.Second} {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{
			Stream: s.filterStreamKey(), ID: strconv.FormatInt(now.Add(-age).UnixMilli(), 10) + "-7", Values: []string{"kx", age.String()},
		}).Err())
	}
	cursor, _, whole, err := s.BeginFilter(t.Context(), time.Minute)
	require.NoError(t, err)
	require.True(t, whole)
	ids, _ := readAnnounced(t, s, cursor)
	require.NotContains(t, ids, "2m0s")
	require.Subset(t, ids, []string{"30s", "10s"})
}

// Announcements dropped because there were too many within reach: the build is told that they are not whole. While the stream is
// not full, or older ones are still there, it is.
func TestBuildIsToldOfDroppedAnnouncements(t *testing.T) {
	server := redistest.Shared(t)
	if server.Embedded() {
		t.Skip("a million entries are too much for the embedded server")
	}
	client := server.Client(t, func(o *redis.Options) { o.ReadTimeout = time.Minute })
	s := filterSpace(t, client, redistest.Name(t), Events{})
	require.NoError(t, client.Eval(t.Context(), `
		for i = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', 'k', 'x') end
		return redis.call('PEXPIRE', KEYS[1], 60000)`, []string{s.filterStreamKey()}, filterStreamMax).Err())
	_, _, whole, err := s.BeginFilter(t.Context(), time.Hour)
	require.NoError(t, err)
	require.False(t, whole)
	_, _, whole, err = s.BeginFilter(t.Context(), 0)
	require.NoError(t, err)
	require.True(t, whole, "all that was dropped is beyond reach")
	length, err := client.XLen(t.Context(), s.filterStreamKey()).Result()
	require.NoError(t, err)
	require.LessOrEqual(t, length, int64(filterStreamMax+2))
}

// A cursor whose entry is gone is noticed: the stream was trimmed past it, lost, lost and begun anew, or begun anew with an entry
// that has the same id by chance. An entry at the cursor means that nothing after it is missing.
func TestGapInTheAnnouncementsIsNoticed(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			s := filterSpace(t, client, redistest.Name(t), Events{})
			notWhole := func(cursor, why string) {
				t.Helper()
				ids, _, _, whole, err := s.Announced(t.Context(), cursor)
				require.NoError(t, err, why)
				require.False(t, whole, why)
				require.Empty(t, ids, why)
			}
			cursor, _, _, err := s.BeginFilter(t.Context(), time.Minute)
			require.NoError(t, err)
			require.NoError(t, s.AppendAnnounced(t.Context(), "a", "b"))
			require.NoError(t, client.XTrimMaxLen(t.Context(), s.filterStreamKey(), 2).Err())
			notWhole(cursor, "trimmed")
			require.NoError(t, client.Del(t.Context(), s.filterStreamKey()).Err())
			notWhole(cursor, "lost")
			require.NoError(t, s.AppendAnnounced(t.Context(), "a"))
			notWhole(cursor, "begun anew")
			require.NoError(t, client.Del(t.Context(), s.filterStreamKey()).Err())
			id, _, _ := strings.Cut(cursor, "=")
			require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: s.filterStreamKey(), ID: id, Values: []string{"kOther", "a"}}).Err())
			notWhole(cursor, "same id, another entry")
			for _, wrong := range []string{"", "1-0", "=k", "1-0=", "garbage"} {
				notWhole(wrong, "cursor "+wrong)
			}
		})
	}
}

// One round trip to announce, one to see that nothing was announced.
func TestAnnouncingAndReadingAreOneRoundTrip(t *testing.T) {
	client := redistest.Shared(t).Client(t)
	counter := redistest.Count(client)
	s := filterSpace(t, client, redistest.Name(t), Events{})
	cursor, _, _, err := s.BeginFilter(t.Context(), time.Minute)
	require.NoError(t, err)
	counter.Reset()
	require.NoError(t, s.AppendAnnounced(t.Context(), make([]string, 1000)...))
	require.Equal(t, 1000, counter.Sent("xadd"))
	require.Equal(t, 1, counter.Sent("multi"), "one transaction")
	_, _, _, _, err = s.Announced(t.Context(), cursor)
	require.NoError(t, err)
	require.Equal(t, 1, counter.Sent("xrange"))
}

// A Redis that hangs does not hold anybody: every call ends with an error, and announcing works again afterwards.
func TestFilterStoreEndsItsCallsWhenRedisHangs(t *testing.T) {
	server := redistest.Start(t)
	r, err := NewRedis(t.Context(), server.Client(t), RedisOptions{WriteTimeout: 50 * time.Millisecond})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	s, err := r.Open(SpaceOptions{Name: redistest.Name(t)})
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, s.AppendAnnounced(t.Context(), "a"))
	cursor, _, _, err := s.BeginFilter(t.Context(), time.Minute)
	require.NoError(t, err)

	server.Stop()
	require.Error(t, s.AppendAnnounced(t.Context(), "b"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, _, _, err = s.Announced(ctx, cursor)
	require.ErrorIs(t, err, context.Canceled)
	_, _, _, _, err = s.Announced(t.Context(), cursor)
	require.Error(t, err)
	server.Continue()
	require.Eventually(t, func() bool { return s.AppendAnnounced(t.Context(), "c") == nil }, time.Minute, 10*time.Millisecond)
	var ids []string
	require.Eventually(t, func() bool { // with so short a budget a slow machine may take it for hung again
		ids, _, _, _, err = s.Announced(t.Context(), cursor)
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	require.Contains(t, ids, "c")
}

// Whatever bytes stand for a head or a cursor, reading them does not panic, and a head that is taken is the one that was written.
func FuzzFilterHead(f *testing.F) {
	f.Add(string(filterHead{length: 7, generation: 3, doubted: true, cursor: "1-0=k"}.bytes()))
	f.Add("tcfs")
	f.Add("1-0=k")
	f.Fuzz(func(t *testing.T, text string) {
		if h, ok := parseFilterHead(text); ok {
			again, ok := parseFilterHead(string(h.bytes()))
			require.True(t, ok)
			require.Equal(t, h, again)
		}
		if c, ok := parseFilterCursor(text); ok {
			require.Equal(t, text, c.String())
			require.GreaterOrEqual(t, c.milli(), int64(-1)<<62)
		}
	})
}
