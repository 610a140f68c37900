package rebuild

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Property: callers of several processes who want overlapping names in random order all get them, one at a time each; nobody waits for
// ever.
// Broken by: LockMany, slices.Sort (the bubble ends in a deadlock, or the test by its clock).
func TestLockManyInRandomOrderDoesNotDeadlock(t *testing.T) {
	for _, fair := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newMemBackend()
			b.trip = time.Millisecond
			names := []string{"a", "b", "c", "d", "e"}
			inside := map[string]*atomic.Int32{}
			for _, name := range names {
				inside[name] = &atomic.Int32{}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			var all sync.WaitGroup
			for range 3 {
				m := newMutex(t, b, MutexOptions{Fair: fair})
				for range 5 {
					all.Go(func() {
						for range 10 {
							mine := slices.Clone(names)
							rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
							mine = mine[:1+rand.N(len(mine))]
							ls, err := m.LockMany(ctx, mine...)
							if err != nil {
								t.Errorf("LockMany(%v): %v", mine, err)
								return
							}
							for _, name := range mine {
								if n := inside[name].Add(1); n != 1 {
									t.Errorf("%d holders of %q", n, name)
								}
							}
							pass(rand.N(5 * time.Millisecond))
							for _, name := range mine {
								inside[name].Add(-1)
							}
							if err := ls.Unlock(ctx); err != nil {
								t.Errorf("Unlock: %v", err)
							}
						}
					})
				}
			}
			all.Wait()
		})
	}
}

// Property: the leases have all names once, each with its token, which TokenOf finds in their context; Unlock releases all.
// Broken by: LockMany, slices.Compact; bundle, carry.
func TestLockManyHoldsEachNameOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		ls, err := m.LockMany(t.Context(), "b", "a", "b")
		require.NoError(t, err)
		require.Len(t, ls.Tokens(), 2)
		for _, name := range []string{"a", "b"} {
			token, ok := ls.Token(name)
			require.True(t, ok)
			require.Equal(t, ls.Tokens()[name], token)
			carried, ok := TokenOf(ls.Context(), name)
			require.Equal(t, []any{token, true}, []any{carried, ok})
			_, err := other.TryLock(t.Context(), name)
			require.ErrorIs(t, err, ErrLocked)
		}
		_, ok := ls.Token("c")
		require.False(t, ok)
		require.NoError(t, ls.Check())
		require.NoError(t, ls.Unlock(t.Context()))
		require.Equal(t, context.Canceled, context.Cause(ls.Context()))
		require.NoError(t, ls.Unlock(t.Context()))
		_, err = other.LockMany(t.Context(), "a", "b")
		require.NoError(t, err)
		_, err = m.LockMany(t.Context())
		require.Error(t, err, "no names")
		_, err = m.LockMany(t.Context(), make([]string, 1001)...)
		require.Error(t, err, "too many names, even if they are one")
	})
}

// Property: while one name is waited for, those after it are not held, those before it are; if the wait ends without it nothing is.
// Broken by: LockMany, letGo(got[refused:]); letGo(got) at a failure.
func TestLockManyHoldsNothingBehindWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		mustLock(t, other.Lock, "b")
		ctx, cancel := context.WithCancel(t.Context())
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = m.LockMany(ctx, "a", "b", "c")
		}()
		synctest.Wait()
		_, held := other.TryLock(t.Context(), "a")
		require.ErrorIs(t, held, ErrLocked)
		require.NoError(t, mustLock(t, other.TryLock, "c").Unlock(t.Context()))
		cancel()
		<-done
		require.ErrorIs(t, err, context.Canceled)
		synctest.Wait()
		mustLock(t, other.TryLock, "a")
	})
}

// Property: the context of the leases ends when any of them is lost; a wait ends when one that is held already is lost.
// Broken by: bundle, l.also = leases.end; lockNext, context.AfterFunc.
func TestLossOfOneOfManyEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		ls, err := m.LockMany(t.Context(), "a", "b")
		require.NoError(t, err)
		b.flushHolders("b")
		pass(4 * time.Second)
		require.Equal(t, ErrLeaseLost, context.Cause(ls.Context()))
		require.Equal(t, ErrLeaseLost, ls.Check())
		require.ErrorIs(t, ls.Unlock(t.Context()), ErrLeaseLost)

		mustLock(t, other.Lock, "d")
		done := make(chan error, 1)
		go func() {
			_, err := m.LockMany(t.Context(), "c", "d")
			done <- err
		}()
		synctest.Wait()
		b.flushHolders("c")
		require.ErrorIs(t, <-done, ErrLeaseLost)
	})
}

// Property: under a lease of a later name an earlier one is only tried, and what such a try gives back does not refuse the next one.
// Broken by: LockMany, name < highest; letGo for giveUp (in one run of thirty).
func TestLockManyOnlyTriesBeforeANameThatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m, other := newMutex(t, b, MutexOptions{}), newMutex(t, b, MutexOptions{})
		later := mustLock(t, m.Lock, "m")
		mustLock(t, other.Lock, "a")
		ctx, cancel := context.WithTimeout(later.Context(), time.Hour)
		defer cancel()
		begun := time.Now()
		_, err := m.LockMany(ctx, "a", "b")
		require.ErrorIs(t, err, ErrLocked)
		require.Zero(t, time.Since(begun))
		ls, err := m.LockMany(ctx, "b", "z")
		require.NoError(t, err)
		require.NoError(t, ls.Unlock(t.Context()))
	})
}

// Property: the tries of many names are under way together.
// Broken by: triesAtOnce = 1.
func TestLockManyTriesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		b.trip = time.Millisecond
		m := newMutex(t, b, MutexOptions{})
		var names []string
		for i := range 16 {
			names = append(names, fmt.Sprint(i))
		}
		begun := time.Now()
		_, err := m.LockMany(t.Context(), names...)
		require.NoError(t, err)
		require.Equal(t, 2*time.Millisecond, time.Since(begun), "one round trip")
	})
}

// Property: a name that is only tried, since a later one is held, is not refused because of LockMany's own first try, whose release is not
// answered yet.
// Broken by: LockMany, `if !try` -> always.
func TestLockManyIsNotRefusedByItsOwnTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMemBackend()
		m := newMutex(t, b, MutexOptions{})
		later := mustLock(t, m.Lock, "z")
		var refused, unanswered atomic.Bool
		b.faulty(func(op string, c LockClaim) memFault {
			switch {
			case op == "acquire" && c.Name == "a" && !refused.Swap(true):
				return memFault{drop: true, err: ErrLocked} // somebody has it for this moment only
			case op == "release" && !unanswered.Swap(true):
				return memFault{drop: true, err: ErrUnavailable}
			}
			return memFault{}
		})
		ls, err := m.LockMany(later.Context(), "a", "b")
		require.NoError(t, err, "nobody else has a or b")
		require.Len(t, ls.Tokens(), 2)
		require.True(t, refused.Load())
		require.False(t, unanswered.Load(), "nothing was given back")
	})
}
