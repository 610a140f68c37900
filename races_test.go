package tiercache_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
)

// The races of the read and write paths, each played step by step. A and B are processes of one fleet.

// R1: 1 A loads the old row; 2 the row changes; 3 B invalidates; 4 A's fill is refused, and nobody is answered with the old row again.
// Broken by: fill.lua without the comparison of token and stamp.
func TestOlderLoadIsRefusedAfterInvalidate(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s := newSource(map[string]string{"k": "old"})
		p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
		a, b := p[0], p[1]
		read, resume := s.holdRead(t, "k")
		waiting := a.get(t.Context(), "k")
		await(t, read, "A read the row")
		s.write("k", "new")
		require.NoError(t, b.Invalidate(t.Context(), "k"))
		a.heard(t, 1)

		resume()
		require.NoError(t, await(t, waiting, "A's Get").err)
		require.EqualValues(t, 1, a.Stats().LoadsRefused)
		requireGet(t, b, "k", "new")
		requireGet(t, a, "k", "new")
	})
}

// R2 at the write-back: 1 A's fill is stored; 2 B invalidates, and A hears of it; 3 A's put into memory comes too late.
// Broken by: keep (loader.go) putting under a mark taken at that moment.
func TestDeleteBetweenFillAndPutIsNotKept(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s := newSource(map[string]string{"k": "old"})
		p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
		a, b := p[0], p[1]
		filled, resume := a.wire.hold(t, after, "fill")
		waiting := a.get(t.Context(), "k")
		await(t, filled, "A's fill was answered")
		s.write("k", "new")
		require.NoError(t, b.Invalidate(t.Context(), "k"))
		a.heard(t, 1)

		resume()
		require.NoError(t, await(t, waiting, "A's Get").err)
		requireGet(t, a, "k", "new")
	})
}

// R7: what Redis did not store is answered and not kept in memory, although no event says so: the window was over, or the lease lost.
// Broken by: filled (cache.go) keeping the entry after Refused or WindowOver too.
func TestRefusedFillIsNotKeptInMemory(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		t.Run("window over", func(t *testing.T) {
			s, name := newSource(nil), redistest.Name(t)
			o := lasting(name, s)
			o.DeleteWindow = 500 * time.Millisecond
			p := openPeers(t, 2, client, o)
			a, b := p[0], p[1]
			for i := 0; ; i++ { // until a load was granted inside a window, as it is unless the machine stood still
				key := "k" + strconv.Itoa(i)
				s.write(key, "old")
				require.NoError(t, b.Invalidate(t.Context(), key))
				a.heard(t, uint64(i+1)) //nolint:gosec // small
				read, resume := s.holdRead(t, key)
				waiting := a.get(t.Context(), key)
				await(t, read, "A read the row of a lagging replica")
				cut, err := strconv.ParseInt(guardFields(t, b.rdb, valueKey(name, key))[3], 10, 64)
				require.NoError(t, err)
				if cut == 0 {
					resume()
					await(t, waiting, "A's Get")
					continue
				}
				s.write(key, "new")
				eventually(t, func() bool { return redisTime(t, b.rdb, valueKey(name, key)) > cut }, "the window is over")
				resume()
				require.Equal(t, result{value: "old"}, await(t, waiting, "A's Get"))
				require.EqualValues(t, 1, a.Stats().LoadsRefused)
				requireGet(t, a, key, "new")
				return
			}
		})
		t.Run("lease lost", func(t *testing.T) {
			s, name := newSource(map[string]string{"k": "old"}), redistest.Name(t)
			a := openPeer(t, client(t), lasting(name, s))
			read, resume := s.holdRead(t, "k")
			waiting := a.get(t.Context(), "k")
			await(t, read, "A read the row")
			require.NoError(t, client(t).Del(t.Context(), valueKey(name, "k")+":g").Err()) // as an evicting Redis does
			s.write("k", "new")
			resume()
			require.Equal(t, result{value: "old"}, await(t, waiting, "A's Get"))
			require.EqualValues(t, 1, a.Stats().LoadsRefused)
			requireGet(t, a, "k", "new")
		})
	})
}

// R4, P3: a Get that begins after Invalidate returned, nil or an error, neither waits for a load that began before nor is answered with it.
// Broken by: bump without flights.Forget.
func TestGetAfterInvalidateDoesNotJoinOlderLoad(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		dead, cancel := context.WithCancel(t.Context())
		cancel()
		for name, ctx := range map[string]context.Context{"nil": t.Context(), "error": dead} {
			t.Run(name, func(t *testing.T) {
				s := newSource(map[string]string{"k": "old"})
				a := openPeer(t, client(t), lasting(redistest.Name(t), s))
				read, resume := s.holdRead(t, "k")
				older := a.get(t.Context(), "k")
				await(t, read, "A read the row")
				s.write("k", "new")
				goOn := func() {}
				if ctx == dead { // an answer that is quicker than the look at ctx would be taken
					_, goOn = a.wire.hold(t, before, "invalidate")
				}
				err := a.Invalidate(ctx, "k")
				if ctx == dead {
					require.ErrorIs(t, err, tiercache.ErrPending)
					require.ErrorIs(t, err, context.Canceled)
				} else {
					require.NoError(t, err)
				}

				requireGet(t, a, "k", "new") // while the older load stands
				goOn()
				resume()
				await(t, older, "the older Get")
				requireGet(t, a, "k", "new")
				eventually(t, func() bool { return a.Stats().Pending == 0 }, "the invalidation is replayed")
				requireGet(t, a, "k", "new")
			})
		}
	})
}

// R4 from within: 1 Invalidate has begun; 2 a load begins and reads the old row; 3 Invalidate goes on and returns: who comes now does not
// join that load. The same for Update, whose write a load may begin in.
// Broken by: bump before the script only.
func TestFlightBegunInsideInvalidateIsNotJoined(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		s := newSource(map[string]string{"first": "", "k": "old"})
		inside, goOn := make(chan struct{}), make(chan struct{})
		o := lasting(redistest.Name(t), s)
		first := true
		o.Hooks = &tiercache.Hooks{Invalidated: func(uint64, bool) { // runs between the two keys
			if first {
				first = false
				close(inside)
				<-goOn
			}
		}}
		c, err := tiercache.New(o)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		p := &peer{process: &process{Cache: c}}
		read, resume := s.holdRead(t, "k")
		done := make(chan error, 1)
		go func() { done <- c.Invalidate(t.Context(), "first", "k") }()
		await(t, inside, "Invalidate has begun")
		older := p.get(t.Context(), "k")
		await(t, read, "a load has read the row")
		s.write("k", "new")
		close(goOn)
		require.NoError(t, await(t, done, "Invalidate"))

		requireGet(t, p, "k", "new") // while the older load stands
		resume()
		await(t, older, "the older Get")
		requireGet(t, p, "k", "new")
	})
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		t.Run("invalidate", func(t *testing.T) {
			s := newSource(map[string]string{"k": "old", "first": ""})
			a := openPeer(t, client(t), lasting(redistest.Name(t), s))
			requireGet(t, a, "first", "") // from now on the process knows its generation, for which it need not ask below
			read, resume := s.holdRead(t, "k")
			inside, goOn := a.wire.hold(t, before, "invalidate")
			done := make(chan error, 1)
			go func() { done <- a.Invalidate(t.Context(), "k") }()
			await(t, inside, "Invalidate has begun")
			// A process's scripts wait behind the held one; so many at once get a pipeline of their own.
			many := []string{"k"}
			for i := range 199 {
				many = append(many, strconv.Itoa(i))
			}
			older := make(chan error, 1)
			go func() {
				_, err := a.GetMany(t.Context(), many)
				older <- err
			}()
			await(t, read, "a load has read the row")
			s.write("k", "new")
			goOn()
			require.NoError(t, await(t, done, "Invalidate"))

			requireGet(t, a, "k", "new") // while the older load stands
			resume()
			require.NoError(t, await(t, older, "the older GetMany"))
			requireGet(t, a, "k", "new")
		})
		t.Run("update", func(t *testing.T) {
			s := newSource(map[string]string{"k": "old"})
			a := openPeer(t, client(t), lasting(redistest.Name(t), s))
			read, resume := s.holdRead(t, "k")
			var older <-chan result
			require.NoError(t, a.Update(t.Context(), "k", func(ctx context.Context) error {
				older = a.get(ctx, "k")
				await(t, read, "a load has read the row")
				s.write("k", "new")
				return nil
			}))
			requireGet(t, a, "k", "new") // while the older load stands
			resume()
			await(t, older, "the older Get")
			requireGet(t, a, "k", "new")
		})
	})
}

// R6: 1 the row changes, B invalidates; 2 a load that begins inside the delete window reads the old row from a lagging replica and is
// stored; 3 the window ends, and with it what was stored: neither Redis nor memory answers it any more, and nobody had to delete it.
// Broken by: acquire.lua with cut = 0 inside a window.
func TestFillFromInsideTheWindowDoesNotOutliveIt(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		o := lasting(name, s)
		o.DeleteWindow = time.Second
		p := openPeers(t, 2, client, o)
		a, b := p[0], p[1]
		for i := 0; ; i++ { // until all of it happened inside the window, as it does unless the machine stood still
			key := "k" + strconv.Itoa(i)
			at := valueKey(name, key)
			s.write(key, "old")
			began := redisTime(t, b.rdb, at)
			require.NoError(t, b.Invalidate(t.Context(), key))
			a.heard(t, uint64(i+1)) //nolint:gosec // small
			requireGet(t, a, key, "old")
			left := ttl(t, b.rdb, at)
			if redisTime(t, b.rdb, at)-began >= o.DeleteWindow.Milliseconds() {
				continue
			}
			require.Positive(t, left)
			require.LessOrEqual(t, left, o.DeleteWindow.Milliseconds())
			s.write(key, "new")
			gone(t, b.rdb, at)
			requireGet(t, a, key, "new")
			requireGet(t, b, key, "new")
			return
		}
	})
}

// R2: 1 A's GET is answered with the old value; 2 B invalidates, and A hears of it; 3 A takes the answer: it is not kept.
// Broken by: taken keeping under a mark taken at that moment.
func TestReadBeforeAnEventIsNotKept(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s := newSource(map[string]string{"k": "old", "j": "old"})
		p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
		a, b := p[0], p[1]
		for i, get := range map[string]func(key string) (string, error){
			"k": func(key string) (string, error) { return a.Get(t.Context(), key) },
			"j": func(key string) (string, error) {
				found, err := a.GetMany(t.Context(), []string{key})
				return found[key], err
			},
		} {
			requireGet(t, b, i, "old")
			events := a.Stats().Events
			answered, resume := a.wire.hold(t, after, "mget")
			waiting := make(chan result, 1)
			go func() {
				v, err := get(i)
				waiting <- result{v, err}
			}()
			await(t, answered, "A's GET was answered")
			s.write(i, "new")
			require.NoError(t, b.Invalidate(t.Context(), i))
			a.heard(t, events+1)

			resume()
			require.Equal(t, result{value: "old"}, await(t, waiting, "A's Get"))
			requireGet(t, a, i, "new")
		}
	})
}

// A load, or a read of Redis, that began before a Set neither overwrites what was set nor is answered after it, in either process.
// Broken by: fill.lua without the comparison of token and stamp.
func TestSetIsNotOvertakenByAnOlderLoad(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		for _, setter := range []string{"another process", "the same process"} {
			t.Run("load, "+setter, func(t *testing.T) {
				s := newSource(map[string]string{"k": "old"})
				p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
				a, b := p[0], p[1]
				read, resume := s.holdRead(t, "k")
				older := a.get(t.Context(), "k")
				await(t, read, "A read the row")
				s.write("k", "new")
				if setter == "the same process" {
					require.NoError(t, a.Set(t.Context(), "k", "new"))
				} else {
					require.NoError(t, b.Set(t.Context(), "k", "new"))
					a.heard(t, 1)
				}
				requireGet(t, a, "k", "new") // while the older load stands
				resume()
				await(t, older, "the older Get")
				require.EqualValues(t, 1, a.Stats().LoadsRefused)
				requireGet(t, a, "k", "new")
				requireGet(t, b, "k", "new")
				require.EqualValues(t, 1, s.loads.Load(), "what was set is read from Redis")
			})
		}
		t.Run("read", func(t *testing.T) {
			s := newSource(map[string]string{"k": "old"})
			p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
			a, b := p[0], p[1]
			requireGet(t, b, "k", "old")
			answered, resume := a.wire.hold(t, after, "mget")
			older := a.get(t.Context(), "k")
			await(t, answered, "A's GET was answered")
			s.write("k", "new")
			require.NoError(t, a.Set(t.Context(), "k", "new"))
			resume()
			await(t, older, "the older Get")
			requireGet(t, a, "k", "new")
		})
	})
}

// An Invalidate that comes while a Set is under way wins, wherever it meets the Set: between its two scripts, or before its put into memory.
// Broken by: fill.lua without the comparison; Set putting under a new mark.
func TestInvalidateOvertakesASet(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		for _, script := range []string{"invalidate", "fill"} {
			t.Run("behind "+script, func(t *testing.T) {
				s := newSource(map[string]string{"k": "set"})
				p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
				a, b := p[0], p[1]
				answered, resume := a.wire.hold(t, after, script)
				done := make(chan error, 1)
				go func() { done <- a.Set(t.Context(), "k", "set") }()
				await(t, answered, "the script was answered")
				s.write("k", "newer")
				require.NoError(t, b.Invalidate(t.Context(), "k"))
				a.heard(t, 1)

				resume()
				require.NoError(t, await(t, done, "Set"))
				requireGet(t, a, "k", "newer")
				requireGet(t, b, "k", "newer")
			})
		}
	})
}

// R15: what was loaded before a Clear is of the older generation, whether the loading process has heard of the Clear or not: it is a miss.
// Broken by: Fill with the generation of its own moment; judge answering an older generation.
func TestClearRefusesWhatWasLoadedBefore(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		for _, hear := range []bool{true, false} {
			t.Run("heard "+strconv.FormatBool(hear), func(t *testing.T) {
				s := newSource(map[string]string{"k": "old", "other": "x"})
				p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
				a, b := p[0], p[1]
				requireGet(t, a, "other", "x")
				inMemory := func() bool {
					e, err := a.GetEntry(t.Context(), "other")
					return err == nil && e.Tier == tiercache.Memory
				}
				require.True(t, inMemory())
				read, resume := s.holdRead(t, "k")
				older := a.get(t.Context(), "k")
				await(t, read, "A read the row")
				s.write("k", "new")
				require.NoError(t, b.Clear(t.Context()))
				if hear {
					eventually(t, func() bool { return !inMemory() }, "A hears of the Clear")
				}
				resume()
				await(t, older, "the older Get")
				requireGet(t, b, "k", "new")
				if hear {
					requireGet(t, a, "k", "new")
				}
				eventually(t, func() bool { v, err := a.Get(t.Context(), "k"); return err == nil && v == "new" }, "A answers the new row")
			})
		}
	})
}

// Two processes ask for the same keys in opposite orders; each is granted the one that the other waits for. Each loads what it was granted
// before it waits, so that neither waits for ever, and each key is loaded once.
// Broken by: rebuildMany waiting for what is held before it loads what was granted.
func TestTwoBatchesInOppositeOrderDoNotWaitForEachOther(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		keys := together(t, client(t), 2) // of one master, so that their leases are asked for in one pipeline
		one, two := keys[0], keys[1]
		s := newSource(map[string]string{one: "1", two: "2"})
		oneBegan := make(chan struct{})
		s.before(func(ctx context.Context, key string) error {
			if key == one {
				close(oneBegan)
				return nil
			}
			select {
			case <-oneBegan:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		p := openPeers(t, 2, client, lasting(redistest.Name(t), s))
		a, b := p[0], p[1]
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		type batch struct {
			found map[string]string
			err   error
		}
		get := func(p *peer, keys ...string) <-chan batch {
			c := make(chan batch, 1)
			go func() {
				found, err := p.GetMany(ctx, keys)
				c <- batch{found, err}
			}()
			return c
		}
		halfway, aOn := a.wire.hold(t, between, "acquire")
		ofA := get(a, one, two)
		await(t, halfway, "A was granted the first key")
		answered, bOn := b.wire.hold(t, after, "acquire")
		ofB := get(b, two, one)
		await(t, answered, "B was granted the second key, and told that the first is held")
		aOn()
		bOn()

		want := batch{found: map[string]string{one: "1", two: "2"}}
		require.Equal(t, want, await(t, ofA, "A's batch"))
		require.Equal(t, want, await(t, ofB, "B's batch"))
		require.EqualValues(t, 2, s.loads.Load())
	})
}
