package layers

import (
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// inOneWindow calls f with one space, or with another, until all that it does falls into one window of the hot keys. It returns that space and
// the window's number.
func inOneWindow(t *testing.T, rdb redis.UniversalClient, f func(s *Space)) (*Space, int64) {
	t.Helper()
	window := func() int64 {
		now, err := rdb.Time(t.Context()).Result()
		require.NoError(t, err)
		return now.UnixMilli() / hotFleetWindow.Milliseconds()
	}
	r := openRedis(t, rdb)
	for try := 0; ; try++ {
		s := openSpace(t, r, SpaceOptions{Name: fmt.Sprint(redistest.Name(t), try)})
		before := window()
		if f(s); window() == before {
			return s, before
		}
	}
}

// What processes tell of their hot keys adds up, the most first, those below the least left out; a long key stands there by its hash. Nothing of
// it stays in Redis for longer than four seconds. Broken by: hot.lua with ZADD for ZINCRBY (the last to tell is believed), without PEXPIREAT;
// NUMBER of no characters (a key without any ends the window).
func TestHotKeysOfTheFleetAddUp(t *testing.T) {
	for kind, rdb := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			long := strings.Repeat("long", 100)
			var heard, asked []HotRate
			s, window := inOneWindow(t, rdb, func(s *Space) {
				var err error
				for i := range 3 {
					heard, err = s.TellHot(t.Context(), []HotRate{{"a", 1000}, {"b", 10}, {long, 400}, {"", 200}, {fmt.Sprint("of ", i), 2}}, 3, 10)
					require.NoError(t, err)
				}
				asked, err = s.TellHot(t.Context(), nil, 0, 2)
				require.NoError(t, err)
			})
			require.Equal(t, []HotRate{{"a", 1500}, {HotName(long), 600}, {"", 300}, {"b", 15}}, heard, "half of three times: it is a mean over two seconds")
			require.Equal(t, heard[:2], asked)
			require.Len(t, HotName(long), 66)
			key := s.hotWindowKeys()[window%2]
			left := rdb.PTTL(t.Context(), key).Val()
			require.True(t, left == -2 || left > 0 && left <= 2*hotFleetWindow, "%v of %s", left, key)
		})
	}
}

// A window keeps 1,000 keys at most, those that are read most; what is left of an older one, and what is no window, is replaced and never added to.
// Broken by: hot.lua without ZREMRANGEBYRANK; isOf answering true; ZSCORE by call rather than read.
func TestHotKeysOfTheFleetAreBounded(t *testing.T) {
	for kind, rdb := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			many := make([]HotRate, hotFleetKept+200)
			for i := range many {
				many[i] = HotRate{fmt.Sprint("k", i), float64(2 + i)}
			}
			var heard []HotRate
			s, window := inOneWindow(t, rdb, func(s *Space) {
				keys := s.hotWindowKeys()
				for i, key := range keys { // one of each kind of rubbish
					if i == 0 {
						require.NoError(t, rdb.Set(t.Context(), key, "no window", 0).Err())
					} else {
						old := []redis.Z{{Score: -7}, {Score: 1e9, Member: "old"}, {Score: 1e9, Member: "k0"}}
						old[0].Member = strings.Repeat("w", 201)
						require.NoError(t, rdb.ZAdd(t.Context(), key, old...).Err())
					}
				}
				var err error
				heard, err = s.TellHot(t.Context(), many, 0, 2*len(many))
				require.NoError(t, err)
			})
			require.Len(t, heard, hotFleetKept)
			require.Equal(t, HotRate{fmt.Sprint("k", len(many)-1), float64(len(many)+1) / 2}, heard[0])
			require.Equal(t, "k200", heard[hotFleetKept-1].ID)
			keys := s.hotWindowKeys()
			require.EqualValues(t, hotFleetKept+1, rdb.ZCard(t.Context(), keys[window%2]).Val())
			require.NoError(t, rdb.Del(t.Context(), keys[1-window%2]).Err())
		})
	}
}
