package rebuild

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// Property: a release that the backend refused is an error of Close, with what the backend said; it was not released.
// Broken by: remains, `return h.answer` -> nil.
func TestCloseReportsAReleaseThatWasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{})
		mustLock(t, m.Lock, "n")
		refused := errors.New("no permission")
		b.faulty(func(string, LockClaim) memFault { return memFault{drop: true, err: refused} })
		err := m.Close()
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, err, refused)
		_, holders := b.queued("n")
		require.Equal(t, 1, holders)
	})
}

// Property: so it is if a release is given up before Close is, since the lease is shorter.
// Broken by: remains, `return h.answer` -> nil.
func TestCloseReportsAReleaseThatWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{LeaseTime: 500 * time.Millisecond})
		mustLock(t, m.Lock, "n")
		b.faulty(func(string, LockClaim) memFault { return memFault{drop: true, hang: true} })
		require.ErrorIs(t, m.Close(), ErrUnavailable)
	})
}

// Property: so it is if the client was closed first, which is a mistake of the caller.
// Broken by: remains, `return h.answer` -> nil.
func TestCloseReportsThatItsClientWasClosedBefore(t *testing.T) {
	s := redistest.Shared(t)
	prefix := redistest.Name(t)
	rdb := redis.NewClient(s.Client(t).Options())
	m := redisMutex(t, rdb, MutexOptions{Prefix: prefix})
	mustLock(t, m.Lock, "n")
	require.NoError(t, rdb.Close())
	require.ErrorIs(t, m.Close(), redis.ErrClosed)
	_, err := redisMutex(t, s.Client(t), MutexOptions{Prefix: prefix}).TryLock(t.Context(), "n")
	require.ErrorIs(t, err, ErrLocked)
}

// Property: a lease that was lost, or may have been, is not held any more: it is no error of Close.
// Broken by: remains, `errors.Is(h.answer, errUnclear)` left out.
func TestCloseDoesNotReportWhatIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{LeaseTime: 2 * time.Second})
		mustLock(t, m.Lock, "a")
		mustLock(t, m.Lock, "b")
		b.flush()
		unanswered := false
		b.faulty(func(op string, c LockClaim) memFault {
			if op == "release" && c.Name == "b" && !unanswered {
				unanswered = true
				return memFault{err: ErrUnavailable}
			}
			return memFault{}
		})
		require.NoError(t, m.Close())
		require.True(t, unanswered)
	})
}

// Property: a Close that comes while another one releases cuts nothing off: it waits for it and says the same, as does one that comes later.
// Broken by: close, `if second` left out.
func TestSecondCloseWaitsForTheFirst(t *testing.T) {
	for _, reachable := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, other := newMutex(t, b, MutexOptions{LeaseTime: 5 * time.Second}), newMutex(t, b, MutexOptions{})
			mustLock(t, m.Lock, "n")
			releases := 0
			b.faulty(func(op string, _ LockClaim) memFault {
				if op == "release" {
					releases++
				}
				return memFault{drop: !reachable || releases == 1, err: map[bool]error{true: ErrUnavailable}[!reachable || releases == 1]}
			})
			first := make(chan error, 1)
			go func() { first <- m.Close() }()
			synctest.Wait()
			err := m.Close()
			require.Equal(t, <-first, err)
			require.Equal(t, err, m.Close())
			if !reachable {
				require.ErrorIs(t, err, ErrUnavailable)
				return
			}
			require.NoError(t, err)
			mustLock(t, other.TryLock, "n")
		})
	}
}

// Property: Close waits for the releases that Unlock began, a second at most: who unlocks with an ended context and closes then has released.
// Broken by: surrender, `maps.Keys(b.leaving)` -> those that were held.
func TestCloseWaitsForUnlocksUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{LeaseTime: 5 * time.Second}), newMutex(t, b, MutexOptions{})
		l := mustLock(t, m.Lock, "n")
		b.trip = 100 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, l.Unlock(ctx), context.Canceled)
		require.NoError(t, m.Close())
		require.NoError(t, l.Unlock(t.Context()))
		mustLock(t, other.TryLock, "n")
	})
}

// Property: Close ends a Downgrade with ErrClosed, and releases what the lease is by then, whether the backend has carried it out or not.
// Broken by: Downgrade, `b.work.join(ctx)`.
func TestCloseReleasesWhatIsBeingDowngraded(t *testing.T) {
	for _, carriedOut := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			m, other := newRWMutex(t, b, MutexOptions{}), newRWMutex(t, b, MutexOptions{})
			l := mustLock(t, m.Lock, "n")
			b.faulty(func(op string, _ LockClaim) memFault {
				return memFault{drop: op == "downgrade" && !carriedOut, hang: op == "downgrade"}
			})
			done := make(chan error, 1)
			go func() { done <- l.Downgrade(t.Context()) }()
			synctest.Wait()
			require.NoError(t, m.Close())
			require.Equal(t, ErrClosed, <-done)
			require.Equal(t, ErrClosed, context.Cause(l.Context()))
			mustLock(t, other.TryLock, "n")
			require.Equal(t, ErrClosed, l.Downgrade(t.Context()))
		})
	}
}
