package rebuild

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Property: re-entrant: Lock with the lease's context gives a nested lease with the same token, without a call; the name is free after the
// last Unlock.
// Broken by: nest, `!b.reentrant` (always an error); unlock, `len(h.open) == 0` (released by the first Unlock).
func TestLockUnderItsOwnLeaseIsNested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{Reentrant: true}), newMutex(t, b, MutexOptions{})
		outer := mustLock(t, m.Lock, "n")
		calls := b.count()
		inner, err := m.Lock(outer.Context(), "n")
		require.NoError(t, err)
		innermost, err := m.TryLock(inner.Context(), "n")
		require.NoError(t, err)
		require.Equal(t, []uint64{outer.Token(), outer.Token()}, []uint64{inner.Token(), innermost.Token()})
		require.NoError(t, innermost.Unlock(t.Context()))
		require.Equal(t, context.Canceled, innermost.Check())
		require.NoError(t, inner.Check())
		require.NoError(t, inner.Unlock(t.Context()))
		require.NoError(t, inner.Unlock(t.Context()), "twice counts once")
		require.NoError(t, outer.Check())
		require.Equal(t, calls, b.count(), "calls for nested leases")
		_, err = other.TryLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
		require.NoError(t, outer.Unlock(t.Context()))
		mustLock(t, other.TryLock, "n")
	})
}

// Property: Unlock of an outer lease ends the contexts of those nested in it; the name is released by the last of them.
// Broken by: unlock, `inner.within(l)`.
func TestOuterUnlockEndsInnerContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{Reentrant: true}), newMutex(t, b, MutexOptions{})
		outer := mustLock(t, m.Lock, "n")
		inner, err := m.Lock(outer.Context(), "n")
		require.NoError(t, err)
		require.NoError(t, outer.Unlock(t.Context()))
		require.Equal(t, context.Canceled, context.Cause(inner.Context()))
		_, err = other.TryLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked, "the inner one is not unlocked yet")
		require.NoError(t, inner.Unlock(t.Context()))
		mustLock(t, other.TryLock, "n")
	})
}

// Property: a loss ends outer and inner contexts, and is the answer of all their Unlocks.
// Broken by: holding.endLocked, only the first of h.open.
func TestLossEndsNestedLeasesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{Reentrant: true})
		outer := mustLock(t, m.Lock, "n")
		inner, err := m.Lock(outer.Context(), "n")
		require.NoError(t, err)
		b.down()
		pass(11 * time.Second)
		for _, l := range []*Lease{inner, outer} {
			require.Equal(t, ErrLeaseLost, context.Cause(l.Context()))
			require.ErrorIs(t, l.Unlock(t.Context()), ErrLeaseLost)
		}
	})
}

// Property: without Reentrant, Lock under the caller's own lease is an error at once, not a wait for itself; other names and other
// Mutexes are not concerned, nor is a context whose lease is over.
// Broken by: lock, `b.nest`.
func TestLockUnderItsOwnLeaseIsAnErrorWithoutReentrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		ctx, cancel := context.WithTimeout(l.Context(), time.Hour)
		defer cancel()
		begun := time.Now()
		_, err := m.Lock(ctx, "n")
		require.ErrorIs(t, err, ErrLocked)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, time.Since(begun))
		_, err = m.LockMany(ctx, "a", "n")
		require.ErrorIs(t, err, ErrLocked)
		require.Zero(t, time.Since(begun))
		_, err = m.TryLock(ctx, "other name")
		require.NoError(t, err)
		require.NoError(t, l.Unlock(t.Context()))
		_, err = m.Lock(context.WithoutCancel(ctx), "n")
		require.NoError(t, err)
	})
}

// Property: TokenOf gives the token of the lease of that name which the context carries, wherever it is from, while it is held.
// Broken by: carry, before: nil; TokenOf, c.lease.Check() == nil.
func TestTokenOfTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, c := newMemBackend(), newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, c, MutexOptions{})
		_, ok := TokenOf(t.Context(), "a")
		require.False(t, ok)
		a := mustLock(t, m.Lock, "a")
		inA, err := other.Lock(a.Context(), "b")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(inA.Context())
		defer cancel()
		token, ok := TokenOf(ctx, "a")
		require.Equal(t, []any{a.Token(), true}, []any{token, ok})
		token, ok = TokenOf(ctx, "b")
		require.Equal(t, []any{inA.Token(), true}, []any{token, ok})
		_, ok = TokenOf(ctx, "c")
		require.False(t, ok)
		require.NoError(t, a.Unlock(t.Context()))
		_, ok = TokenOf(ctx, "a")
		require.False(t, ok, "it was unlocked")
	})
}

// Property: Do holds the lock while fn runs, with its token in the context, and returns what fn returned.
// Broken by: Do, the deferred Unlock.
func TestDoHoldsTheLockWhileFnRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		failed := errors.New("failed")
		for _, want := range []error{nil, failed} {
			err := Do(t.Context(), m, "n", func(ctx context.Context) error {
				_, err := other.TryLock(t.Context(), "n")
				require.ErrorIs(t, err, ErrLocked)
				_, ok := TokenOf(ctx, "n")
				require.True(t, ok)
				return want
			})
			require.Equal(t, want, err)
			require.NoError(t, mustLock(t, other.TryLock, "n").Unlock(t.Context()))
		}
	})
}

// Property: a lease that was lost while fn ran is an error of Do, though fn knows nothing of it; fn's context ends with the lease.
// Broken by: Do, errors.Join(err, ErrLeaseLost).
func TestDoJoinsErrLeaseLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("failed")
		for _, said := range []error{nil, failed} {
			b := newMemBackend()
			m := newMutex(t, b, MutexOptions{})
			err := Do(t.Context(), m, "n", func(ctx context.Context) error {
				b.down()
				<-ctx.Done()
				require.Equal(t, ErrLeaseLost, context.Cause(ctx))
				return said
			})
			require.ErrorIs(t, err, ErrLeaseLost)
			if said != nil {
				require.ErrorIs(t, err, said)
			}
		}
	})
}

// Property: fn's context ends with the caller's, and a caller that leaves early still unlocks.
// Broken by: Do, context.AfterFunc.
func TestDoEndsWithItsCallersContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := Do(ctx, m, "n", func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		require.Equal(t, context.DeadlineExceeded, err)
		synctest.Wait()
		mustLock(t, other.TryLock, "n")
	})
}

// Property: a panic of fn, and a Goexit, unlock and go on.
// Broken by: Do, the Unlock after fn instead of deferred.
func TestPanicAndGoexitInDoUnlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMutex(t, newMemBackend(), MutexOptions{})
		require.PanicsWithValue(t, "boom", func() {
			_ = Do(t.Context(), m, "n", func(context.Context) error { panic("boom") })
		})
		l := mustLock(t, m.TryLock, "n")
		require.NoError(t, l.Unlock(t.Context()))
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_ = Do(t.Context(), m, "n", func(context.Context) error { runtime.Goexit(); return nil })
		}()
		<-gone
		mustLock(t, m.TryLock, "n")
	})
}

// Property: no write lease is nested in one that is being downgraded: it would be one of a read lease, beside other readers.
// Broken by: nest, `w.kind == exclusive && outer.h.changing`.
func TestNoWriteLeaseIsNestedDuringADowngrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newRWMutex(t, b, MutexOptions{Reentrant: true}), newRWMutex(t, b, MutexOptions{})
		outer := mustLock(t, m.Lock, "n")
		b.faulty(func(op string, _ LockClaim) memFault {
			return memFault{slow: map[string]time.Duration{"downgrade": 100 * time.Millisecond}[op]}
		})
		done := make(chan error, 1)
		go func() { done <- outer.Downgrade(t.Context()) }()
		synctest.Wait()
		_, err := m.Lock(outer.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
		inner, err := m.RLock(outer.Context(), "n")
		require.NoError(t, err, "reading goes on")
		require.NoError(t, <-done)
		mustLock(t, other.TryRLock, "n")
		require.NoError(t, inner.Check())
	})
}
