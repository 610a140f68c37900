package bloom

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func rowsOf(keys ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, key := range keys {
			if !yield(key, nil) {
				return
			}
		}
	}
}

// during is a scan of keys that calls f when it has passed all of them.
func during(f func(), keys ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, key := range keys {
			if !yield(key, nil) {
				return
			}
		}
		f()
	}
}

// A built guard knows the rows of the scan and calls others absent, with a store and without; the report counts the rows.
func TestBuiltGuardCallsOtherKeysAbsent(t *testing.T) {
	for name, st := range map[string]Store{"one process": nil, "shared": &memoryStore{}} {
		g := newTestGuard(t)
		report, err := g.Build(t.Context(), rowsOf("a", "b", "b"), BuildOptions{}, st)
		require.NoError(t, err, name)
		require.EqualValues(t, 3, report.Rows, name)
		require.False(t, g.Absent("a"), name)
		require.False(t, g.Absent("b"), name)
		require.True(t, g.Absent("c"), name)
		g.Add("c")
		require.False(t, g.Absent("c"), name)
	}
}

// Race: a row's place is passed by the scan, then it is announced, by this process or by another, and commits. It is in the new
// filter, and in the one that is still believed.
func TestRowAnnouncedBehindTheScanIsNotAbsent(t *testing.T) {
	st, g := stored(t, "a"), newTestGuard(t)
	require.NoError(t, g.Adopt(t.Context(), st))
	_, err := g.Build(t.Context(), during(func() {
		g.Add("here")
		st.announce("elsewhere")
		require.False(t, g.Absent("here"), "in the older filter")
	}, "a"), BuildOptions{}, st)
	require.NoError(t, err)
	require.True(t, g.Absent("none"))
	require.False(t, g.Absent("here"))
	require.False(t, g.Absent("elsewhere"))

	other := newTestGuard(t)
	require.NoError(t, other.Adopt(t.Context(), st))
	require.False(t, other.Absent("here"), "in the snapshot")
	require.False(t, other.Absent("elsewhere"), "in the snapshot")
}

// Race: a row is announced before the build begins, by this process, where no filter stands yet, or by another; the scan passes its
// place; its insert commits. It is in the new filter if it was announced within Reach.
func TestRowAnnouncedShortlyBeforeTheBuildIsNotAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, shared := range []bool{false, true} {
			g := newTestGuard(t)
			g.Add("long ago")
			time.Sleep(2 * time.Second)
			g.Add("here")
			var st Store
			m := &memoryStore{}
			if shared {
				st = m
				m.announce("elsewhere")
			}
			time.Sleep(Reach - time.Second)
			_, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{}, st)
			require.NoError(t, err)
			require.False(t, g.Absent("here"))
			require.Equal(t, !shared, g.Absent("elsewhere"))
			require.True(t, g.Absent("long ago"), "beyond Reach")
		}
	})
}

// Race: announcements come while the build reads the store for the last time and while it saves: none is lost.
func TestRowAnnouncedAtTheEndOfTheBuildIsNotAbsent(t *testing.T) {
	st, g := &memoryStore{}, newTestGuard(t)
	reads := 0
	st.onRead = func() {
		if reads++; reads < 4 {
			st.announce("store " + strconv.Itoa(reads))
			g.Add("bus " + strconv.Itoa(reads))
		}
	}
	_, err := g.Build(t.Context(), during(func() { st.announce("first") }), BuildOptions{}, st)
	require.NoError(t, err)
	for i := 1; i < 4; i++ {
		require.False(t, g.Absent("store "+strconv.Itoa(i)))
		require.False(t, g.Absent("bus "+strconv.Itoa(i)))
	}
}

// Race: rows are announced while the new filter takes the old one's place. Each is in one that is believed afterwards: there is no
// moment at which Add reaches neither. The filter is large, so that the moment is long; each round has a guard of its own, which has nothing to
// recall, and announces no more than can be asked for on a slow machine.
func TestRowsAnnouncedAtTheSwapAreNotAbsent(t *testing.T) {
	for range 20 {
		g, err := NewGuard(Options{Capacity: 2_000_000})
		require.NoError(t, err)
		var announced atomic.Int64
		var built atomic.Bool
		var adder sync.WaitGroup
		adder.Go(func() {
			for i := 0; i < 50_000 && !built.Load(); i++ {
				g.Add(strconv.Itoa(i))
				announced.Store(int64(i) + 1)
				if i%64 == 63 { // so that the build, which needs the same lock, is not kept waiting
					runtime.Gosched()
				}
			}
		})
		_, err = g.Build(t.Context(), rowsOf(), BuildOptions{}, nil)
		built.Store(true)
		adder.Wait()
		require.NoError(t, err)
		for i := range announced.Load() {
			require.False(t, g.Absent(strconv.FormatInt(i, 10)), "key %d of %d", i, announced.Load())
		}
		require.True(t, g.Absent("none"))
	}
}

// Never a false negative: rows are announced and then inserted while builds, adoptions, doubts and catching up go on in two
// processes; what was inserted is absent in neither.
func TestInsertedRowsAreNeverAbsentWhileFiltersChange(t *testing.T) {
	const inserts = 3000
	st := &memoryStore{}
	guards := []*Guard{newTestGuard(t), newTestGuard(t)}
	var table [inserts]atomic.Bool // committed rows
	var wrong, certain atomic.Int64
	check := func(g *Guard, row int) {
		if table[row].Load() && g.Absent(strconv.Itoa(row)) {
			wrong.Add(1)
		}
		if g.Absent("none") {
			certain.Add(1)
		}
	}
	scan := func(yield func(string, error) bool) {
		for i := range inserts {
			if table[i].Load() && !yield(strconv.Itoa(i), nil) {
				return
			}
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var writers, others sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := w; i < inserts; i += 2 {
				key := strconv.Itoa(i)
				st.announce(key)
				for _, g := range guards { // the event, which every process has before the commit; without it MaxLag's marker covers
					g.Add(key)
				}
				table[i].Store(true)
				check(guards[w], i)
			}
		})
		others.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				check(guards[w], n*7919%inserts)
			}
		})
	}
	others.Go(func() {
		for ctx.Err() == nil {
			_, _ = guards[0].Build(ctx, scan, BuildOptions{}, st)
			_ = guards[1].Adopt(ctx, st)
			guards[0].Doubt()
			_, _ = guards[0].Build(ctx, scan, BuildOptions{}, nil)
			_ = guards[1].CatchUp(ctx, st)
		}
	})
	writers.Wait()
	stop()
	others.Wait()
	require.Zero(t, wrong.Load(), "inserted rows called absent")
	_, err := guards[0].Build(t.Context(), scan, BuildOptions{}, st)
	require.NoError(t, err)
	require.NoError(t, guards[1].Adopt(t.Context(), st))
	for i := range inserts {
		check(guards[0], i)
		check(guards[1], i)
	}
	require.Zero(t, wrong.Load(), "inserted rows called absent")
	require.NotZero(t, certain.Load(), "the filters said something")
}

// Race: 1. A begins to build and is held up. 2. B builds and stores a filter. 3. A ends. B's filter stands and A believes what it did before,
// also while it stores; Adopt brings it B's. Broken by: SaveFilter's answer not being looked at; believe before SaveFilter.
func TestOlderScanDoesNotReplaceANewerFilter(t *testing.T) {
	st, a, b := &memoryStore{}, newTestGuard(t), newTestGuard(t)
	_, err := a.Build(t.Context(), during(func() {
		_, err := b.Build(t.Context(), rowsOf("a", "b"), BuildOptions{}, st)
		require.NoError(t, err)
		st.onSave = func() { require.Equal(t, Unbuilt, a.State(), "believed before it is stored") }
	}, "a"), BuildOptions{}, st)
	require.ErrorIs(t, err, ErrSuperseded)
	require.Equal(t, Unbuilt, a.State())
	require.Empty(t, a.incoming)
	require.NoError(t, a.Adopt(t.Context(), st))
	require.False(t, a.Absent("b"))
	require.True(t, a.Absent("none"))

	st.stands = 0 // as if Redis had lost it: what is believed here is not replaced by something older either
	generation := a.belief.Load().generation
	require.ErrorIs(t, a.believe(&belief{filter: a.belief.Load().filter, generation: generation - 1}), ErrSuperseded)
}

// While a filter is stored, which may take long, the one in force is kept up to date. Broken by: finish taking its turn before SaveFilter.
func TestFilterInForceIsKeptUpToDateWhileAnotherIsStored(t *testing.T) {
	st, g := stored(t, "a"), newTestGuard(t)
	require.NoError(t, g.Adopt(t.Context(), st))
	st.onSave = func() {
		st.announce("meanwhile")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, g.CatchUp(ctx, st))
		require.False(t, g.Absent("meanwhile"))
	}
	_, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{}, st)
	require.NoError(t, err)
	require.False(t, g.Absent("meanwhile"), "in the new one")
	require.True(t, g.Absent("none"))
}

// What was built is not believed if the scan gave far fewer or far more rows than expected, or if the filter lacks rows that it was given or
// that were announced; what was believed before stays. Broken by: finish without plausible; plausible without each of its three looks.
func TestImplausibleFilterIsNotBelieved(t *testing.T) {
	for name, st := range map[string]Store{"one process": nil, "shared": &memoryStore{}} {
		g := newTestGuard(t)
		build := func(expected uint64, spoil func(*builder), rows ...string) error {
			_, err := g.Build(t.Context(), during(func() {
				for a := range g.incoming {
					spoil(a.(*builder))
				}
			}, rows...), BuildOptions{Expected: expected}, st)
			return err
		}
		nothing := func(*builder) {}
		require.NoError(t, build(0, nothing, "a"))
		require.ErrorIs(t, build(3, nothing, "b", "c"), ErrImplausible, name)
		require.ErrorIs(t, build(1, nothing, "b", "c"), ErrImplausible, name)
		require.ErrorIs(t, build(0, func(b *builder) { b.bits.ClearAll() }, "b"), ErrImplausible, name)
		require.True(t, g.Absent("b"), "%s: the filter from before", name)
		require.Empty(t, g.incoming, name)
		g.Add("announced")
		require.ErrorIs(t, build(0, func(b *builder) { b.bits.ClearAll() }), ErrImplausible, name)
		require.NoError(t, build(2, nothing, "b", "c"), name)
		require.NoError(t, build(2, nothing, "b", "c", "d"), name)
		require.False(t, g.Absent("d"), name)
	}
}

// The sample is of the whole scan. Broken by: add without the second branch.
func TestSampleIsOfTheWholeScan(t *testing.T) {
	var s sample
	const rows = 5 * sampleSize
	for i := range rows {
		s.add(strconv.Itoa(i), uint64(i+1))
	}
	require.Len(t, s, sampleSize)
	late := 0
	for _, key := range s {
		if i, err := strconv.Atoi(key); err == nil && i >= rows/2 {
			late++
		}
	}
	require.InDelta(t, sampleSize/2, late, 500) // ten standard deviations
}

// A replica further behind than Reach is allowed for by reading the announcements from further back. Broken by: Build asking for Reach.
func TestReplicaLagReachesFurtherBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, g := &memoryStore{}, newTestGuard(t)
		st.announce("long ago")
		time.Sleep(3 * Reach)
		for lag, absent := range map[time.Duration]bool{time.Second: true, 4 * Reach: false} {
			g = newTestGuard(t)
			_, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{ReplicaLag: lag}, st)
			require.NoError(t, err)
			require.Equal(t, absent, g.Absent("long ago"), "%v", lag)
		}
		_, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{ReplicaLag: 4 * Reach}, nil)
		require.ErrorContains(t, err, "ReplicaLag")
	})
}

// A scan longer than what the store keeps succeeds, because announcements are read while it runs.
func TestLongScanKeepsUpWithTheAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, g := &memoryStore{}, newTestGuard(t)
		n := 0
		rows := func(yield func(string, error) bool) {
			for i := range 600 {
				time.Sleep(time.Second)
				st.announce("new " + strconv.Itoa(n))
				n++
				st.trim(20 * time.Second)
				if !yield("row "+strconv.Itoa(i), nil) {
					return
				}
			}
		}
		_, err := g.Build(t.Context(), rows, BuildOptions{RowsPerSecond: 1000}, st)
		require.NoError(t, err)
		for i := range n {
			require.False(t, g.Absent("new "+strconv.Itoa(i)))
		}
	})
}

// A build that fails leaves the filter from before in force, and is free for the next: a row's error, the end of the context, a
// store that fails or loses its announcements on the way.
func TestFailedBuildKeepsTheFilterFromBefore(t *testing.T) {
	failure := errors.New("connection lost")
	for name, c := range map[string]struct {
		rows func(st *memoryStore, stop func()) iter.Seq2[string, error]
		want error
	}{
		"row": {func(*memoryStore, func()) iter.Seq2[string, error] {
			return func(yield func(string, error) bool) { _ = yield("b", nil) && yield("", failure) && yield("c", nil) }
		}, failure},
		"context": {func(_ *memoryStore, stop func()) iter.Seq2[string, error] { return during(stop, "b") }, context.Canceled},
		"lost": {func(st *memoryStore, _ func()) iter.Seq2[string, error] {
			return during(func() { st.flush(); st.announce("b") })
		}, ErrBehind},
	} {
		st, g := stored(t, "a"), newTestGuard(t)
		require.NoError(t, g.Adopt(t.Context(), st))
		ctx, stop := context.WithCancel(t.Context())
		_, err := g.Build(ctx, c.rows(st, stop), BuildOptions{}, st)
		stop()
		require.ErrorIs(t, err, c.want, name)
		require.True(t, g.Absent("b"), "%s: the filter from before, which has no b", name)
		require.False(t, g.Absent("a"), name)
		require.Empty(t, g.incoming, name)

		_, err = g.Build(t.Context(), rowsOf("a", "b"), BuildOptions{}, st)
		require.NoError(t, err, name)
		require.False(t, g.Absent("b"), name)
	}
}

// A store that cannot be reached ends a build before the scan; one that cannot save leaves the filter to this process alone and the
// error says so.
func TestBuildSaysWhatTheStoreDidNotDo(t *testing.T) {
	failure := errors.New("unreachable")
	st, g := &memoryStore{fail: failure}, newTestGuard(t)
	scanned := false
	_, err := g.Build(t.Context(), during(func() { scanned = true }), BuildOptions{}, st)
	require.ErrorIs(t, err, failure)
	require.False(t, scanned)

	st.setFail(nil)
	reads := 0
	st.onRead = func() {
		if reads++; reads == 2 { // the last reading of the announcements: the next call is to save
			st.setFail(failure)
		}
	}
	report, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{}, st)
	require.ErrorIs(t, err, failure)
	require.ErrorContains(t, err, "in force in this process")
	require.EqualValues(t, 1, report.Rows)
}

// One build at a time in a process; a scan that panics does not block the next.
func TestSecondBuildAtOnceIsRefused(t *testing.T) {
	g := newTestGuard(t)
	_, err := g.Build(t.Context(), during(func() {
		_, err := g.Build(t.Context(), rowsOf("b"), BuildOptions{}, nil)
		require.ErrorIs(t, err, ErrBuilding)
	}, "a"), BuildOptions{}, nil)
	require.NoError(t, err)
	require.Panics(t, func() { _, _ = g.Build(t.Context(), during(func() { panic("scan") }), BuildOptions{}, nil) })
	_, err = g.Build(t.Context(), rowsOf("b"), BuildOptions{}, nil)
	require.NoError(t, err)
	require.False(t, g.Absent("b"))
}

// RowsPerSecond holds over the whole scan, and after a slow stretch the scan does not race; the end of ctx ends a pause.
func TestRowsPerSecondBoundsTheScan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGuard(t)
		keys := make([]string, 1000)
		start := time.Now()
		report, err := g.Build(t.Context(), rowsOf(keys...), BuildOptions{RowsPerSecond: 100}, nil)
		require.NoError(t, err)
		require.InDelta(t, 10, time.Since(start).Seconds(), 0.2)
		require.Equal(t, time.Since(start), report.Took)

		start = time.Now()
		slow := func(yield func(string, error) bool) {
			time.Sleep(5 * time.Second)
			rowsOf(keys...)(yield)
		}
		_, err = g.Build(t.Context(), slow, BuildOptions{RowsPerSecond: 100}, nil)
		require.NoError(t, err)
		require.InDelta(t, 15, time.Since(start).Seconds(), 0.3)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		_, err = g.Build(ctx, rowsOf(keys...), BuildOptions{RowsPerSecond: 1}, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
	})
}

// Progress is told every 1,000 rows, every 100 ms of a slow scan, and at the end.
func TestProgressIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGuard(t)
		var told []uint64
		o := BuildOptions{Progress: func(done uint64) { told = append(told, done) }}
		_, err := g.Build(t.Context(), rowsOf(make([]string, 2500)...), o, nil)
		require.NoError(t, err)
		require.Equal(t, []uint64{1000, 2000, 2500}, told)

		told = nil
		slow := func(yield func(string, error) bool) {
			for range 10 {
				time.Sleep(60 * time.Millisecond)
				if !yield("row", nil) {
					return
				}
			}
		}
		_, err = g.Build(t.Context(), slow, o, nil)
		require.NoError(t, err)
		require.Equal(t, []uint64{2, 4, 6, 8, 10, 10}, told)
	})
}

// More announcements in a minute than are remembered: a build of one process says so instead of losing some, and works again once
// they are beyond Reach. With a store it goes on, since the store has them.
func TestBuildRefusesWhatItCannotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGuard(t)
		for range maxLog/1000 + 1 {
			g.Add(make([]string, 1000)...)
		}
		require.LessOrEqual(t, len(g.log.entries)-g.log.first, maxLog)
		_, err := g.Build(t.Context(), rowsOf("a"), BuildOptions{}, nil)
		require.ErrorIs(t, err, ErrBehind)
		require.False(t, g.Absent("none"))
		_, err = g.Build(t.Context(), rowsOf("a"), BuildOptions{}, &memoryStore{})
		require.NoError(t, err)
		time.Sleep(Reach + time.Second)
		_, err = g.Build(t.Context(), rowsOf("a"), BuildOptions{}, nil)
		require.NoError(t, err)
		require.True(t, g.Absent("none"))
	})
}

// Wrong arguments of Build are errors.
func TestBuildRefusesWrongArguments(t *testing.T) {
	g := newTestGuard(t)
	_, err := g.Build(t.Context(), nil, BuildOptions{}, nil)
	require.ErrorContains(t, err, "rows")
	_, err = g.Build(t.Context(), rowsOf(), BuildOptions{RowsPerSecond: -1}, nil)
	require.ErrorContains(t, err, "RowsPerSecond")
}

// A scan of more rows than the capacity is still right about every row; only more absent keys pass, which Stats tells.
func TestMoreRowsThanCapacityIsStillRight(t *testing.T) {
	g, err := NewGuard(Options{Capacity: 100})
	require.NoError(t, err)
	keys := make([]string, 300)
	for i := range keys {
		keys[i] = strconv.Itoa(i)
	}
	_, err = g.Build(t.Context(), rowsOf(keys...), BuildOptions{}, nil)
	require.NoError(t, err)
	for _, key := range keys {
		require.False(t, g.Absent(key))
	}
	require.True(t, g.Stats().Overfull())
	require.Greater(t, g.Stats().EstimatedRate, 0.2)
}
