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

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
)

// openEcho opens a cache whose rows are their keys' Go syntax, and counts its loads.
func openEcho[K comparable](t *testing.T, keyString func(K) string) (*tiercache.Cache[K, string], *atomic.Int64) {
	t.Helper()
	loads := new(atomic.Int64)
	return openCache(t, tiercache.Options[K, string]{
		Name: "echo", KeyString: keyString,
		Load: func(_ context.Context, key K) (string, error) { loads.Add(1); return fmt.Sprintf("%#v", key), nil },
	}), loads
}

// loud is a string whose String method makes different keys alike; it must not be asked.
type loud string

func (l loud) String() string { return strings.ToUpper(string(l)) }

// place is a struct key with an injective string form.
type place struct{ street, house string }

func (p place) String() string { return fmt.Sprintf("%q,%q", p.street, p.house) }

// shaky is a key whose text may fail.
type shaky struct{ s string }

func (k shaky) MarshalText() ([]byte, error) {
	if k.s == "" {
		return nil, errors.New("no text")
	}
	return []byte(k.s), nil
}

func TestKeysWithTheSameFormAreOneEntry(t *testing.T) {
	// A KeyString that is not injective: the keys share one entry, loaded by the first of them, and writes of either concern both.
	synctest.Test(t, func(t *testing.T) {
		c, loads := openEcho(t, strings.ToLower)
		wantValue(t, c, "Key", `"Key"`)
		wantValue(t, c, "KEY", `"Key"`)
		require.EqualValues(t, 1, loads.Load())
		require.NoError(t, c.Invalidate(t.Context(), "key"))
		wantValue(t, c, "KEY", `"KEY"`)
		require.NoError(t, c.Set(t.Context(), "kEY", "set"))
		wantValue(t, c, "Key", "set")
		require.EqualValues(t, 2, loads.Load())
	})
}

func TestNamedStringsAreToldApartWhateverTheirStringMethodSays(t *testing.T) {
	// The String method of a string type is ignored: keys that print alike are different rows.
	synctest.Test(t, func(t *testing.T) {
		c, loads := openEcho[loud](t, nil)
		for range 2 {
			wantValue(t, c, loud("a"), `"a"`)
			wantValue(t, c, loud("A"), `"A"`)
			wantValue(t, c, loud(""), `""`)
		}
		require.EqualValues(t, 3, loads.Load())
	})
}

func TestStructKeys(t *testing.T) {
	// Struct keys go by their string form, from memory, in batches and in writes.
	synctest.Test(t, func(t *testing.T) {
		c, loads := openEcho[place](t, nil)
		a, b := place{"a,b", "1"}, place{"a", "b,1"}
		rows, err := c.GetMany(t.Context(), []place{a, b, a})
		require.NoError(t, err)
		require.Len(t, rows, 2)
		require.NotEqual(t, rows[a], rows[b])
		wantValue(t, c, a, rows[a])
		require.EqualValues(t, 2, loads.Load())
		require.NoError(t, c.Invalidate(t.Context(), a))
		wantValue(t, c, b, rows[b])
		require.EqualValues(t, 2, loads.Load())
		wantValue(t, c, a, rows[a])
		require.EqualValues(t, 3, loads.Load())
	})
}

func TestCallsWithABadKeyFailAndDoNothing(t *testing.T) {
	// A key whose text fails, or that is over 8 KiB, is an error of every call; nothing is loaded, written or kept for it, and other keys
	// named in the same call are left alone too.
	bad := map[string]shaky{"no text": {""}, "8193 bytes": {strings.Repeat("x", 8<<10+1)}}
	for want, key := range bad {
		t.Run(want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, loads := openEcho[shaky](t, nil)
				good := shaky{"good"}
				kept, err := c.Get(t.Context(), good)
				require.NoError(t, err)
				errs := map[string]error{}
				_, errs["Get"] = c.Get(t.Context(), key)
				_, errs["GetEntry"] = c.GetEntry(t.Context(), key)
				_, errs["GetMany"] = c.GetMany(t.Context(), []shaky{good, key})
				_, errs["Refresh"] = c.Refresh(t.Context(), key)
				errs["Set"] = c.Set(t.Context(), key, "v")
				errs["Invalidate"] = c.Invalidate(t.Context(), good, key)
				errs["Announce"] = c.Announce(t.Context(), good, key)
				write := func(context.Context) error { t.Error("written"); return nil }
				errs["Update"] = c.Update(t.Context(), key, write)
				errs["UpdateMany"] = c.UpdateMany(t.Context(), []shaky{good, key}, write)
				for name, err := range errs {
					require.ErrorContains(t, err, want, name)
					require.NotContains(t, err.Error(), "xxx", "keys stay out of texts: %s", name)
				}
				pass(time.Second)
				wantValue(t, c, good, kept)
				require.EqualValues(t, 1, loads.Load())
				require.EqualValues(t, 1, c.Stats().MemoryEntries)
			})
		})
	}
}

func TestEmptyAndLongKeysAreKeys(t *testing.T) {
	// The empty string is a key like any other, and so is one of 8 KiB.
	synctest.Test(t, func(t *testing.T) {
		c, loads := openEcho[string](t, nil)
		long := strings.Repeat("x", 8<<10)
		for range 2 {
			wantValue(t, c, "", `""`)
			wantValue(t, c, long, fmt.Sprintf("%q", long))
		}
		require.EqualValues(t, 2, loads.Load())
	})
}
