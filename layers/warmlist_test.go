package layers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// onWarmList runs test on one server and on a cluster; key is where the list is, wants demands the first keys of it.
func onWarmList(t *testing.T, test func(t *testing.T, client redis.UniversalClient, s *Space, key string, wants func(most int, ids ...string))) {
	t.Helper()
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			s := filterSpace(t, client, redistest.Name(t), Events{})
			test(t, client, s, s.warmListKey(), func(most int, ids ...string) {
				t.Helper()
				got, err := s.WarmKeys(t.Context(), most)
				require.NoError(t, err)
				require.Equal(t, ids, got)
			})
		})
	}
}

// The warm list has the keys with the highest rates, of whichever process, and no more than it may; a rate counts half after an hour; and the list
// has an expiry from its first moment on.
// Broken by: GT in warmlist.lua; its ZREMRANGEBYRANK; its PEXPIRE; worthOf without the logarithm.
func TestWarmListHasTheKeysReadMost(t *testing.T) {
	onWarmList(t, func(t *testing.T, client redis.UniversalClient, s *Space, key string, wants func(int, ...string)) {
		wants(3)
		require.NoError(t, s.NoteWarmKeys(t.Context(), 3, nil))
		wants(3)
		note := func(keys ...WarmKey) {
			t.Helper()
			require.NoError(t, s.NoteWarmKeys(t.Context(), 3, keys))
			requireExpiry(t, client, key, warmListLife-time.Hour)
			n, err := client.ZCard(t.Context(), key).Result()
			require.NoError(t, err)
			require.LessOrEqual(t, n, int64(3))
		}
		note(WarmKey{"d", 1}, WarmKey{"b{:} \x00", 4}, WarmKey{"a", 8}, WarmKey{"", 2}, WarmKey{"e", 0.001})
		wants(3, "a", "b{:} \x00", "")
		wants(2, "a", "b{:} \x00")
		note(WarmKey{"", 16}, WarmKey{"f", 3}, WarmKey{"a", 0.1}) // another process, or later
		wants(3, "", "a", "b{:} \x00")
		for _, id := range []string{"", "a", "b{:} \x00"} {
			require.NoError(t, client.ZIncrBy(t.Context(), key, -float64(time.Hour.Milliseconds()), id).Err())
		}
		note(WarmKey{"g", 5}, WarmKey{"h", 1}) // 8 an hour ago is 4, 4 is 2
		wants(3, "", "g", "a")
	})
}

// The list is bounded in bytes, and what in it is not of the library gives way: a key of another type, which cannot be read until then, scores
// that no rate gives and notes older than a day. A thousand keys and more are one command.
// Broken by: the look at the length in NoteWarmKeys; UNLINK in warmlist.lua; either ZREMRANGEBYSCORE there; `PAGE` of the number of pairs there.
func TestWarmListRidsItselfOfWhatIsForeign(t *testing.T) {
	onWarmList(t, func(t *testing.T, client redis.UniversalClient, s *Space, key string, wants func(int, ...string)) {
		require.NoError(t, client.Set(t.Context(), key, "foreign", 0).Err())
		_, err := s.WarmKeys(t.Context(), 10)
		require.ErrorContains(t, err, "WRONGTYPE")
		long := strings.Repeat("k", warmListKeyBytes)
		require.NoError(t, s.NoteWarmKeys(t.Context(), 10, []WarmKey{{long, 2}, {long + "k", 3}, {"most", 1e300}, {"least", 1e-300}}))
		wants(10, "most", long) // the least was read as long ago as if never
		requireExpiry(t, client, key, warmListLife-time.Hour)

		now, err := client.Time(t.Context()).Result()
		require.NoError(t, err)
		score := func(d time.Duration) float64 { return float64(now.Add(d).UnixMilli()) }
		require.NoError(t, client.ZAdd(t.Context(), key,
			redis.Z{Score: score(warmListWorth + time.Hour), Member: "future"}, redis.Z{Score: 1e300, Member: "for ever"},
			redis.Z{Score: score(-warmListLife - time.Minute), Member: "old"}, redis.Z{Score: score(-warmListLife + time.Hour), Member: "young"},
			redis.Z{Score: 7, Member: "number"}).Err())
		require.NoError(t, s.NoteWarmKeys(t.Context(), 10, []WarmKey{{"new", 1}}))
		wants(10, "most", long, "new", "young")

		var many []WarmKey
		for i := range 10_000 {
			many = append(many, WarmKey{fmt.Sprint(i), 4})
		}
		require.NoError(t, s.NoteWarmKeys(t.Context(), 10_000, many))
		all, err := s.WarmKeys(t.Context(), 20_000)
		require.NoError(t, err)
		require.Len(t, all, 10_000)
	})
}
