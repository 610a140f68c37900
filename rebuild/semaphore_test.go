package rebuild

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newSemaphore(t *testing.T, b Backend, o SemaphoreOptions) *Semaphore {
	t.Helper()
	s, err := NewSemaphoreOn(b, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Property: never more holders than permits, over all processes, and everybody gets one.
// Broken by: want, limit: s.limit.
func TestSemaphoreHasSoManyHoldersAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.trip = time.Millisecond
		var inside, most atomic.Int32
		var all sync.WaitGroup
		for range 3 {
			s := newSemaphore(t, b, SemaphoreOptions{Limit: 4})
			for range 10 {
				all.Go(func() {
					for range 5 {
						l, err := s.Acquire(t.Context(), "n")
						if err != nil {
							t.Errorf("Acquire: %v", err)
							return
						}
						n := inside.Add(1)
						for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
						}
						pass(rand.N(10 * time.Millisecond))
						inside.Add(-1)
						if err := l.Unlock(t.Context()); err != nil {
							t.Errorf("Unlock: %v", err)
						}
					}
				})
			}
		}
		all.Wait()
		require.EqualValues(t, 4, most.Load(), "holders at once")
	})
}

// Property: permits of one caller are separate, also under the context of the first: two are two.
// Broken by: nest, `if w.counted`.
func TestPermitsUnderAPermitCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSemaphore(t, newMemBackend(), SemaphoreOptions{Limit: 2})
		first := mustLock(t, s.Acquire, "n")
		second, err := s.Acquire(first.Context(), "n")
		require.NoError(t, err)
		require.NotEqual(t, first.Token(), second.Token())
		_, err = s.TryAcquire(first.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
	})
}

// Property: the permit of a process that died comes back at the end of its lease.
// Broken by: pause, `if retry > 0`.
func TestDeadHoldersPermitComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		s := newSemaphore(t, b, SemaphoreOptions{Limit: 2})
		mustLock(t, s.Acquire, "n")
		_, err := b.Acquire(t.Context(), LockClaim{Name: "n", Owner: foreignOwner(t, shared, "dead"), Limit: 2, Lease: 5500 * time.Millisecond})
		require.NoError(t, err)
		begun := time.Now()
		mustLock(t, s.Acquire, "n")
		require.GreaterOrEqual(t, time.Since(begun), 5500*time.Millisecond)
		require.LessOrEqual(t, time.Since(begun), 5521*time.Millisecond)
	})
}

// Property: more permits than before go to waiters at once; fewer revoke none, but hold when enough came back.
// Broken by: Resize, backend.Resize.
func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		s, other := newSemaphore(t, b, SemaphoreOptions{Limit: 1}), newSemaphore(t, b, SemaphoreOptions{Limit: 1})
		first := mustLock(t, s.Acquire, "n")
		waiting := locking(t.Context(), other.Acquire, "n")
		require.Empty(t, waiting)
		require.NoError(t, s.Resize(t.Context(), "n", 2))
		second := <-waiting
		require.NoError(t, second.err)
		require.Zero(t, time.Since(second.at))
		require.NoError(t, s.Resize(t.Context(), "n", 1))
		pass(time.Minute)
		require.NoError(t, first.Check())
		require.NoError(t, second.lease.Check())
		require.NoError(t, first.Unlock(t.Context()))
		_, err := other.TryAcquire(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
		require.NoError(t, second.lease.Unlock(t.Context()))
		mustLock(t, other.TryAcquire, "n")

		require.Error(t, s.Resize(t.Context(), "n", -1))
		require.Error(t, s.Resize(t.Context(), "", 1))
		small := newSemaphore(t, struct{ Backend }{b}, SemaphoreOptions{Limit: 1})
		require.ErrorIs(t, small.Resize(t.Context(), "n", 1), errors.ErrUnsupported)
		require.NoError(t, s.Close())
		require.Equal(t, ErrClosed, s.Resize(t.Context(), "n", 1))
	})
}

// entering calls Enter in the background.
func entering(ctx context.Context, s *Semaphore) <-chan entered {
	answer := make(chan entered, 1)
	go func() {
		leave, err := s.Enter(ctx, "db")
		answer <- entered{leave, err}
	}()
	synctest.Wait()
	return answer
}

type entered struct {
	leave func()
	err   error
}

// letIn takes from the answers those that are there, and returns how to end their loads.
func letIn(t *testing.T, answers []<-chan entered) (leaves []func()) {
	t.Helper()
	synctest.Wait()
	for _, a := range answers {
		select {
		case e := <-a:
			require.NoError(t, e.err)
			leaves = append(leaves, e.leave)
		default:
		}
	}
	return leaves
}

// Property: as a fleet gate it lets so many loads begin, over all processes, and the next when one is over.
// Broken by: Enter, s.book.unlock(lease) in leave.
func TestFleetGateBoundsTheLoadsOfAllProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		s, other := newSemaphore(t, b, SemaphoreOptions{Limit: 3}), newSemaphore(t, b, SemaphoreOptions{Limit: 3})
		var answers []<-chan entered
		for range 4 {
			answers = append(answers, entering(t.Context(), s), entering(t.Context(), other))
		}
		leaves := letIn(t, answers)
		require.Len(t, leaves, 3)
		leaves[0]()
		leaves[0]() // counts once
		more := letIn(t, answers)
		require.Len(t, more, 1)
		for in := slices.Concat(leaves[1:], more); len(in) > 0; in = letIn(t, answers) {
			for _, leave := range in {
				leave()
			}
		}
		pass(time.Second)
		_, holders := b.queued("db")
		require.Zero(t, holders)
	})
}

// Property: while the backend is away each process runs its share: the limit by the processes that were counted last, with what runs
// already counted; when it is back the permits bound them again.
// Broken by: next, `n.running < f.shareLocked(n)`; asked, `n.away = time.Now()`.
func TestFleetGateFallsBackToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		s, other := newSemaphore(t, b, SemaphoreOptions{Limit: 6}), newSemaphore(t, b, SemaphoreOptions{Limit: 6})
		first := letIn(t, []<-chan entered{entering(t.Context(), other), entering(t.Context(), s)})
		require.Len(t, first, 2)
		b.down()
		var answers []<-chan entered
		for range 10 {
			answers = append(answers, entering(t.Context(), s))
		}
		without := letIn(t, answers)
		require.Len(t, without, 2, "loads without a permit: 6 by 2 processes, less the one that runs")
		pass(30 * time.Second)
		require.Empty(t, letIn(t, answers))
		without[0]()
		next := letIn(t, answers)
		require.Len(t, next, 1, "one is over, one begins")
		b.faulty(nil)
		pass(2 * time.Second)
		require.NotEmpty(t, letIn(t, answers), "permits again")
	})
}

// Property: away, at least one load runs in each process, and as long as nobody was counted the processes are those of the options.
// Broken by: shareLocked, max(1, …) and n.processes == 0.
func TestFleetGateShareWithoutACount(t *testing.T) {
	for _, c := range []struct{ limit, processes, want int }{{10, 0, 10}, {10, 3, 3}, {2, 5, 1}} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			b.down()
			s := newSemaphore(t, b, SemaphoreOptions{Limit: c.limit, Processes: c.processes})
			var answers []<-chan entered
			for range 12 {
				answers = append(answers, entering(t.Context(), s))
			}
			require.Len(t, letIn(t, answers), c.want, "limit %d, processes %d", c.limit, c.processes)
			require.NoError(t, s.Close())
			synctest.Wait()
			refused := 0
			for _, a := range answers {
				if len(a) > 0 {
					require.Equal(t, ErrClosed, (<-a).err)
					refused++
				}
			}
			require.Equal(t, 12-c.want, refused, "callers refused by Close")
			_, err := s.Enter(t.Context(), "db")
			require.Equal(t, ErrClosed, err)
		})
	}
}

// Property: a backend that hangs costs one caller its time-out, once a second; the others go on with their share or wait here.
// Broken by: asked, cancel(errAway); next, `!n.probing`.
func TestFleetGateDoesNotWaitForAHungBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		s := newSemaphore(t, b, SemaphoreOptions{Limit: 5})
		b.faulty(func(string, LockClaim) memFault { return memFault{drop: true, hang: true} })
		begun := time.Now()
		var answers []<-chan entered
		for range 5 {
			answers = append(answers, entering(t.Context(), s))
			pass(100 * time.Millisecond)
		}
		for _, a := range answers {
			e := <-a
			require.NoError(t, e.err)
			defer e.leave()
		}
		require.Equal(t, longestCall, time.Since(begun), "all of them, by one time-out")
		calls := b.count("acquire")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for range 50 {
			answers = append(answers, entering(ctx, s))
		}
		pass(19 * time.Second)
		require.LessOrEqual(t, b.count("acquire")-calls, 20)
		pass(2 * time.Second)
		for _, a := range answers[5:] {
			require.ErrorIs(t, (<-a).err, context.DeadlineExceeded)
		}
	})
}

// Property: Enter with an ended context, or a name that is none, fails at once, away or not.
// Broken by: Enter, `if ctx.Err() != nil`.
func TestFleetGateChecksWhatItIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.down()
		s := newSemaphore(t, b, SemaphoreOptions{Limit: 5})
		leave, err := s.Enter(t.Context(), "db")
		require.NoError(t, err)
		defer leave()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.Enter(ctx, "db")
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.Enter(t.Context(), "")
		require.ErrorContains(t, err, "name")
	})
}

// Property: what a fleet knows of names is bounded, and a name with callers is not forgotten.
// Broken by: nameLocked, `len(f.names) >= fleetNames`.
func TestFleetForgetsIdleNames(t *testing.T) {
	f := newFleet(4, 1)
	f.users("kept", 1)
	f.counted("kept", 3)
	for i := range 3 * fleetNames {
		f.counted(string(rune(0x4e00+i)), 2)
	}
	require.LessOrEqual(t, len(f.names), fleetNames)
	require.Equal(t, 3, f.names["kept"].processes)
}

// Property: Resize to 0 wakes all who wait, and those for whom there is no permit keep their places, however long it takes then.
// Broken by: lua/lock_acquire.lua, `record.woken = math.min(…)`, as here memBackend.acquire, `n.woken = min(…)`.
func TestResizeToZeroKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.trip = time.Millisecond
		one := SemaphoreOptions{Limit: 1}
		s, early, late := newSemaphore(t, b, one), newSemaphore(t, b, one), newSemaphore(t, b, one)
		held := mustLock(t, s.Acquire, "n")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var answers []<-chan got
		wait := func(s *Semaphore) {
			answers = append(answers, locking(ctx, s.Acquire, "n"))
			pass(100 * time.Millisecond) // it has its place
		}
		for range 3 {
			wait(early)
		}
		require.NoError(t, s.Resize(t.Context(), "n", 0))
		wait(late)
		pass(10 * time.Second)
		require.NoError(t, held.Unlock(t.Context()))
		var before time.Time
		for i, answer := range answers {
			g := <-answer
			require.NoError(t, g.err, "waiter %d", i)
			require.True(t, g.at.After(before), "waiter %d was passed by the one behind it", i)
			before = g.at
			require.NoError(t, g.lease.Unlock(t.Context()))
		}
	})
}

// endingBackend is one whose caller's context ends when a call was given up.
type endingBackend struct {
	*memBackend
	end context.CancelCauseFunc
}

var errEnough = errors.New("had enough")

func (b endingBackend) Acquire(ctx context.Context, c LockClaim) (LockGrant, error) {
	g, err := b.memBackend.Acquire(ctx, c)
	if errors.Is(err, errAway) {
		b.end(errEnough)
	}
	return g, err
}

// Property: a caller of Enter whose context ends at the moment at which its call is given up, because the backend is away, is told of that end.
// Broken by: askFor, errors.Join(ended(ctx), err).
func TestFleetGateTellsTheEndOfTheCallersContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := endingBackend{memBackend: newMemBackend()}
		ctx, cancel := context.WithCancelCause(t.Context())
		b.end = cancel
		s := newSemaphore(t, b, SemaphoreOptions{Limit: 5})
		b.faulty(func(string, LockClaim) memFault { return memFault{drop: true, hang: true} })
		first := entering(t.Context(), s)
		pass(100 * time.Millisecond)
		second := entering(ctx, s)
		e := <-first
		require.NoError(t, e.err)
		e.leave()
		require.ErrorIs(t, (<-second).err, errEnough)
	})
}
