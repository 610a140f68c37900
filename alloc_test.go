package tiercache_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
)

// named is a string type with a method, as applications have.
type named string

func (n named) String() string { return "named " + string(n) }

// hitAllocations returns how many allocations a fresh memory hit costs, over a few thousand keys or one.
func hitAllocations[K comparable](t *testing.T, keys []K) float64 {
	t.Helper()
	c := openCache(t, tiercache.Options[K, *K]{
		Name: "allocations",
		Load: func(_ context.Context, key K) (*K, error) { return &key, nil },
	})
	ctx := t.Context()
	for _, key := range keys {
		_, err := c.Get(ctx, key)
		require.NoError(t, err)
	}
	before := c.Stats()
	i, wrong := 0, 0
	allocated := testing.AllocsPerRun(10_000, func() {
		key := keys[i%len(keys)]
		i++
		if v, err := c.Get(ctx, key); err != nil || *v != key {
			wrong++
		}
	})
	require.Zero(t, wrong)
	require.Equal(t, before.Loads, c.Stats().Loads)
	require.EqualValues(t, 10_001, c.Stats().MemoryHits-before.MemoryHits, "all were memory hits")
	return allocated
}

func TestFreshMemoryHitAllocatesNothing(t *testing.T) {
	// A hit in memory costs no allocation for integer, string and named string keys, whether one hot key is read or many.
	require.Zero(t, hitAllocations(t, []int64{1 << 40}), "int64")
	require.Zero(t, hitAllocations(t, []string{"a key of some length, longer than 32 bytes"}), "string")
	require.Zero(t, hitAllocations(t, []named{"named"}), "named string")
	ints, texts := make([]int64, 3000), make([]string, 3000)
	for i := range ints {
		ints[i] = int64(i) << 20
		texts[i] = string(rune('a'+i%26)) + string(rune(i))
	}
	require.Zero(t, hitAllocations(t, ints), "many int64")
	require.Zero(t, hitAllocations(t, texts), "many strings")
}

func TestFreshAbsentHitAllocatesNothing(t *testing.T) {
	// "Not found" from memory costs no allocation either.
	c := openCache(t, tiercache.Options[string, string]{
		Name: "allocations",
		Load: func(context.Context, string) (string, error) { return "", tiercache.ErrNotFound },
	})
	ctx := t.Context()
	_, err := c.Get(ctx, "k")
	require.ErrorIs(t, err, tiercache.ErrNotFound)
	require.Zero(t, testing.AllocsPerRun(1000, func() { _, _ = c.Get(ctx, "k") }))
	require.EqualValues(t, 1, c.Stats().Loads)
}
