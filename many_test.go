package tiercache_test

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/rebuild"
)

// batches is a source that is asked for many rows at once and notes the calls.
type batches struct {
	*source
	mu    sync.Mutex
	calls [][]string
}

// loadMany reads all rows by one call; before and after are called with the keys joined by commas.
func (b *batches) loadMany(ctx context.Context, keys []string) (map[string]string, error) {
	b.mu.Lock()
	b.calls = append(b.calls, slices.Clone(keys))
	b.mu.Unlock()
	b.source.mu.Lock()
	before := b.onLoad
	b.source.mu.Unlock()
	if before != nil {
		if err := before(ctx, strings.Join(keys, ",")); err != nil {
			return map[string]string{keys[0]: "not to be used"}, err
		}
	}
	b.source.mu.Lock()
	defer b.source.mu.Unlock()
	rows := map[string]string{"not asked for": "junk"}
	for _, key := range keys {
		if row, ok := b.rows[key]; ok {
			rows[key] = row
		}
	}
	return rows, nil
}

// asked returns the keys of each call so far, in order.
func (b *batches) asked() [][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	asked := make([][]string, len(b.calls))
	for i, keys := range b.calls {
		asked[i] = slices.Sorted(slices.Values(keys))
	}
	return asked
}

// openBatches opens a cache over rows that has LoadMany and no Load.
func openBatches(t *testing.T, rows map[string]string, change func(*tiercache.Options[string, string])) (cacheOfStrings, *batches) {
	t.Helper()
	b := &batches{source: newSource(rows)}
	return openAlone(t, b.source, func(o *tiercache.Options[string, string]) {
		o.Load, o.LoadMany = nil, b.loadMany
		if change != nil {
			change(o)
		}
	}), b
}

// loadErrors returns the errors of a batch by key, and wants all of them to be *LoadErrors.
func loadErrors(t *testing.T, err error) map[string]error {
	t.Helper()
	byKey := map[string]error{}
	joined, ok := err.(interface{ Unwrap() []error }) // what errors.Join returns, not something in its chain
	require.True(t, ok, "not joined: %v", err)
	for _, one := range joined.Unwrap() {
		var failed *tiercache.LoadError
		require.ErrorAs(t, one, &failed)
		require.NotContains(t, byKey, failed.Key, "one error a key")
		byKey[failed.Key] = failed.Err
	}
	return byKey
}

func TestGetManyLoadsAllMissesByOneCall(t *testing.T) {
	// What memory lacks is loaded by one call, duplicates once; absent keys are in neither map nor error and are kept as absent; keys that
	// were not asked for are ignored; what memory has is not asked again.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"a": "1", "b": "2", "c": "3"}, nil)
		wantValue(t, c, "a", "1")
		rows, err := c.GetMany(t.Context(), []string{"a", "b", "b", "none", "c", "b"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "1", "b": "2", "c": "3"}, rows)
		require.Equal(t, [][]string{{"a"}, {"b", "c", "none"}}, b.asked())
		stats := c.Stats()
		require.EqualValues(t, 2, stats.Loads)
		require.EqualValues(t, 4, stats.LoadedKeys)
		require.EqualValues(t, 1, stats.MemoryHits)
		require.EqualValues(t, 4, stats.Misses)

		rows, err = c.GetMany(t.Context(), []string{"a", "b", "c", "none"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "1", "b": "2", "c": "3"}, rows)
		require.Len(t, b.asked(), 2)
		require.EqualValues(t, 1, c.Stats().AbsentHits)
		wantAbsent(t, c, "none")
		_, err = c.Get(t.Context(), "not asked for")
		require.NoError(t, err)
		require.Len(t, b.asked(), 3, "a row that came unasked was not kept")
	})
}

func TestGetManyOfNothingIsAnEmptyMap(t *testing.T) {
	// No keys: an empty map, no error, no load, even if ctx has ended.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, nil, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, keys := range [][]string{nil, {}} {
			rows, err := c.GetMany(ctx, keys)
			require.NoError(t, err)
			require.NotNil(t, rows)
			require.Empty(t, rows)
		}
		require.Empty(t, b.asked())
	})
}

func TestLoadAndLoadManyStandInForEachOther(t *testing.T) {
	// Get with only LoadMany calls it with one key; with both given, Get calls Load and GetMany LoadMany.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"a": "1"}, nil)
		wantValue(t, c, "a", "1")
		wantAbsent(t, c, "b")
		require.Equal(t, [][]string{{"a"}, {"b"}}, b.asked())
		value, err := c.Refresh(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "1", value)

		o := options("both", b.source)
		o.LoadMany = b.loadMany
		both := openCache(t, o)
		wantValue(t, both, "a", "1")
		require.EqualValues(t, 1, b.loads.Load())
		_, err = both.GetMany(t.Context(), []string{"b", "c"})
		require.NoError(t, err)
		require.EqualValues(t, 1, b.loads.Load())
		require.Equal(t, []string{"b", "c"}, b.asked()[3])
	})
}

func TestGetManyAsksForAThousandKeysACallBehindOneSlot(t *testing.T) {
	// LoadMany gets at most 1,000 keys a call, and each call takes one slot of the gate, one after the other.
	synctest.Test(t, func(t *testing.T) {
		rows, keys := map[string]string{}, []string{}
		for i := range 2500 {
			keys = append(keys, fmt.Sprint(i))
			rows[keys[i]] = "v"
		}
		c, b := openBatches(t, rows, func(o *tiercache.Options[string, string]) {
			o.Gate = rebuild.GateOptions{Loads: 1, Waiting: 1, Wait: time.Millisecond}
		})
		b.before(func(context.Context, string) error { time.Sleep(time.Second); return nil })
		found, err := c.GetMany(t.Context(), keys)
		require.True(t, maps.Equal(rows, found), "%d of %d found", len(found), len(rows))
		require.NoError(t, err)
		var sizes []int
		for _, call := range b.asked() {
			sizes = append(sizes, len(call))
		}
		require.Equal(t, []int{1000, 1000, 500}, sizes)
	})
}

func TestGetManyWithOnlyLoadRunsSixteenAtATime(t *testing.T) {
	// Without LoadMany a batch loads key by key, at most 16 at a time, and those that are still to come do not stand in the gate's queue.
	synctest.Test(t, func(t *testing.T) {
		s, keys := newSource(nil), []string{}
		for i := range 100 {
			keys = append(keys, fmt.Sprint(i))
			s.write(keys[i], "v")
		}
		s.before(func(context.Context, string) error { time.Sleep(time.Second); return nil })
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Gate = rebuild.GateOptions{Loads: 16, Waiting: 1, Wait: time.Millisecond}
		})
		begun := time.Now()
		rows, err := c.GetMany(t.Context(), append(keys, keys...))
		require.NoError(t, err)
		require.Len(t, rows, 100)
		require.EqualValues(t, 100, s.loads.Load())
		require.EqualValues(t, 16, s.most.Load())
		require.Equal(t, 7*time.Second, time.Since(begun))
	})
}

func TestGetManyJoinsFailuresAndReturnsTheRest(t *testing.T) {
	// Each key that could not be had is one *LoadError of the joined error, whatever ended its load; the map holds the others; a key with a
	// stale value is answered that.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"a": "1", "b": "2", "stale": "3"})
		s.before(func(_ context.Context, key string) error {
			switch key {
			case "down":
				return errDown
			case "panics":
				panic("boom")
			case "exits":
				runtime.Goexit()
			}
			return nil
		})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "stale", "3")
		pass(time.Minute)
		s.remove("stale")
		rows, err := c.GetMany(t.Context(), []string{"a", "down", "stale", "panics", "none", "exits", "b"})
		require.Equal(t, map[string]string{"a": "1", "b": "2", "stale": "3"}, rows)
		failed := loadErrors(t, err)
		require.Equal(t, []string{"down", "exits", "panics"}, slices.Sorted(maps.Keys(failed)))
		require.ErrorIs(t, failed["down"], errDown)
		require.ErrorIs(t, failed["exits"], tiercache.ErrGoexit)
		var panicked *tiercache.PanicError
		require.ErrorAs(t, failed["panics"], &panicked)
	})
}

func TestFailedLoadManyFailsEveryKeyForEveryCaller(t *testing.T) {
	// With an error, a panic or a Goexit of LoadMany its map is not used: every key is an error, never an empty value, for the batch that
	// led, for a batch that followed and for a Get that joined. Nothing is kept and the keys are free at once.
	for _, test := range []struct {
		name string
		end  func() error
		want error
	}{
		{"error", func() error { return errDown }, errDown},
		{"panic", func() error { panic(errDown) }, errDown},
		{"Goexit", func() error { runtime.Goexit(); return nil }, tiercache.ErrGoexit},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, b := openBatches(t, map[string]string{"a": "1", "b": "2"}, nil)
				b.before(func(context.Context, string) error { time.Sleep(time.Second); return test.end() })
				type result struct {
					rows map[string]string
					err  error
				}
				results := make(chan result, 2)
				for range 2 {
					go func() {
						rows, err := c.GetMany(t.Context(), []string{"a", "b"})
						results <- result{rows, err}
					}()
					synctest.Wait()
				}
				joined := goGet(t.Context(), c, "b")
				for range 2 {
					r := <-results
					require.NotNil(t, r.rows)
					require.Empty(t, r.rows)
					failed := loadErrors(t, r.err)
					require.Len(t, failed, 2)
					require.ErrorIs(t, failed["a"], test.want)
					require.ErrorIs(t, failed["b"], test.want)
				}
				wantLoadError(t, (<-joined).err, "b", test.want)
				require.Len(t, b.asked(), 1)
				require.Zero(t, c.Stats().MemoryEntries)
				b.before(nil)
				rows, err := c.GetMany(t.Context(), []string{"a", "b"})
				require.NoError(t, err)
				require.Equal(t, map[string]string{"a": "1", "b": "2"}, rows)
			})
		})
	}
}

func TestOverlappingBatchesAndGetsLoadEachKeyOnce(t *testing.T) {
	// P1: whatever is under way is joined, key by key: a Get, then batches {1,2,3}, {3,4}, {4,3}, then a Get.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"1": "v1", "2": "v2", "3": "v3", "4": "v4"}, nil)
		unlock := b.lock()
		defer unlock()
		first := goGet(t.Context(), c, "2")
		synctest.Wait()
		results := make(chan string, 3)
		for _, keys := range [][]string{{"1", "2", "3"}, {"3", "4"}, {"4", "3"}} {
			go func() {
				rows, err := c.GetMany(t.Context(), keys)
				results <- fmt.Sprint(rows, err)
			}()
			synctest.Wait()
		}
		last := goGet(t.Context(), c, "4")
		synctest.Wait()
		require.Equal(t, [][]string{{"2"}, {"1", "3"}, {"4"}}, b.asked())
		unlock()
		require.Equal(t, "v2", (<-first).value)
		require.Equal(t, "v4", (<-last).value)
		all := []string{<-results, <-results, <-results}
		slices.Sort(all)
		require.EqualValues(t, 5, c.Stats().Coalesced, "2; 3; 4 and 3; 4")
		require.Equal(t, []string{"map[1:v1 2:v2 3:v3] <nil>", "map[3:v3 4:v4] <nil>", "map[3:v3 4:v4] <nil>"}, all)
	})
}

func TestBatchesOfKeysThatPrintAlikeAreNotMixedUp(t *testing.T) {
	// ["a b"] and ["a", "b"] under way at once have nothing to do with each other.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"a b": "one", "a": "1", "b": "2", "a,b": "three"}, nil)
		unlock := b.lock()
		results := make(chan map[string]string, 3)
		batches := [][]string{{"a b"}, {"a", "b"}, {"a,b"}}
		for _, keys := range batches {
			go func() {
				rows, _ := c.GetMany(t.Context(), keys)
				results <- rows
			}()
		}
		synctest.Wait()
		require.Len(t, b.asked(), 3)
		unlock()
		all := map[string]string{}
		for range batches {
			maps.Copy(all, <-results)
		}
		require.Equal(t, map[string]string{"a b": "one", "a": "1", "b": "2", "a,b": "three"}, all)
	})
}

func TestGetManyThatEndsMidWaitReturnsWhatIsThere(t *testing.T) {
	// P9: when ctx ends, a batch returns at once what it has, with the context's error once, not one a key; the load goes on and is kept.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"kept": "1", "fast": "2", "slow": "3", "slower": "4"})
		s.before(func(ctx context.Context, key string) error {
			if strings.HasPrefix(key, "slow") {
				time.Sleep(time.Second)
			}
			return ctx.Err()
		})
		c := openAlone(t, s, nil)
		wantValue(t, c, "kept", "1")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begun := time.Now()
		rows, err := c.GetMany(ctx, []string{"slow", "fast", "kept", "slower"})
		require.Equal(t, 100*time.Millisecond, time.Since(begun))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, context.DeadlineExceeded.Error(), err.Error())
		require.Equal(t, map[string]string{"kept": "1", "fast": "2"}, rows)
		pass(time.Second)
		rows, err = c.GetMany(ctx, []string{"slow", "fast", "kept", "slower", "none"}) // ctx has ended
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, map[string]string{"kept": "1", "fast": "2", "slow": "3", "slower": "4"}, rows)
		require.EqualValues(t, 4, s.loads.Load())
	})
}

func TestGetManyTellsTheLoaderOfItsOwnDeadline(t *testing.T) {
	// LoadMany runs under LoadTimeout with the values of the caller's context: where it ignores that, each key is DeadlineExceeded.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, nil, nil)
		seen := make(chan any, 1)
		hold := make(chan struct{})
		b.before(func(ctx context.Context, _ string) error { seen <- ctx.Value(inContext{}); <-hold; return nil })
		begun := time.Now()
		rows, err := c.GetMany(context.WithValue(t.Context(), inContext{}, "mine"), []string{"a", "b"})
		require.Equal(t, 3*time.Second, time.Since(begun))
		require.Empty(t, rows)
		failed := loadErrors(t, err)
		require.ErrorIs(t, failed["a"], context.DeadlineExceeded)
		require.ErrorIs(t, failed["b"], context.DeadlineExceeded)
		require.Equal(t, "mine", <-seen)
		require.EqualValues(t, 1, c.Stats().LoadsRunning)
		close(hold)
	})
}

func TestGetManyAnswersStaleAndRebuildsBehindByOneCall(t *testing.T) {
	// A batch answers stale values without a wait (not even StaleWait) and rebuilds all of them behind by one call.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"a": "old", "b": "old"}, func(o *tiercache.Options[string, string]) {
			o.TTL, o.StaleWait = time.Minute, time.Second
		})
		_, err := c.GetMany(t.Context(), []string{"a", "b"})
		require.NoError(t, err)
		pass(time.Minute)
		b.write("a", "new")
		b.write("b", "new")
		b.before(func(context.Context, string) error { time.Sleep(time.Second); return nil })
		begun := time.Now()
		for range 3 {
			rows, err := c.GetMany(t.Context(), []string{"a", "b", "a"})
			require.NoError(t, err)
			require.Equal(t, map[string]string{"a": "old", "b": "old"}, rows)
		}
		require.Zero(t, time.Since(begun))
		require.EqualValues(t, 6, c.Stats().StaleServed)
		pass(time.Second)
		rows, err := c.GetMany(t.Context(), []string{"a", "b"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "new", "b": "new"}, rows)
		require.Equal(t, [][]string{{"a", "b"}, {"a", "b"}}, b.asked())
	})
}

func TestGetManyBacksOffKeyByKey(t *testing.T) {
	// P8: of a batch, the keys that failed twice in a row rest; the others are loaded.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"a": "1", "b": "2"}, nil)
		b.before(func(context.Context, string) error { return errDown })
		for range 2 {
			_, err := c.GetMany(t.Context(), []string{"a"})
			wantLoadError(t, err, "a", errDown)
		}
		b.before(nil)
		rows, err := c.GetMany(t.Context(), []string{"a", "b"})
		wantLoadError(t, err, "a", tiercache.ErrBackingOff)
		require.Equal(t, map[string]string{"b": "2"}, rows)
		pass(100 * time.Millisecond)
		wantValue(t, c, "a", "1")
	})
}

func TestGetManyAnswersEverySpellingOfAKey(t *testing.T) {
	// With a KeyString that gives two keys one form they are one entry, loaded once; a batch that asks for both finds both in its map.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"Key": "v"}, func(o *tiercache.Options[string, string]) { o.KeyString = strings.ToLower })
		for range 2 {
			rows, err := c.GetMany(t.Context(), []string{"Key", "KEY", "Key"})
			require.NoError(t, err)
			require.Equal(t, map[string]string{"Key": "v", "KEY": "v"}, rows)
		}
		require.Len(t, b.asked(), 1)
	})
}

func TestGetManyWithABadKeyDoesNothing(t *testing.T) {
	// One key over the limit fails the call before anything was loaded.
	synctest.Test(t, func(t *testing.T) {
		c, b := openBatches(t, map[string]string{"a": "1"}, nil)
		_, err := c.GetMany(t.Context(), []string{"a", strings.Repeat("x", 8<<10+1)})
		require.ErrorContains(t, err, "8193 bytes")
		require.Empty(t, b.asked())
	})
}

// P9: keys of GetMany whose rebuilds gave way are loaded together, as they would have been had nobody else begun:
//
//  1. Warm begins the rebuild of 100 keys.
//  2. GetMany of them joins it.
//  3. Warm's load is turned away, as the gate does, or here the source.
//  4. GetMany loads them: by one call, not one after the other.
//
// Broken by: in GetMany, flown for each key that gave way at first.
func TestKeysOfABatchThatGaveWayAreLoadedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := map[string]string{}
		for key := range numbers(100) {
			rows[key] = "row " + key
		}
		c, b := openBatches(t, rows, nil)
		var turned atomic.Bool
		release := make(chan struct{})
		b.before(func(context.Context, string) error {
			if turned.Swap(true) {
				return nil
			}
			<-release
			return tiercache.ErrOverloaded
		})
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := c.Warm(t.Context(), maps.Keys(rows), tiercache.WarmOptions{KeysPerSecond: -1}); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			got, err := c.GetMany(t.Context(), slices.Collect(maps.Keys(rows)))
			if err != nil || !maps.Equal(got, rows) {
				t.Errorf("GetMany = %d rows, %v, want all", len(got), err)
			}
		})
		synctest.Wait()
		close(release)
		all.Wait()
		require.Len(t, b.asked(), 2, "calls of LoadMany")
	})
}

// "Not found" from LoadMany is the answer for one key, also in a batch of one. For several it does not say which: it is a failure, counted as one, and
// no key is taken to be absent. Broken by: either return in `if saysAbsent(err)` of loadMany left out.
func TestNotFoundFromLoadMany(t *testing.T) {
	for _, keys := range [][]string{{"a"}, {"a", "b"}} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource(nil)
			b := &batches{source: s}
			s.before(func(context.Context, string) error { return fmt.Errorf("no rows: %w", tiercache.ErrNotFound) })
			c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.LoadMany = b.loadMany })
			for range 2 {
				found, err := c.GetMany(t.Context(), keys)
				require.Empty(t, found)
				if len(keys) == 1 {
					require.NoError(t, err)
					continue
				}
				var failed *tiercache.LoadError
				require.ErrorAs(t, err, &failed)
				require.NotErrorIs(t, err, tiercache.ErrNotFound)
			}
			require.Len(t, b.calls, len(keys), "one key is known to be absent, of two nothing is known")
			if len(keys) == 1 {
				require.Zero(t, c.Stats().LoadErrors)
				wantAbsent(t, c, "a")
				return
			}
			require.EqualValues(t, 2, c.Stats().LoadErrors)
			s.before(nil)
			s.write("a", "row")
			pass(time.Second) // the keys rest
			wantValue(t, c, "a", "row")
		})
	}
}
