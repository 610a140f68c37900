package rebuild

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Property: whoever waits is woken by the release, not by the clock: he has the lock at the moment at which it is free.
// Broken by: wake, w.rouse().
func TestWaiterIsWokenByTheRelease(t *testing.T) {
	for _, fair := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, other := newMutex(t, b, MutexOptions{Fair: fair}), newMutex(t, b, MutexOptions{Fair: fair})
			l := mustLock(t, m.Lock, "n")
			next := locking(t.Context(), other.Lock, "n")
			pass(3300 * time.Millisecond)
			released := time.Now()
			require.NoError(t, l.Unlock(t.Context()))
			require.Equal(t, released, (<-next).at, "fair %v", fair)
		})
	}
}

// Property: a wake-up that comes while its waiter asks is kept: the waiter asks again at once.
// Broken by: lockwaiter.kick, made without room.
func TestWakeUpDuringAnAskIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		asked := 0
		b.faulty(func(op string, c LockClaim) memFault {
			if op == "acquire" && c.Entry > 0 {
				if asked++; asked == 1 {
					return memFault{slow: 200 * time.Millisecond} // it is in the queue; the answer "held" takes its time
				}
			}
			return memFault{}
		})
		next := locking(t.Context(), other.Lock, "n")
		pass(100 * time.Millisecond)
		require.NoError(t, l.Unlock(t.Context()))
		released := time.Now()
		require.Equal(t, 100*time.Millisecond, (<-next).at.Sub(released), "after the answer to the first ask")
	})
}

// Property: a waiter is heard before it is in the queue: it waits for the confirmation of the subscription, and a release meanwhile is not
// missed.
// Broken by: obtain, b.listen(ctx) after b.queueUp's ask.
func TestWaiterSubscribesBeforeItQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		mustLock(t, m.Lock, "n")
		queued := false
		b.faulty(func(op string, c LockClaim) memFault {
			if op == "acquire" && c.Entry > 0 {
				queued = true
				b.mu.Lock()
				defer b.mu.Unlock()
				if len(b.watchers) == 0 {
					t.Error("queued before the subscription stood")
				}
			}
			return memFault{}
		})
		ctx, cancel := context.WithCancel(t.Context())
		next := locking(ctx, other.Lock, "n")
		require.True(t, queued)
		cancel()
		<-next
	})
}

// Property: if the wake-up is lost the waiter has the lock within the refresh, a second and a fifth.
// Broken by: pause, returning the rest of the lease in the way only.
func TestLostWakeUpIsRepairedByAsking(t *testing.T) {
	for _, fair := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, other := newMutex(t, b, MutexOptions{Fair: fair}), newMutex(t, b, MutexOptions{Fair: fair})
			l := mustLock(t, m.Lock, "n")
			next := locking(t.Context(), other.Lock, "n")
			pass(3300 * time.Millisecond)
			b.set(func() { b.mute = true })
			require.NoError(t, l.Unlock(t.Context()))
			released := time.Now()
			require.LessOrEqual(t, (<-next).at.Sub(released), 1200*time.Millisecond, "fair %v", fair)
		})
	}
}

// Property: while no wake-ups can be heard a waiter asks all 100 to 500 ms.
// Broken by: untilRefreshLocked, `if !b.sound`.
func TestDeafWaiterPolls(t *testing.T) {
	for _, fair := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			b.deaf = true
			m, other := newMutex(t, b, MutexOptions{Fair: fair}), newMutex(t, b, MutexOptions{Fair: fair})
			l := mustLock(t, m.Lock, "n")
			next := locking(t.Context(), other.Lock, "n")
			before := b.count("acquire")
			pass(30 * time.Second)
			asked := b.count("acquire") - before
			require.GreaterOrEqual(t, asked, 60)
			require.LessOrEqual(t, asked, 300)
			require.NoError(t, l.Unlock(t.Context()))
			released := time.Now()
			require.LessOrEqual(t, (<-next).at.Sub(released), 500*time.Millisecond)
		})
	}
}

// Property: who was deaf asks when it hears again, for what was meant for it may have been sent meanwhile; the subscription is made anew.
// Broken by: hear, b.askAgainLocked().
func TestWaiterAsksWhenItHearsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		next := locking(t.Context(), other.Lock, "n")
		pass(time.Second)
		b.cut()
		synctest.Wait() // deaf for at most 50 ms now, and asked
		require.NoError(t, l.Unlock(t.Context()))
		released := time.Now()
		require.LessOrEqual(t, (<-next).at.Sub(released), firstRewatch)
	})
}

// Property: when the holder dies the first waiter has the lock at the end of the dead one's lease and 21 ms later at most.
// Broken by: pause, `if retry > 0`.
func TestDeadHoldersLockGoesOnAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{})
		_, err := b.Acquire(t.Context(), LockClaim{Name: "n", Owner: foreignOwner(t, exclusive, "dead"), Lease: 4 * time.Second})
		require.NoError(t, err)
		begun := time.Now()
		mustLock(t, m.Lock, "n")
		require.GreaterOrEqual(t, time.Since(begun), 4*time.Second)
		require.LessOrEqual(t, time.Since(begun), 4021*time.Millisecond)
	})
}

// Property: fair: those who wait get the lock in the order in which they came, from whatever process, and TryLock passes nobody.
// Broken by: claim, Ordered: b.ordered.
func TestFairLockIsGrantedInTheOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.trip = time.Millisecond
		var all []*Mutex
		for range 3 {
			all = append(all, newMutex(t, b, MutexOptions{Fair: true}))
		}
		l := mustLock(t, all[0].Lock, "n")
		var waiters []<-chan got
		for i := range 12 {
			waiters = append(waiters, locking(t.Context(), all[i%3].Lock, "n"))
			pass(20 * time.Millisecond)
		}
		for i, w := range waiters {
			unlocked := make(chan error, 1)
			go func() { unlocked <- l.Unlock(t.Context()) }()
			pass(500 * time.Microsecond) // the next one asks behind the release: it is free, and is for the waiter who is being woken
			_, err := all[2].TryLock(t.Context(), "n")
			require.ErrorIs(t, err, ErrLocked, "others wait")
			require.NoError(t, <-unlocked)
			g := <-w
			require.NoError(t, g.err)
			l = g.lease
			for j, later := range waiters[i+1:] {
				require.Empty(t, later, "waiter %d was before %d", i+1+j, i)
			}
			pass(1500 * time.Millisecond) // the others keep their places meanwhile
		}
	})
}

// Property: fair: a waiter whose process died is passed over at once, one whose process stopped within 1.8 s; neither stops the rest.
// Broken by: pause, returning 0 for the front too.
func TestDeadWaitersArePassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{Fair: true})
		l := mustLock(t, m.Lock, "n")
		stopped := &memWatcher{events: make(chan [2]string, 64), cut: make(chan struct{})}
		b.set(func() { b.watchers["stopped"] = stopped })
		for _, process := range []string{"dead", "stopped"} {
			_, err := b.Acquire(t.Context(), LockClaim{
				Name: "n", Owner: foreignOwner(t, exclusive, process), Lease: 10 * time.Second, Entry: entryTime, Ordered: true,
			})
			require.ErrorIs(t, err, ErrLocked)
		}
		next := locking(t.Context(), m.Lock, "n")
		require.NoError(t, l.Unlock(t.Context()))
		released := time.Now()
		require.LessOrEqual(t, (<-next).at.Sub(released), 1800*time.Millisecond)
		require.NotEmpty(t, stopped.events, "the stopped one was woken")
	})
}

// Property: a waiter who leaves passes on the wake-up that was meant for it, in its process and beyond.
// Broken by: abandon, `case w.queued` (and quit, `case first`).
func TestLeavingWaiterPassesTheWakeUpOn(t *testing.T) {
	for _, fair := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, other := newMutex(t, b, MutexOptions{Fair: fair}), newMutex(t, b, MutexOptions{Fair: fair})
			l := mustLock(t, other.Lock, "n")
			ctx, cancel := context.WithCancel(t.Context())
			leaving := locking(ctx, m.Lock, "n")
			behind := locking(t.Context(), m.Lock, "n")
			pass(time.Millisecond)
			b.faulty(func(op string, c LockClaim) memFault { // the woken one does not get to ask any more
				return memFault{drop: op == "acquire" && ctx.Err() == nil, hang: op == "acquire" && ctx.Err() == nil}
			})
			require.NoError(t, l.Unlock(t.Context()))
			synctest.Wait()
			cancel()
			require.ErrorIs(t, (<-leaving).err, context.Canceled)
			left := time.Now()
			require.Zero(t, (<-behind).at.Sub(left), "fair %v", fair)
		})
	}
}

// Property: what waiting costs the backend grows with processes and not with waiters: plain, two hundred cost what two do; fair, each
// caller takes its place once, and the places of 64 are kept by one call.
// Broken by: obtain, `!b.ordered && !b.first(w)` (plain); refreshLocked, alsoBound 1 (fair).
func TestCommandsGrowWithProcessesNotWaiters(t *testing.T) {
	measure := func(t *testing.T, fair bool, waiters int) (entering, waiting int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			b.trip = time.Millisecond
			m, holder := newMutex(t, b, MutexOptions{Fair: fair}), newMutex(t, b, MutexOptions{Fair: fair})
			mustLock(t, holder.Lock, "n")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var all sync.WaitGroup
			for range waiters {
				all.Go(func() { _, _ = m.Lock(ctx, "n") })
			}
			pass(2 * time.Second)
			entering = b.count("acquire")
			pass(time.Minute)
			waiting = b.count("acquire") - entering
			if places, _ := b.queued("n"); fair {
				require.Equal(t, waiters, places, "everybody kept its place")
			} else {
				require.Equal(t, 1, places, "one place a process")
			}
			cancel()
			all.Wait()
		})
		return entering, waiting
	}
	entering, waiting := measure(t, false, 200)
	require.LessOrEqual(t, entering, 6, "plain: calls until 200 wait")
	require.LessOrEqual(t, waiting, 90, "plain: calls of 200 waiters in a minute")
	entering, waiting = measure(t, true, 200)
	require.LessOrEqual(t, entering, 3*200, "fair: calls until 200 wait")
	require.LessOrEqual(t, waiting, 90*4, "fair: calls of 200 waiters in a minute")
}

// Property: plain: handing over costs the same however many wait in a process.
// Broken by: wake, rousing all who wait.
func TestHandOverCostsTheSameForManyWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				l, err := m.Lock(t.Context(), "n")
				if err != nil {
					t.Errorf("Lock: %v", err)
					return
				}
				_ = l.Unlock(t.Context())
			})
		}
		synctest.Wait()
		before := b.count()
		require.NoError(t, l.Unlock(t.Context()))
		all.Wait()
		require.LessOrEqual(t, b.count()-before, 3*200, "calls for 200 turns")
	})
}

// Property: an outage costs the same however many wait, and everybody has a place again after it.
// Broken by: pause, `if q.front() != w`.
func TestOutageIsSatOutByOneCaller(t *testing.T) {
	for _, fair := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, holder := newMutex(t, b, MutexOptions{Fair: fair}), newMutex(t, b, MutexOptions{Fair: fair, LeaseTime: time.Hour})
			mustLock(t, holder.Lock, "n")
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() { _, _ = m.Lock(ctx, "n") })
			}
			synctest.Wait()
			b.down()
			before := b.count("acquire")
			pass(30 * time.Second)
			require.LessOrEqual(t, b.count("acquire")-before, 2*300+100, "fair %v: calls in half a minute's outage", fair)
			b.faulty(nil)
			pass(5 * time.Second)
			places, _ := b.queued("n")
			require.Equal(t, map[bool]int{false: 1, true: 100}[fair], places, "fair %v", fair)
			cancel()
			all.Wait()
		})
	}
}

// Property: a waiter whose place was lost while its process slept, or with the backend's data, takes a new one.
// Broken by: ask, gone.rouse().
func TestLostPlacesAreTakenAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{Fair: true})
		ctx, cancel := context.WithCancel(t.Context())
		block := func() {
			_, err := b.Acquire(t.Context(), LockClaim{Name: "n", Owner: foreignOwner(t, exclusive, "other"), Lease: time.Hour})
			require.NoError(t, err)
		}
		block()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { _, _ = m.Lock(ctx, "n") })
		}
		pass(2 * time.Second)
		b.flush()
		block()
		for before := b.count("acquire"); b.count("acquire") == before; { // until the first one asks
			pass(time.Millisecond)
		}
		places, _ := b.queued("n")
		require.Equal(t, 20, places)
		cancel()
		all.Wait()
	})
}

// Property: deaf, with places in another order than that of the callers here, everybody still gets his turn.
// Broken by: pause, returning 0 for the front too.
func TestDeafWaitersOutOfOrderAllGetTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.deaf = true
		m := newMutex(t, b, MutexOptions{Fair: true})
		holder := newMutex(t, b, MutexOptions{Fair: true})
		l := mustLock(t, holder.Lock, "n")
		var mu sync.Mutex
		delays := 0
		b.faulty(func(op string, c LockClaim) memFault { // the first ask of the later caller overtakes that of the earlier one
			mu.Lock()
			defer mu.Unlock()
			if op == "acquire" && c.Entry > 0 && delays < 4 {
				delays++
				return memFault{drop: true, err: ErrUnavailable}
			}
			return memFault{}
		})
		var waiters []<-chan got
		for range 8 {
			waiters = append(waiters, locking(t.Context(), m.Lock, "n"))
		}
		pass(3 * time.Second)
		require.NoError(t, l.Unlock(t.Context()))
		var served atomic.Int32
		for _, w := range waiters {
			go func() {
				if g := <-w; g.err == nil {
					served.Add(1)
					_ = g.lease.Unlock(t.Context())
				}
			}()
		}
		pass(20 * time.Second)
		require.EqualValues(t, len(waiters), served.Load(), "waiters who had their turn")
	})
}

// Property: callers who wait for different names do not wait for each other.
// Broken by: enter, one queue for all names.
func TestWaitersOfOtherNamesAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, holder := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		var held []*Lease
		var waiting []<-chan got
		for i := range 5 {
			held = append(held, mustLock(t, holder.Lock, fmt.Sprint(i)))
			waiting = append(waiting, locking(t.Context(), m.Lock, fmt.Sprint(i)))
		}
		for i := len(held) - 1; i >= 0; i-- {
			require.NoError(t, held[i].Unlock(t.Context()))
			synctest.Wait()
			require.Len(t, waiting[i], 1, "name %d", i)
		}
	})
}
