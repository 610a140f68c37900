package layers

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/rediskey"
	"github.com/tiercache/tiercache/internal/redistest"
)

// hostile are keys that try to be something else in Redis.
var hostile = []string{
	"", "k", "%", "%25", "%%", "{", "}", "{}", "{a}", "}{", "a}b{c", ":", ":g", "k}:g", "{k}", "k:g", "\x00", "a\x00b", "\n", "\r\n", " ", "\x7f", "\x1f", "\xff\xfe",
	"café", "日本", "%h", "*", "?", "[a]", "\\", "\"'", "|", strings.Repeat("{", longKey), strings.Repeat("k", longKey), strings.Repeat("k", longKey+1),
	strings.Repeat("}", MaxKeyBytes), rediskey.Tag(strings.Repeat("k", longKey+1)),
}

// Property: a key stands between the braces without anything that Redis or we take for structure, and no two keys stand as one.
func TestSlottedIsPlainAndInjective(t *testing.T) {
	seen := map[string]string{}
	for _, id := range hostile {
		got := rediskey.Tag(id)
		require.NotEmpty(t, got)
		require.False(t, strings.ContainsFunc(got, func(c rune) bool { return c <= ' ' || c == 0x7f || strings.ContainsRune("{}:", c) }), "%q stands as %q", id, got)
		other, twice := seen[got]
		require.False(t, twice, "%q and %q both stand as %q", id, other, got)
		seen[got] = id
		require.LessOrEqual(t, len(got), 3*longKey)
	}
	require.Equal(t, "a%7Bb%7D%3A%25%00%7F é", strings.Replace(rediskey.Tag("a{b}:%\x00\x7f\x20é"), "%20", " ", 1))
	require.Equal(t, "%h", rediskey.Tag(strings.Repeat("k", longKey+1))[:2])
}

// Property: a key beyond the limit is refused before anything is sent.
func TestAKeyTooLongIsAnError(t *testing.T) {
	s := &Space{}
	_, err := s.valueKey(strings.Repeat("k", MaxKeyBytes))
	require.NoError(t, err)
	_, err = s.valueKey(strings.Repeat("k", MaxKeyBytes+1))
	require.ErrorIs(t, err, ErrKeyTooLong)
}

// Property: whatever a key holds, its value and its guard are in one slot of a Cluster, and it works as any other key.
func TestHostileKeysWorkInAClusterAndShareTheirSlot(t *testing.T) {
	cluster := redistest.SharedCluster(t)
	r, err := NewRedis(t.Context(), cluster.Client(t), RedisOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	s, err := r.Open(SpaceOptions{Name: redistest.Name(t) + "{x}:" + "\n"})
	require.NoError(t, err)
	defer s.Close()
	shared := NewShared[string](s, Raw, 0, Limits{})
	ctx := t.Context()
	for _, a := range s.Acquire(ctx, asksFor(hostile)...) {
		require.NoError(t, a.Err, "%q", a.Lease.ID)
		require.Equal(t, Granted, a.Verdict, "%q", a.Lease.ID)
		key, err := s.valueKey(a.Lease.ID)
		require.NoError(t, err)
		require.Equal(t, cluster.Slot(key), cluster.Slot(guardKey(key)), "%q", key)
		f, err := shared.Encode(a.Lease, Entry[string]{Value: a.Lease.ID}, Lives{})
		require.NoError(t, err)
		f.Soft, f.Hard = testSoft, testHard
		got := s.Fill(ctx, f)[0]
		require.NoError(t, got.Err)
		require.Equal(t, Stored, got.Result)
	}
	found, errs := shared.GetMany(ctx, hostile, make([]Mark, len(hostile)))
	for i, id := range hostile {
		require.NoError(t, errs[i])
		require.Equal(t, Value, found[i].Kind, "%q", id)
		require.Equal(t, id, found[i].Value)
	}
	for i, q := range s.Invalidate(ctx, Once, "", hostile...) {
		require.NoError(t, q.Err)
		got, err := shared.Get(ctx, hostile[i], Mark{})
		require.NoError(t, err)
		require.Equal(t, Nothing, got.Kind, "%q", hostile[i])
	}
}

func asksFor(ids []string) []Ask {
	asks := make([]Ask, len(ids))
	for i, id := range ids {
		asks[i] = Ask{ID: id, Token: NewToken()}
	}
	return asks
}

// Property: escaping loses nothing and adds nothing that could be structure.
func FuzzEscapeIsInjective(f *testing.F) {
	for i, id := range hostile {
		f.Add(id, hostile[(i+1)%len(hostile)])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := rediskey.Tag(a), rediskey.Tag(b)
		if (x == y) != (a == b) {
			t.Fatalf("%q stands as %q, %q as %q", a, x, b, y)
		}
		for i := range len(x) {
			if c := x[i]; c < 0x21 || c == 0x7f || c == '{' || c == '}' || c == ':' {
				t.Fatalf("%q stands as %q", a, x)
			}
		}
	})
}
