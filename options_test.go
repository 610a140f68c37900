package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

func TestEveryMistakeOfOptionsIsNamed(t *testing.T) {
	// Bad input gets an error that names the field; alone, each is enough to fail New.
	type opts = tiercache.Options[string, string]
	s := newSource(nil)
	for _, test := range []struct {
		name   string
		change func(*opts)
		want   string
	}{
		{"no name", func(o *opts) { o.Name = "" }, "Name is required"},
		{"blank name", func(o *opts) { o.Name = " \t" }, "Name is required"},
		{"long name", func(o *opts) { o.Name = strings.Repeat("n", 201) }, "Name has 201 bytes"},
		{"no loader", func(o *opts) { o.Load = nil }, "Load or LoadMany is required"},
		{"MemoryBytes", func(o *opts) { o.MemoryBytes = -1 }, "MemoryBytes is negative"},
		{"TTL", func(o *opts) { o.TTL = -1 }, "TTL is negative"},
		{"MemoryTTL", func(o *opts) { o.MemoryTTL = -1 }, "MemoryTTL is negative"},
		{"AbsentMisses", func(o *opts) { o.AbsentMisses = -1 }, "AbsentMisses is -1, it must be 1 or 2"},
		{"AbsentMisses that nobody counts", func(o *opts) { o.AbsentMisses = 3 }, "AbsentMisses is 3"},
		{"StaleWait", func(o *opts) { o.StaleWait = -1 }, "StaleWait is negative"},
		{"DeleteWindow", func(o *opts) { o.DeleteWindow = -1 }, "DeleteWindow is negative"},
		{"LoadTimeout", func(o *opts) { o.LoadTimeout = -1 }, "LoadTimeout is negative"},
		{"LeaseTime", func(o *opts) { o.LeaseTime = -1 }, "LeaseTime is negative"},
		{"LeaseTime too short", func(o *opts) { o.LeaseTime = 100*time.Millisecond - 1 }, "LeaseTime is 99.999999ms"},
		{"Jitter 1", func(o *opts) { o.Jitter = 1 }, "Jitter is 1"},
		{"Jitter NaN", func(o *opts) { o.Jitter = math.NaN() }, "Jitter is NaN"},
		{"Jitter infinite", func(o *opts) { o.Jitter = math.Inf(1) }, "Jitter is +Inf"},
		{"RefreshAhead 1", func(o *opts) { o.RefreshAhead = 1 }, "RefreshAhead is 1"},
		{"RefreshAhead NaN", func(o *opts) { o.RefreshAhead = math.NaN() }, "RefreshAhead is NaN"},
		{"Gate.Loads", func(o *opts) { o.Gate.Loads = -1 }, "GateOptions.Loads is negative"},
		{"Gate.Waiting", func(o *opts) { o.Gate.Waiting = -1 }, "GateOptions.Waiting is negative"},
		{"Gate.Wait", func(o *opts) { o.Gate.Wait = -1 }, "GateOptions.Wait is negative"},
		{"Breaker.FailureRate", func(o *opts) { o.Breaker.FailureRate = 1.1 }, "BreakerOptions.FailureRate is 1.1"},
		{"Breaker.FailureRate NaN", func(o *opts) { o.Breaker.FailureRate = math.NaN() }, "BreakerOptions.FailureRate is NaN"},
		{"Breaker.MinLoads", func(o *opts) { o.Breaker.MinLoads = -1 }, "BreakerOptions.MinLoads is negative"},
		{"Breaker.Window", func(o *opts) { o.Breaker.Window = -1 }, "BreakerOptions.Window is negative"},
		{"Breaker.OpenFor", func(o *opts) { o.Breaker.OpenFor = -1 }, "BreakerOptions.OpenFor is negative"},
		{"Breaker.MaxOpenFor", func(o *opts) { o.Breaker.MaxOpenFor = -1 }, "BreakerOptions.MaxOpenFor is negative"},
		{"Breaker.MaxOpenFor too short", func(o *opts) { o.Breaker.MaxOpenFor = 1 }, "BreakerOptions.MaxOpenFor is 1ns, shorter"},
		{"Filter without capacity", func(o *opts) { o.Filter.FalsePositiveRate = 0.1 }, "Capacity"},
		{"Filter rate", func(o *opts) { o.Filter = bloom.Options{Capacity: 1, FalsePositiveRate: 1} }, "FalsePositiveRate"},
		{"Filter rate NaN", func(o *opts) { o.Filter = bloom.Options{Capacity: 1, FalsePositiveRate: math.NaN()} }, "FalsePositiveRate"},
		{"Filter too large", func(o *opts) { o.Filter = bloom.Options{Capacity: math.MaxUint64} }, "Capacity"},
		{"Filter in Redis without Shared", func(o *opts) { o.Filter = bloom.Options{Capacity: 1, Form: bloom.InRedis} }, "InRedis, but there is no Shared"},
		{"FilterFirst", func(o *opts) { o.FilterFirst = true }, "FilterFirst"},
		{"HotCopies", func(o *opts) { o.HotCopies = -1 }, "HotCopies is -1"},
		{"HotCopies too many", func(o *opts) { o.HotCopies = 17 }, "HotCopies is 17"},
		{"HotCopies alone", func(o *opts) { o.HotCopies = 1; o.Shared = nil }, "HotCopies is set, but there is no Shared"},
		{"WarmList", func(o *opts) { o.WarmList = -1 }, "WarmList is negative"},
		{"WarmList too long", func(o *opts) { o.WarmList = 10_001 }, "WarmList is 10001"},
		{"WarmList without Shared", func(o *opts) { o.WarmList = 1 }, "there is no Shared"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options("mistakes", s)
			test.change(&o)
			c, err := tiercache.New(o)
			require.ErrorContains(t, err, test.want)
			require.Nil(t, c)
			require.True(t, strings.HasPrefix(err.Error(), "tiercache: "), err)
		})
	}
}

func TestAllMistakesOfOptionsComeInOneError(t *testing.T) {
	// New does not stop at the first mistake.
	_, err := tiercache.New(tiercache.Options[float64, int]{
		MemoryBytes: -1, TTL: -1, MemoryTTL: -1, AbsentMisses: -1, StaleWait: -1, DeleteWindow: -1, LoadTimeout: -1, LeaseTime: time.Millisecond,
		Jitter: math.NaN(), RefreshAhead: 2,
		Gate:    rebuild.GateOptions{Loads: -1, Waiting: -1, Wait: -1},
		Breaker: rebuild.BreakerOptions{FailureRate: 2, MinLoads: -1, Window: -1, OpenFor: -1, MaxOpenFor: -1},
		Filter:  bloom.Options{FalsePositiveRate: 2},
	})
	require.Error(t, err)
	for _, want := range []string{
		"Name", "Load or LoadMany", "MemoryBytes", "TTL is negative", "MemoryTTL", "AbsentMisses", "StaleWait", "DeleteWindow", "LoadTimeout", "LeaseTime",
		"Jitter", "RefreshAhead", "GateOptions.Loads", "GateOptions.Waiting", "GateOptions.Wait", "Capacity", "FalsePositiveRate", "float64",
		"BreakerOptions.FailureRate", "BreakerOptions.MinLoads", "BreakerOptions.Window", "BreakerOptions.OpenFor", "BreakerOptions.MaxOpenFor",
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestNegativeIsOffWhereTheCommentSaysSo(t *testing.T) {
	// AbsentTTL, MaxStale, Jitter, RefreshAhead and Breaker.FailureRate may be negative; a name may hold anything; LeaseTime may be its least.
	s := newSource(map[string]string{"k": "v"})
	o := options("a:b{c} %\x00é", s)
	o.AbsentTTL, o.MaxStale, o.Jitter, o.RefreshAhead, o.LeaseTime = -1, -1, math.Inf(-1), -1, 100*time.Millisecond
	o.Breaker.FailureRate = math.Inf(-1)
	c := openCache(t, o)
	wantValue(t, c, "k", "v")
}

func TestNameIsOpenOnceOnAMemory(t *testing.T) {
	// Two open caches of one name would answer for each other: the second is an error that names it, and leaves the first alone. A closed
	// cache frees its name. Private memories do not meet.
	memory, err := layers.NewMemory(layers.MemoryOptions{})
	require.NoError(t, err)
	s := newSource(map[string]string{"k": "v"})
	o := options("twice", s)
	openCache(t, o)
	openCache(t, o)
	o.Memory = memory
	c := openCache(t, o)
	wantValue(t, c, "k", "v")
	_, err = tiercache.New(o)
	require.ErrorContains(t, err, `"twice"`)
	wantValue(t, c, "k", "v")
	require.EqualValues(t, 1, s.loads.Load())
	require.NoError(t, c.Close())
	require.Zero(t, memory.Stats().Entries, "a closed cache gives its memory back")
	again := openCache(t, o)
	wantValue(t, again, "k", "v")
	require.EqualValues(t, 2, s.loads.Load())
	require.NoError(t, again.Close())
	require.NoError(t, memory.Close())
	_, err = tiercache.New(o)
	require.ErrorContains(t, err, "closed")
}

// everyCall calls each method that can fail and returns the errors by name.
func everyCall(ctx context.Context, c cacheOfStrings, called func()) map[string]error {
	errs := map[string]error{}
	_, errs["Get"] = c.Get(ctx, "k")
	_, errs["GetEntry"] = c.GetEntry(ctx, "k")
	_, errs["GetMany"] = c.GetMany(ctx, []string{"k"})
	_, errs["GetMany of nothing"] = c.GetMany(ctx, nil)
	_, errs["Refresh"] = c.Refresh(ctx, "k")
	errs["Set"] = c.Set(ctx, "k", "v")
	errs["Invalidate"] = c.Invalidate(ctx, "k")
	errs["Invalidate of nothing"] = c.Invalidate(ctx)
	errs["Announce"] = c.Announce(ctx, "k")
	errs["Clear"] = c.Clear(ctx)
	write := func(context.Context) error { called(); return nil }
	errs["Update"] = c.Update(ctx, "k", write)
	errs["UpdateMany"] = c.UpdateMany(ctx, []string{"k"}, write)
	_, errs["BuildFilterFrom"] = c.BuildFilterFrom(ctx, func(context.Context, string) ([]string, string, error) { called(); return nil, "", nil }, bloom.BuildOptions{})
	_, errs["BuildFilter"] = c.BuildFilter(ctx, func(func(string, error) bool) { called() }, bloom.BuildOptions{})
	return errs
}

func TestNilContextIsAnErrorOfEveryCall(t *testing.T) {
	// A nil context panics nowhere, not even on a memory hit, and nothing is done.
	s := newSource(map[string]string{"k": "v"})
	o := options("nil", s)
	o.Filter = bloom.Options{Capacity: 1}
	c := openCache(t, o)
	wantValue(t, c, "k", "v")
	for name, err := range everyCall(nil, c, func() { t.Error("called") }) { //nolint:staticcheck // nil is the point
		require.ErrorIs(t, err, tiercache.ErrNilContext, name)
	}
	wantValue(t, c, "k", "v")
	require.EqualValues(t, 1, s.loads.Load())
}

func TestEveryCallAfterCloseIsErrClosed(t *testing.T) {
	// P11: after Close nothing is answered, not even what memory had, and nothing is called. Stats still counts.
	s := newSource(map[string]string{"k": "v"})
	o := options("closed", s)
	o.Filter = bloom.Options{Capacity: 1}
	c := openCache(t, o)
	wantValue(t, c, "k", "v")
	require.NoError(t, c.Close())
	for name, err := range everyCall(t.Context(), c, func() { t.Error("called") }) {
		require.ErrorIs(t, err, tiercache.ErrClosed, name)
		var failed *tiercache.LoadError
		require.NotErrorAs(t, err, &failed, name)
	}
	require.EqualValues(t, 1, s.loads.Load())
	require.EqualValues(t, 1, c.Stats().Loads)
}

func TestBuildFilterNeedsAFilterAndRows(t *testing.T) {
	// Without Options.Filter, and with nil rows, BuildFilter says so.
	s := newSource(nil)
	c := openCache(t, options("plain", s))
	none := func(func(string, error) bool) {}
	_, err := c.BuildFilter(t.Context(), none, bloom.BuildOptions{})
	require.ErrorContains(t, err, "no Filter")
	_, err = c.BuildFilterFrom(t.Context(), nil, bloom.BuildOptions{})
	require.ErrorContains(t, err, "no Filter")
	o := options("filtered", s)
	o.Filter = bloom.Options{Capacity: 1}
	c = openCache(t, o)
	_, err = c.BuildFilter(t.Context(), nil, bloom.BuildOptions{})
	require.ErrorContains(t, err, "nil rows")
	_, err = c.BuildFilterFrom(t.Context(), nil, bloom.BuildOptions{})
	require.ErrorContains(t, err, "nil rows")
	wantAbsent(t, c, "k")
	require.EqualValues(t, 1, s.loads.Load(), "a failed build lets everything pass")
}

func TestCloseEndsLoadsAndThoseWhoWait(t *testing.T) {
	// P11: Close cancels loads with the cause ErrClosed and does not wait longer than they take; whoever waits, for a load, at the gate, in a
	// batch, for a Refresh, gets ErrClosed. It may be called again, and by many at once, with one answer. The bubble would report any
	// goroutine left behind.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"stale": "v"})
		o := options("close", s)
		o.TTL = time.Minute
		o.Gate = rebuild.GateOptions{Loads: 23, Waiting: 10, Wait: time.Hour}
		o.LoadTimeout = 10 * time.Second
		c := openCache(t, o)
		wantValue(t, c, "stale", "v")
		pass(time.Minute)
		var causes sync.Map
		s.before(func(ctx context.Context, key string) error {
			<-ctx.Done()
			causes.Store(key, context.Cause(ctx))
			return ctx.Err()
		})
		wantValue(t, c, "stale", "v") // rebuilt behind
		waits := map[string]<-chan got{}
		for i := range 20 { // many, for whether the load or its context is seen to end first is a race
			key := fmt.Sprint("get ", i)
			waits[key], waits["join "+key] = goGet(t.Context(), c, key), goGet(t.Context(), c, key)
		}
		waits["batch"] = goGetMany(t.Context(), c, "batch")
		refreshed := make(chan got, 1)
		go func() {
			value, err := c.Refresh(t.Context(), "refresh")
			refreshed <- got{value, err, time.Now()}
		}()
		waits["refresh"] = refreshed
		synctest.Wait()
		waits["gate"] = goGet(t.Context(), c, "gate")
		synctest.Wait()
		require.EqualValues(t, 23, c.Stats().LoadsRunning)
		require.EqualValues(t, 1, c.Stats().LoadsWaiting)

		begun := time.Now()
		var closing sync.WaitGroup
		var failed atomic.Int64
		for range 5 {
			closing.Go(func() {
				if c.Close() != nil {
					failed.Add(1)
				}
			})
		}
		closing.Wait()
		require.Zero(t, failed.Load())
		require.Zero(t, time.Since(begun))
		require.NoError(t, c.Close())
		for name, wait := range waits {
			require.ErrorIs(t, (<-wait).err, tiercache.ErrClosed, name)
		}
		for _, key := range []string{"stale", "get 0", "get 19", "batch", "refresh"} {
			cause, _ := causes.Load(key)
			require.Equal(t, tiercache.ErrClosed, cause, key)
		}
	})
}

func TestCloseNamesLoadersThatDoNotEnd(t *testing.T) {
	// A loader that ignores its context is waited for as long as LoadTimeout; then the error of every Close says how many still run. Callers
	// have left long before.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(nil)
		unlock := s.lock()
		defer unlock()
		o := options("stubborn", s)
		o.LoadTimeout = 2 * time.Second
		c, err := tiercache.New(o)
		require.NoError(t, err)
		one, two := goGet(t.Context(), c, "1"), goGet(t.Context(), c, "2")
		synctest.Wait()
		begun := time.Now()
		err = c.Close()
		require.Equal(t, 2*time.Second, time.Since(begun))
		require.ErrorContains(t, err, `"stubborn"`)
		require.ErrorContains(t, err, "2 loads")
		require.Equal(t, err, c.Close())
		require.Equal(t, 2*time.Second, time.Since(begun), "a second Close waits for nothing")
		for _, wait := range []<-chan got{one, two} {
			g := <-wait
			require.ErrorIs(t, g.err, tiercache.ErrClosed)
			require.Equal(t, begun, g.at)
		}
	})
}

func TestCloseUnderTraffic(t *testing.T) {
	// P11: every call that races Close ends with a value, "not found" or ErrClosed; nothing panics, nothing hangs.
	s := newSource(map[string]string{"a": "v", "b": "v"})
	c := openCache(t, options("traffic", s))
	var all sync.WaitGroup
	var wrong atomic.Pointer[error]
	check := func(err error) bool {
		if err != nil && !errors.Is(err, tiercache.ErrNotFound) && !errors.Is(err, tiercache.ErrClosed) {
			wrong.Store(&err)
		}
		return err == nil || errors.Is(err, tiercache.ErrNotFound)
	}
	for i := range 8 {
		all.Go(func() {
			for n := 0; ; n++ {
				key := []string{"a", "b", "c"}[n%3]
				var err error
				switch (n + i) % 5 {
				case 0, 1:
					_, err = c.Get(t.Context(), key)
				case 2:
					_, err = c.GetMany(t.Context(), []string{"a", "b", "c"})
				case 3:
					err = c.Set(t.Context(), key, "w")
				case 4:
					err = c.Invalidate(t.Context(), key)
				}
				if !check(err) {
					return
				}
			}
		})
	}
	for c.Stats().Invalidations < 1000 {
		runtime.Gosched()
	}
	require.NoError(t, c.Close())
	all.Wait()
	require.Nil(t, wrong.Load())
}

func TestCacheOutlivesItsMemory(t *testing.T) {
	// A Memory closed before its caches is a mistake that costs hits and nothing else.
	s := newSource(map[string]string{"k": "v"})
	memory, err := layers.NewMemory(layers.MemoryOptions{})
	require.NoError(t, err)
	o := options("early", s)
	o.Memory = memory
	c := openCache(t, o)
	wantValue(t, c, "k", "v")
	require.NoError(t, memory.Close())
	wantValue(t, c, "k", "v")
	require.NoError(t, c.Set(t.Context(), "k", "w"))
	require.NoError(t, c.Invalidate(t.Context(), "k"))
	wantValue(t, c, "k", "v")
}
