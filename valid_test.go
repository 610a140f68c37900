package tiercache_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
)

// openNumbers opens a cache of the rows 1 to 9 that takes keys above zero, and returns the keys its loader was asked for.
func openNumbers(t *testing.T, change func(o *tiercache.Options[int, string])) (*tiercache.Cache[int, string], *[]int) {
	t.Helper()
	asked := new([]int)
	o := tiercache.Options[int, string]{
		Name: "numbers", ValidKey: func(key int) bool { return key > 0 },
		LoadMany: func(_ context.Context, keys []int) (map[int]string, error) {
			*asked = append(*asked, keys...)
			rows := map[int]string{}
			for _, key := range keys {
				if key < 10 {
					rows[key] = strings.Repeat("x", max(key, 0))
				}
			}
			return rows, nil
		},
	}
	if change != nil {
		change(&o)
	}
	return openCache(t, o), asked
}

func TestReadOfAnInvalidKeyIsNotFoundAndAsksNobody(t *testing.T) {
	// Get and GetEntry of a key that ValidKey refuses fail with ErrNotFound and ErrInvalidKey at once, GetMany leaves it out and answers
	// the others; the source is not asked and each is counted. A key that passes and has no row is no invalid key.
	// Broken by: the admits in enter, the mapping to errNoSuchKey in get, the admitted in GetMany.
	synctest.Test(t, func(t *testing.T) {
		c, asked := openNumbers(t, nil)
		_, err := c.Get(t.Context(), -1)
		require.ErrorIs(t, err, tiercache.ErrNotFound)
		require.ErrorIs(t, err, tiercache.ErrInvalidKey)
		_, err = c.GetEntry(t.Context(), -1)
		require.ErrorIs(t, err, tiercache.ErrNotFound)
		require.ErrorIs(t, err, tiercache.ErrInvalidKey)
		require.Empty(t, *asked)

		keys := []int{-1, 1, 0, 2}
		rows, err := c.GetMany(t.Context(), keys)
		require.NoError(t, err)
		require.Equal(t, map[int]string{1: "x", 2: "xx"}, rows)
		require.Equal(t, []int{-1, 1, 0, 2}, keys, "the caller's slice was changed")
		require.ElementsMatch(t, []int{1, 2}, *asked)
		require.EqualValues(t, 4, c.Stats().InvalidKeys)

		_, err = c.Get(t.Context(), 10)
		require.ErrorIs(t, err, tiercache.ErrNotFound)
		require.NotErrorIs(t, err, tiercache.ErrInvalidKey)
	})
}

func TestWriteOfAnInvalidKeyFailsAndDoesNothing(t *testing.T) {
	// Set, Invalidate, Update, UpdateMany, Announce and Refresh of keys of which one is invalid fail with ErrInvalidKey, which is not
	// ErrNotFound here; the write is not run, the source not asked, and no valid key beside it is dropped.
	// Broken by: the admits in enter, the admitted in enterMany.
	synctest.Test(t, func(t *testing.T) {
		c, asked := openNumbers(t, nil)
		_, err := c.Get(t.Context(), 1)
		require.NoError(t, err)
		write := func(context.Context) error { t.Error("the write was run"); return nil }
		for name, call := range calls(c, write) {
			err := call(t.Context())
			require.ErrorIs(t, err, tiercache.ErrInvalidKey, name)
			require.NotErrorIs(t, err, tiercache.ErrNotFound, name)
		}
		_, err = c.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, []int{1}, *asked)
		require.EqualValues(t, 1, c.Stats().MemoryHits)
		require.Zero(t, c.Stats().Invalidations)
	})
}

// calls are the writes and Refresh, each with an invalid key, where there may be many behind a valid one.
func calls(c *tiercache.Cache[int, string], write func(context.Context) error) iter.Seq2[string, func(context.Context) error] {
	return func(yield func(string, func(context.Context) error) bool) {
		_ = yield("Set", func(ctx context.Context) error { return c.Set(ctx, -1, "x") }) &&
			yield("Invalidate", func(ctx context.Context) error { return c.Invalidate(ctx, 1, -1) }) &&
			yield("Update", func(ctx context.Context) error { return c.Update(ctx, -1, write) }) &&
			yield("UpdateMany", func(ctx context.Context) error { return c.UpdateMany(ctx, []int{1, -1}, write) }) &&
			yield("Announce", func(ctx context.Context) error { return c.Announce(ctx, 1, -1) }) &&
			yield("Refresh", func(ctx context.Context) error { _, err := c.Refresh(ctx, -1); return err })
	}
}

func TestKeyThatValidKeyPanicsOnPasses(t *testing.T) {
	// A panic in ValidKey reaches no caller: the key passes, and the first panic alone is logged.
	// Broken by: the recover in guardedValidKey, the once around its log line.
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c, _ := openNumbers(t, func(o *tiercache.Options[int, string]) {
			o.ValidKey = func(int) bool { panic(errors.New("broken check")) }
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		for key := 1; key <= 3; key++ {
			v, err := c.Get(t.Context(), key)
			require.NoError(t, err)
			require.Len(t, v, key)
		}
		require.Zero(t, c.Stats().InvalidKeys)
		require.Equal(t, 1, strings.Count(log.String(), "ValidKey panicked"), log.String())
	})
}
