package tiercache_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// P9: a function in Options that panics for one key harms neither the process nor the other keys of a batch, and leaves no lease behind for
// which other processes would wait.
func TestPanicOfAnOptionHarmsNoOtherKey(t *testing.T) {
	many := func(keys ...string) func(a *peer, ctx context.Context) (map[string]string, error) {
		return func(a *peer, ctx context.Context) (map[string]string, error) { return a.GetMany(ctx, keys) }
	}
	for name, test := range map[string]struct {
		get      func(a *peer, ctx context.Context) (map[string]string, error)
		loadMany bool
		others   map[string]string
	}{
		"Get": {func(a *peer, ctx context.Context) (map[string]string, error) {
			_, err := a.Get(ctx, "bad")
			return nil, err
		}, false, nil},
		"GetMany with Load":       {many("a", "bad", "b"), false, map[string]string{"a": "row a", "b": "row b"}},
		"GetMany with LoadMany":   {many("a", "bad", "b"), true, map[string]string{"a": "row a", "b": "row b"}},
		"GetMany of what is held": {many("a", "bad", "b"), true, map[string]string{"a": "row a", "b": "row b"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Shared(t)
			s := &batches{source: newSource(map[string]string{"a": "row a", "bad": "row bad", "b": "row b"})}
			o := lasting(redistest.Name(t), s.source)
			b := openPeer(t, server.Client(t), o)
			if test.loadMany {
				o.LoadMany = s.loadMany
			}
			o.TTLFor = func(key, _ string) time.Duration {
				if key == "bad" {
					panic("no life")
				}
				return 0
			}
			a := openPeer(t, server.Client(t), o)
			if name == "GetMany of what is held" {
				s.before(func(context.Context, string) error { return errDown })
				asked, fail := b.wire.hold(t, after, "acquire")
				waiting := b.get(t.Context(), "bad")
				await(t, asked, "B has the lease")
				told, ask := a.wire.hold(t, after, "acquire")
				go func() {
					<-told
					fail()
					<-waiting // B's load has failed: the lease is free
					s.before(nil)
					ask()
				}()
			}
			got, err := test.get(a, t.Context())
			var panicked *tiercache.PanicError
			require.ErrorAs(t, err, &panicked)
			require.Equal(t, "no life", panicked.Value)
			require.Equal(t, test.others, got)
			requireGet(t, b, "bad", "row bad") // not held by A
		})
	}
}

// awkward cannot be encoded: not even the attempt can be made.
type awkward struct{ Row string }

// MarshalJSON panics.
func (awkward) MarshalJSON() ([]byte, error) { panic("no form") }

// A codec that panics says that the value cannot be encoded: it is answered, and kept in memory only.
func TestPanicOfTheCodecIsAnEncodeError(t *testing.T) {
	for _, where := range []string{"memory", "redis"} {
		t.Run(where, func(t *testing.T) {
			o := tiercache.Options[string, awkward]{
				Name: redistest.Name(t),
				Load: func(_ context.Context, key string) (awkward, error) { return awkward{"row " + key}, nil },
			}
			if where == "redis" {
				var err error
				o.Shared, err = layers.NewRedis(t.Context(), redistest.Shared(t).Client(t), patient)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, o.Shared.Close()) })
			}
			c, err := tiercache.New(o)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, c.Close()) })
			for range 2 {
				got, err := c.Get(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, awkward{"row k"}, got)
			}
			require.EqualValues(t, 1, c.Stats().Loads)
		})
	}
}

// A Clone that panics on what another process stored while this one asked for the leases is the error of that key. The others have their rows, and no
// lease is left behind. Broken by: cloned without ofItsKey.
func TestPanicOfCloneHarmsNoOtherKey(t *testing.T) {
	server := redistest.Shared(t)
	s, name := newSource(map[string]string{"a": "row a", "bad": "row bad", "b": "row b"}), redistest.Name(t)
	o := lasting(name, s)
	b := openPeer(t, server.Client(t), o)
	o.Clone = panicsOn(func(row string) bool { return row == "row bad" })
	a := openPeer(t, server.Client(t), o)
	asking, ask := a.wire.hold(t, before, "acquire")
	go func() {
		<-asking
		defer ask()
		_, err := b.Get(t.Context(), "bad")
		assert.NoError(t, err)
	}()
	found, err := a.GetMany(t.Context(), []string{"a", "bad", "b"})
	var panicked *tiercache.PanicError
	require.ErrorAs(t, err, &panicked)
	require.Equal(t, "no copy", panicked.Value)
	require.Equal(t, map[string]string{"a": "row a", "b": "row b"}, found)
	for _, key := range []string{"a", "b"} { // else it would wait for A's lease
		require.NoError(t, b.rdb.Del(t.Context(), valueKey(name, key)).Err())
		b.wire.reset()
		requireGet(t, b, key, "row "+key)
		require.Equal(t, 1, b.wire.count("acquire"), "of %s", key)
	}
}

// Redis is back, and read only where a load failed: a Clone that panics on what is found there ends neither the process nor the batch.
// Broken by: cloned without ofItsKey.
func TestPanicOfCloneBehindAFailedLoad(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		s := &batches{source: newSource(nil)}
		o := lasting(w.name, s.source)
		o.LoadMany = s.loadMany
		keys := w.keys("k", 60)
		for _, key := range keys {
			s.write(key, "v")
		}
		b := openPeer(t, w.client(t), o)
		_, err := b.GetMany(t.Context(), keys)
		require.NoError(t, err)

		var armed atomic.Bool
		o.Clone = panicsOn(func(string) bool { return armed.Load() })
		p := openBrief(t, w.client(t), patient, o)
		w.kill(t, p)
		w.restart()
		asking(t, func() bool { return p.shared.Stats().StateChanges == 2 }, "Redis is known to be back")
		s.before(func(context.Context, string) error { armed.Store(true); return errDown })
		_, err = p.GetMany(t.Context(), keys) // some are read in their turn only, so they are loaded
		var panicked *tiercache.PanicError
		require.ErrorAs(t, err, &panicked)
	})
}

// A Clone that panics is the error of whoever is to be given that row, wherever it comes from, and of nobody else.
// Broken by: cloned without ofItsKey.
func TestPanicOfCloneIsItsCallersError(t *testing.T) {
	for name, get := range map[string]func(ctx context.Context, p *peer, key string) (string, error){
		"Get":     func(ctx context.Context, p *peer, key string) (string, error) { return p.Get(ctx, key) },
		"Refresh": func(ctx context.Context, p *peer, key string) (string, error) { return p.Refresh(ctx, key) },
		"GetEntry": func(ctx context.Context, p *peer, key string) (string, error) {
			e, err := p.GetEntry(ctx, key)
			return e.Value, err
		},
		"GetMany": func(ctx context.Context, p *peer, key string) (string, error) {
			found, err := p.GetMany(ctx, []string{"a", key})
			if found["a"] != "row a" {
				return "", errors.New("the other row is lost")
			}
			return found[key], err
		},
	} {
		for _, from := range []string{"memory", "Redis", "the source"} {
			t.Run(name+" from "+from, func(t *testing.T) {
				server := redistest.Shared(t)
				s, schema := newSource(map[string]string{"a": "row a", "bad": "row bad"}), redistest.Name(t)
				o := lasting(schema, s)
				if from == "Redis" {
					requireGet(t, openPeer(t, server.Client(t), o), "bad", "row bad")
				}
				var armed atomic.Bool
				o.Clone = panicsOn(func(row string) bool { return armed.Load() && row == "row bad" })
				p := openPeer(t, server.Client(t), o)
				requireGet(t, p, "a", "row a")
				if from == "memory" {
					requireGet(t, p, "bad", "row bad")
				}
				armed.Store(true)
				for range 2 { // of the second, memory has nothing, or the old copy
					got, err := get(t.Context(), p, "bad")
					var failed *tiercache.LoadError
					var panicked *tiercache.PanicError
					require.ErrorAs(t, err, &failed)
					require.Equal(t, "bad", failed.Key)
					require.ErrorAs(t, err, &panicked)
					require.Equal(t, "no copy", panicked.Value)
					require.Empty(t, got)
				}
				armed.Store(false)
				got, err := get(t.Context(), p, "bad") // no lease is left behind
				require.NoError(t, err)
				require.Equal(t, "row bad", got)
			})
		}
	}
}

// What memory could not keep, for Clone panicked, replaces what it had all the same. Broken by: Kill left out of Cache.put;
// kept made true in update.go, either.
func TestPanicOfCloneLeavesNothingOlderInMemory(t *testing.T) {
	for name, write := range map[string]func(ctx context.Context, c *tiercache.Cache[string, string]) error{
		"Set": func(ctx context.Context, c *tiercache.Cache[string, string]) error { return c.Set(ctx, "k", "new") },
		"Refresh": func(ctx context.Context, c *tiercache.Cache[string, string]) error {
			if _, err := c.Refresh(ctx, "k"); !errors.As(err, new(*tiercache.PanicError)) {
				return errors.New("Clone did not panic")
			}
			return nil
		},
	} {
		for _, where := range []string{"Redis", "Redis that is away", "memory alone"} {
			t.Run(name+" with "+where, func(t *testing.T) {
				s := newSource(map[string]string{"k": "old"})
				o := lasting(redistest.Name(t), s)
				var armed atomic.Bool
				o.Clone = panicsOn(func(row string) bool { return armed.Load() && row == "new" })
				away := where == "Redis that is away"
				if away && name == "Set" { // which puts nothing then
					return
				}
				server := redistest.Shared(t)
				if away {
					server = redistest.Start(t)
				}
				if where != "memory alone" {
					var err error
					o.Shared, err = layers.NewRedis(t.Context(), server.Client(t), patient)
					require.NoError(t, err)
					t.Cleanup(func() { require.NoError(t, o.Shared.Close()) })
				}
				c := openCache(t, o)
				wantValue(t, c, "k", "old")
				s.write("k", "new")
				armed.Store(true)
				if away {
					server.Kill()
				}
				require.NoError(t, write(t.Context(), c))
				armed.Store(false)
				wantValue(t, c, "k", "new")
			})
		}
	}
}

// panicsOn is a Clone that has no copy of some rows.
func panicsOn(row func(string) bool) func(string) string {
	return func(v string) string {
		if row(v) {
			panic("no copy")
		}
		return v
	}
}
