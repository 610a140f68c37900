package layers

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// What a build has left is read back by any process, whole, with its generation and cursor, until it is dropped, an hour is over, or a filter of that
// generation or a later one stands or is doubted; what a later build has left stays in its place; of something else in its place nothing is said, and it
// is replaced. Nobody is told, and no part is left.
func TestCheckpointIsReadBackUntilAFilterStands(t *testing.T) {
	for name, open := range filterServers {
		t.Run(name, func(t *testing.T) {
			client := open(t)
			unique := redistest.Name(t)
			s, other := filterSpace(t, client, unique, Events{}), filterSpace(t, client, unique, Events{})
			key := s.filterCheckpointKey()
			keep := func(generation uint64, data []byte) bool {
				t.Helper()
				stored, err := s.SaveCheckpoint(t.Context(), generation, "c=k", data)
				require.NoError(t, err)
				requireNoParts(t, client, s)
				return stored
			}
			requireLeft := func(want []byte, of uint64) {
				t.Helper()
				data, generation, cursor, err := other.LoadCheckpoint(t.Context())
				require.NoError(t, err)
				require.Equal(t, want, data)
				if want != nil {
					require.Equal(t, of, generation)
					require.Equal(t, "c=k", cursor)
				}
			}
			requireLeft(nil, 0)
			large := randomBytes(2*filterChunk + 5)
			require.True(t, keep(20, large))
			requireLeft(large, 20)
			requireExpiry(t, client, key, 59*time.Minute)
			left, err := client.PTTL(t.Context(), key).Result()
			require.NoError(t, err)
			require.LessOrEqual(t, left, time.Hour)
			stands, _, err := s.StandingFilter(t.Context())
			require.NoError(t, err)
			require.Zero(t, stands, "it is no filter")

			require.True(t, keep(20, []byte("farther")), "the same build")
			require.False(t, keep(19, []byte("older")))
			requireLeft([]byte("farther"), 20)
			save(t, s, 19, "c=k", []byte("older filter"))
			requireLeft([]byte("farther"), 20)
			save(t, s, 20, "c=k", []byte("filter"))
			requireLeft(nil, 0)
			require.True(t, keep(21, []byte("next")))
			requireLeft([]byte("next"), 21)
			save(t, s, 21, "", nil)
			requireLeft(nil, 0)

			require.True(t, keep(22, []byte("after the doubt")))
			requireLeft([]byte("after the doubt"), 22)
			require.NoError(t, other.DropCheckpoint(t.Context()))
			requireLeft(nil, 0)
			require.NoError(t, other.DropCheckpoint(t.Context()))
			for _, foreign := range []func() error{
				func() error { return client.Set(t.Context(), key, "foreign", time.Minute).Err() },
				func() error {
					return client.Eval(t.Context(), "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], 1) return redis.call('EXPIRE', KEYS[1], 60)", []string{key}).Err()
				},
			} {
				require.NoError(t, foreign())
				requireLeft(nil, 0)
				require.True(t, keep(23, []byte("anew")))
				requireLeft([]byte("anew"), 23)
			}
		})
	}
}
