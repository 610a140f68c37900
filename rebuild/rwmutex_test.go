package rebuild

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newRWMutex(t *testing.T, b Backend, o MutexOptions) *RWMutex {
	t.Helper()
	m, err := NewRWMutexOn(b, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// Property: readers hold a name together, a writer alone; every grant has a token of its own, higher than those before.
// Broken by: RLock, kind: exclusive; Lock, kind: shared.
func TestReadersHoldTogetherAWriterAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
		r1, r2, r3 := mustLock(t, m.RLock, "n"), mustLock(t, other.TryRLock, "n"), mustLock(t, m.RLock, "n")
		require.Less(t, r1.Token(), r2.Token())
		require.Less(t, r2.Token(), r3.Token())
		_, err := m.TryLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
		for _, r := range []*Lease{r1, r2, r3} {
			require.NoError(t, r.Unlock(t.Context()))
		}
		w := mustLock(t, m.Lock, "n")
		require.Greater(t, w.Token(), r3.Token())
		_, err = other.TryRLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
		_, err = other.TryLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
	})
}

// Property: a waiting writer is not starved: readers who come behind it wait, however many there are, and it enters when those before it
// have left.
// Broken by: NewRWMutexOn, ordered false.
func TestWaitingWriterIsNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
		first := mustLock(t, m.RLock, "n")
		writer := locking(t.Context(), other.Lock, "n")
		_, err := m.TryRLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked, "a writer waits")
		later := locking(t.Context(), m.RLock, "n")
		pass(5 * time.Second)
		require.Empty(t, later)
		require.NoError(t, first.Unlock(t.Context()))
		w := <-writer
		require.NoError(t, w.err)
		synctest.Wait()
		require.Empty(t, later)
		require.NoError(t, w.lease.Unlock(t.Context()))
		require.NoError(t, (<-later).err)
	})
}

// Property: readers between two writers enter together, at the moment the first writer leaves.
// Broken by: wake, rousing only the first of a queue.
func TestReadersBetweenWritersEnterTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.trip = time.Millisecond
		m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
		first := mustLock(t, m.Lock, "n")
		var readers []<-chan got
		queue := func(lock func(context.Context, string) (*Lease, error)) <-chan got {
			answer := locking(t.Context(), lock, "n")
			pass(10 * time.Millisecond) // it has its place before the next one comes
			return answer
		}
		for range 3 {
			readers = append(readers, queue(m.RLock), queue(other.RLock))
		}
		second, behind := queue(other.Lock), queue(m.RLock)
		require.NoError(t, first.Unlock(t.Context()))
		woken := time.Now().Add(b.trip) // their requests went out in the middle of the release's way
		var leases []*Lease
		for i, r := range readers {
			g := <-r
			require.NoError(t, g.err)
			require.Equal(t, woken, g.at, "reader %d", i)
			leases = append(leases, g.lease)
		}
		synctest.Wait()
		require.Empty(t, second)
		require.Empty(t, behind)
		for _, l := range leases {
			require.NoError(t, l.Unlock(t.Context()))
		}
		w := <-second
		require.NoError(t, w.err)
		require.Empty(t, behind)
		require.NoError(t, w.lease.Unlock(t.Context()))
		require.NoError(t, (<-behind).err)
	})
}

// Property: readers and writers of all processes exclude each other as they should, and all get their turn.
// Broken by: Lock of RWMutex, kind: shared.
func TestReadersAndWritersOfAllProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.trip = time.Millisecond
		var readers, writers atomic.Int32
		var all sync.WaitGroup
		for range 3 {
			m := newRWMutex(t, b, MutexOptions{})
			for range 8 {
				all.Go(func() {
					for range 10 {
						write := rand.N(4) == 0
						lock, mine := m.RLock, &readers
						if write {
							lock, mine = m.Lock, &writers
						}
						l, err := lock(t.Context(), "n")
						if err != nil {
							t.Errorf("lock: %v", err)
							return
						}
						mine.Add(1)
						if w, r := writers.Load(), readers.Load(); w > 1 || w == 1 && r > 0 {
							t.Errorf("%d writers and %d readers", w, r)
						}
						pass(rand.N(10 * time.Millisecond))
						mine.Add(-1)
						if err := l.Unlock(t.Context()); err != nil {
							t.Errorf("Unlock: %v", err)
						}
					}
				})
			}
		}
		all.Wait()
	})
}

// Property: each reader has an end of its own: one that dies is out at its lease's end, while another goes on.
// Broken by: claim, Owner without the random part.
func TestReadersHaveTheirOwnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newRWMutex(t, b, MutexOptions{LeaseTime: time.Second})
		lives, dies := mustLock(t, m.RLock, "n"), mustLock(t, m.RLock, "n")
		b.faulty(func(op string, c LockClaim) memFault {
			return memFault{drop: op == "renew" && c.Owner == dies.h.claim.Owner, hang: op == "renew" && c.Owner == dies.h.claim.Owner}
		})
		pass(1100 * time.Millisecond)
		require.Equal(t, ErrLeaseLost, dies.Check())
		require.NoError(t, lives.Check())
	})
}

// Property: a write lease cannot be had under a read lease: an error at once, re-entrant or not.
// Broken by: nest, `w.kind == exclusive && outer.h.kind() == shared`.
func TestUpgradeIsAnErrorAtOnce(t *testing.T) {
	for _, reentrant := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := newRWMutex(t, newMemBackend(), MutexOptions{Reentrant: reentrant})
			r := mustLock(t, m.RLock, "n")
			ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
			defer cancel()
			begun := time.Now()
			for _, lock := range []func(context.Context, string) (*Lease, error){m.Lock, m.TryLock} {
				_, err := lock(ctx, "n")
				require.ErrorIs(t, err, ErrLocked)
				require.ErrorContains(t, err, "cannot become")
			}
			require.Zero(t, time.Since(begun))
			_, err := m.RLock(ctx, "n")
			if reentrant {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrLocked)
			}
		})
	}
}

// Property: Downgrade makes the writer a reader: others who read enter, the context goes on, the token is a new one, the lease is renewed
// and can be unlocked; a writer who waits has to wait.
// Broken by: downgraded, h.claim = after.
func TestDowngradeLetsReadersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		reader := locking(t.Context(), other.RLock, "n")
		writer := locking(t.Context(), other.Lock, "n")
		require.Empty(t, reader)
		before := l.Token()
		require.NoError(t, l.Downgrade(t.Context()))
		require.Greater(t, l.Token(), before)
		r := <-reader
		require.NoError(t, r.err)
		pass(time.Minute)
		require.NoError(t, l.Check())
		require.Empty(t, writer)
		require.Error(t, l.Downgrade(t.Context()), "it is a read lease")
		require.NoError(t, l.Check())
		require.NoError(t, r.lease.Unlock(t.Context()))
		require.NoError(t, l.Unlock(t.Context()))
		require.NoError(t, (<-writer).err)
	})
}

// Property: a Downgrade whose answer was lost is repeated and finds its grant; one that is never answered is a lost lease, and nothing of
// it is left.
// Broken by: undecided, b.loseLocked; Downgrade, a new owner for each repeat.
func TestDowngradeWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		asked := 0
		b.faulty(func(op string, _ LockClaim) memFault {
			if op == "downgrade" {
				if asked++; asked == 1 {
					return memFault{err: ErrUnavailable}
				}
			}
			return memFault{}
		})
		require.NoError(t, l.Downgrade(t.Context()))
		require.Equal(t, 2, asked)
		_, holders := b.queued("n")
		require.Equal(t, 1, holders)
		require.NoError(t, l.Unlock(t.Context()))

		w := mustLock(t, m.Lock, "n")
		b.faulty(func(op string, _ LockClaim) memFault {
			if op == "downgrade" {
				return memFault{err: ErrUnavailable}
			}
			return memFault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		require.ErrorIs(t, w.Downgrade(ctx), ErrLeaseLost)
		require.Equal(t, ErrLeaseLost, w.Check())
		synctest.Wait()
		mustLock(t, other.TryLock, "n")
	})
}

// Property: what cannot be downgraded stays as it is: a Mutex's lease, one with others nested in it, one on a backend that cannot.
// Broken by: beginDowngrade, `!b.sharing`, `len(h.open) > 1`.
func TestDowngradeOfWhatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		plain := mustLock(t, newMutex(t, b, MutexOptions{Reentrant: true}).Lock, "a")
		require.Error(t, plain.Downgrade(t.Context()))
		require.NoError(t, plain.Check())
		m := newRWMutex(t, b, MutexOptions{Reentrant: true})
		outer := mustLock(t, m.Lock, "b")
		inner, err := m.RLock(outer.Context(), "b")
		require.NoError(t, err, "reading under the own write lease")
		require.Error(t, outer.Downgrade(t.Context()))
		require.NoError(t, outer.Check())
		require.NoError(t, inner.Unlock(t.Context()))
		require.NoError(t, outer.Downgrade(t.Context()))
		require.NoError(t, outer.Unlock(t.Context()))
		require.Equal(t, context.Canceled, outer.Downgrade(t.Context()))
		small := mustLock(t, newRWMutex(t, struct{ Backend }{b}, MutexOptions{}).Lock, "c")
		require.ErrorIs(t, small.Downgrade(t.Context()), errors.ErrUnsupported)
	})
}

// Property: after the Unlock of the outer lease a nested one is over, though the name is held for it: it cannot be downgraded.
// Broken by: beginDowngrade, `context.Cause(l.ctx) != nil` -> l.over.
func TestDowngradeAfterTheOuterUnlockFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newRWMutex(t, b, MutexOptions{Reentrant: true})
		outer := mustLock(t, m.Lock, "n")
		inner, err := m.Lock(outer.Context(), "n")
		require.NoError(t, err)
		require.NoError(t, outer.Unlock(t.Context()))
		require.Equal(t, context.Canceled, inner.Downgrade(t.Context()))
		require.Zero(t, b.count("downgrade"))
		require.NoError(t, inner.Unlock(t.Context()))
	})
}

// Property: if a request of the writer was never answered, no late copy of it is granted after the lease was downgraded and released.
// Broken by: downgraded, `if h.burn > 0`.
func TestDowngradeKeepsTheBurnOfTheWriter(t *testing.T) {
	for _, downgrade := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
			var late *LockClaim
			b.faulty(func(op string, c LockClaim) memFault {
				if op == "acquire" && late == nil {
					late = &c
					return memFault{drop: true, err: ErrUnavailable} // it is on its way still
				}
				return memFault{}
			})
			l := mustLock(t, m.Lock, "n")
			if downgrade {
				require.NoError(t, l.Downgrade(t.Context()))
			}
			require.NoError(t, l.Unlock(t.Context()))
			synctest.Wait()
			_, err := b.Acquire(t.Context(), *late)
			require.ErrorIs(t, err, ErrLeaseLost, "a late copy, downgraded %v", downgrade)
			mustLock(t, other.TryLock, "n")
		})
	}
}

// Property: Name and TokenOf may be called while Downgrade changes what the lease stands on (the race detector looks).
// Broken by: Name, l.h.claim.Name.
func TestNameCanBeReadDuringADowngrade(t *testing.T) {
	m := newRWMutex(t, newMemBackend(), MutexOptions{})
	l := mustLock(t, m.Lock, "n")
	var all sync.WaitGroup
	all.Go(func() {
		for range 1000 {
			_, ok := TokenOf(l.Context(), "n")
			if !ok || l.Name() != "n" {
				t.Error("the context carries no lease of the name")
			}
		}
	})
	require.NoError(t, l.Downgrade(t.Context()))
	all.Wait()
	require.NoError(t, l.Unlock(t.Context()))
}
