package backendtest

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/rebuild"
)

func grantCases() []Case {
	return []Case{
		{"one exclusive holder, nobody beside it", exclusion},
		{"of many who ask at once one is granted", crowd},
		{"two owners of one process are two", twoOwners},
		{"a repeated acquire gets the same grant", repeatAcquire},
		{"repeated renewals and releases do no harm", repeatRest},
		{"a late copy of an acquire is refused to a burned owner", lateCopyBurned},
		{"a late copy of an acquire is at worst a lease nobody holds", lateCopy},
		{"tokens grow over releases", tokensOverReleases},
		{"tokens grow over expiries", tokensOverExpiries},
		{"tokens are above what the asker has seen", tokensAboveFloor},
		{"a stranger renews nothing", strangerRenews},
		{"a stranger releases nothing", strangerReleases},
		{"who was late harms no successor", lateHolder},
		{"a past lease is not revived", pastLease},
		{"nobody else is granted before Left is over", leftHolds},
		{"nobody else is granted before the Left of a repeat is over", leftOfRepeat},
		{"nobody else is granted before the Left of a renewal is over", leftOfRenewal},
		{"a limit lets so many in", limit},
		{"a changed limit lets more in and revokes nobody", resize},
		{"a downgrade has no gap", downgrade},
		{"a repeated downgrade gets the same grant", repeatDowngrade},
		{"nothing is left behind", nothingLeft},
	}
}

// Property: beside an exclusive holder there is nobody, of whatever kind; shared holders are together, and no exclusive one beside them.
func exclusion(t T, s Subject) {
	name := newName()
	a := exclusive(name, "a")
	g := acquired(t, s.Backend, a)
	require.LessOrEqual(t, g.Left, long, "the rest of a lease just granted")
	refused(t, s.Other, exclusive(name, "b"))
	refused(t, s.Other, shared(name, "b", 0))
	acquired(t, s.Other, exclusive(newName(), "b")) // another name is another lock
	released(t, s.Backend, a, g.Token)
	first, second := shared(name, "a", 0), shared(name, "b", 0)
	one, two := acquired(t, s.Backend, first), acquired(t, s.Other, second)
	refused(t, s.Other, exclusive(name, "b"))
	released(t, s.Backend, first, one.Token)
	refused(t, s.Other, exclusive(name, "b"))
	released(t, s.Other, second, two.Token)
	acquired(t, s.Other, exclusive(name, "b"))
}

// Property: that a name is free and its grant are one moment.
func crowd(t T, s Subject) {
	for range 20 {
		name := newName()
		var grants atomic.Int32
		var all sync.WaitGroup
		for i := range 8 {
			b := s.Backend
			if i%2 == 1 {
				b = s.Other
			}
			all.Go(func() {
				if _, err := b.Acquire(t.Context(), exclusive(name, "p")); err == nil {
					grants.Add(1)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 1, grants.Load(), "grants of one name")
	}
}

// Property: who is inside is an owner, not a process.
func twoOwners(t T, s Subject) {
	name := newName()
	a, b := exclusive(name, "p"), exclusive(name, "p")
	g := acquired(t, s.Backend, a)
	refused(t, s.Backend, b)
	require.ErrorIs(t, s.Backend.Release(t.Context(), b, 0, 0), rebuild.ErrLeaseLost, "a release by the owner that does not hold it")
	stands(t, s.Backend, a, g.Token)
	refused(t, s.Backend, b)
}

// Property: a repeat of an acquire whose answer was lost finds the grant; it is one grant, and one release ends it. A repeat of a
// refused one takes no second place in the queue.
func repeatAcquire(t T, s Subject) {
	name := newName()
	a := exclusive(name, "a")
	first := acquired(t, s.Backend, a)
	second := acquired(t, s.Backend, a)
	require.Equal(t, first.Token, second.Token, "the token of a repeat")
	require.LessOrEqual(t, second.Left, long)
	b, c := inOrder(waiting(exclusive(name, "b"))), inOrder(waiting(exclusive(name, "c")))
	refused(t, s.Other, b)
	refused(t, s.Other, c)
	refused(t, s.Other, b)
	released(t, s.Backend, a, first.Token)
	if !s.Unordered {
		refused(t, s.Other, c)
	}
	g, _ := s.granted(t, s.Other, b)
	released(t, s.Other, b, g.Token)
	s.granted(t, s.Other, c)
}

// Property: a renewal and a release may come twice: the second answers as the first.
func repeatRest(t T, s Subject) {
	name := newName()
	a := exclusive(name, "a")
	g := acquired(t, s.Backend, a)
	stands(t, s.Backend, a, g.Token)
	stands(t, s.Backend, a, g.Token)
	released(t, s.Backend, a, g.Token)
	released(t, s.Backend, a, g.Token)
	b := exclusive(name, "b")
	h := acquired(t, s.Other, b)
	released(t, s.Backend, a, g.Token)
	stands(t, s.Other, b, h.Token)
}

// Property: an owner that was released with burn is granted nothing, whether it held, waited or was never heard of.
func lateCopyBurned(t T, s Subject) {
	name := newName()
	held, waited, unknown := exclusive(name, "a"), waiting(exclusive(name, "a")), exclusive(name, "a")
	g := acquired(t, s.Backend, held)
	refused(t, s.Backend, waited)
	for _, c := range []rebuild.LockClaim{unknown, waited, held} {
		err := s.Backend.Release(t.Context(), c, 0, burn)
		if c.Owner == held.Owner {
			require.NoError(t, err, "release of the holder")
		} else {
			require.ErrorIs(t, err, rebuild.ErrLeaseLost, "release of %+v, which held nothing", c)
		}
	}
	for _, c := range []rebuild.LockClaim{held, waited, unknown} {
		late, err := s.Backend.Acquire(t.Context(), c)
		require.ErrorIs(t, err, rebuild.ErrLeaseLost, "a late copy of the acquire of a burned owner got %+v", late)
	}
	b := exclusive(name, "b")
	require.Greater(t, acquired(t, s.Other, b).Token, g.Token)
}

// Property: a copy of an acquire that comes after the release takes the name for a lease at most, and its token is a new one.
func lateCopy(t T, s Subject) {
	name := newName()
	a := exclusive(name, "a")
	a.Lease = s.Lease
	g := acquired(t, s.Backend, a)
	released(t, s.Backend, a, g.Token)
	late, err := s.Backend.Acquire(t.Context(), a)
	if err == nil {
		require.Greater(t, late.Token, g.Token, "the token of a late copy's grant")
	}
	h, _ := s.granted(t, s.Other, exclusive(name, "b"))
	require.Greater(t, h.Token, max(late.Token, g.Token))
}

// Property: each grant of a name has a higher token than every grant before it.
func tokensOverReleases(t T, s Subject) {
	name := newName()
	last := uint64(0)
	for range 20 {
		for _, b := range []rebuild.Backend{s.Backend, s.Other} {
			a := exclusive(name, "a")
			g := acquired(t, b, a)
			require.Greater(t, g.Token, last, "a token after a release")
			require.GreaterOrEqual(t, g.Floor, g.Token, "the newest that this answer says")
			last = g.Token
			released(t, b, a, g.Token)
		}
	}
}

// Property: also if the grant before was not given back.
func tokensOverExpiries(t T, s Subject) {
	name := newName()
	last := uint64(0)
	for range 3 {
		a := exclusive(name, "a")
		a.Lease = s.Lease
		g, _ := s.granted(t, s.Other, a)
		require.Greater(t, g.Token, last, "a token after an expiry")
		last = g.Token
	}
}

// Property: a token is above everything that the asker names, and the next one is above that.
func tokensAboveFloor(t T, s Subject) {
	name := newName()
	a := exclusive(name, "a")
	g := acquired(t, s.Backend, a)
	released(t, s.Backend, a, g.Token)
	a = exclusive(name, "a")
	a.Floor = g.Floor + 1e10
	h := acquired(t, s.Backend, a)
	require.Greater(t, h.Token, a.Floor, "a token, given that the asker has seen %d", a.Floor)
	refused := refused(t, s.Other, exclusive(name, "b"))
	require.GreaterOrEqual(t, refused.Floor, h.Token, "the newest that a refusal says")
	released(t, s.Backend, a, h.Token)
	require.Greater(t, acquired(t, s.Other, exclusive(name, "b")).Token, h.Token, "a token of one who has seen nothing")
}

// Property: only the owner, with its token, renews.
func strangerRenews(t T, s Subject) {
	name := newName()
	a, b := exclusive(name, "a"), exclusive(name, "b")
	g := acquired(t, s.Backend, a)
	lost(t, s.Other, b, g.Token)     // another's token
	lost(t, s.Backend, a, g.Token-1) // an older grant of this owner
	stands(t, s.Backend, a, g.Token)
}

// Property: only the owner releases.
func strangerReleases(t T, s Subject) {
	name := newName()
	a, b := exclusive(name, "a"), exclusive(name, "b")
	g := acquired(t, s.Backend, a)
	for _, token := range []uint64{0, g.Token} {
		require.ErrorIs(t, s.Other.Release(t.Context(), b, token, 0), rebuild.ErrLeaseLost, "a stranger's release with token %d", token)
		stands(t, s.Backend, a, g.Token)
	}
	refused(t, s.Other, b)
}

// Property: a holder that was paused past its lease can neither renew nor release what its successor has.
func lateHolder(t T, s Subject) {
	name := newName()
	a, b := exclusive(name, "a"), exclusive(name, "b")
	a.Lease = s.Lease
	g := acquired(t, s.Backend, a)
	h, _ := s.granted(t, s.Other, b)
	lost(t, s.Backend, a, g.Token)
	require.ErrorIs(t, s.Backend.Release(t.Context(), a, g.Token, 0), rebuild.ErrLeaseLost, "a release after the end")
	stands(t, s.Other, b, h.Token)
	refused(t, s.Backend, exclusive(name, "c"))
}

// Property: a lease that has ended stays so, though nobody has taken its place: its holder was told.
func pastLease(t T, s Subject) {
	name := newName()
	a := exclusive(name, "a")
	a.Lease = s.Lease
	g := acquired(t, s.Backend, a)
	// Asking whether it has ended would end it: what is known is that the store's clock has gone on by a lease.
	marker := exclusive(newName(), "m")
	marker.Lease = s.Lease
	acquired(t, s.Backend, marker)
	s.granted(t, s.Other, exclusive(marker.Name, "n"))
	lost(t, s.Backend, a, g.Token)
	a.Lease = long
	lost(t, s.Backend, a, g.Token)
	acquired(t, s.Other, exclusive(name, "b"))
}

// successor asks for a's name, which it is to get not before a grant that was asked for at sent has been for Left.
func successor(t T, s Subject, a rebuild.LockClaim, g rebuild.LockGrant, sent time.Time) {
	t.Helper()
	if g.Left == 0 {
		t.Skip("grants of this backend stand until a ping fails")
	}
	_, answered := s.granted(t, s.Other, exclusive(a.Name, "successor"))
	require.False(t, answered.Before(sent.Add(g.Left)), "somebody else was granted %v after it was asked for, and Left was %v", answered.Sub(sent), g.Left)
}

// Property: counted from before the request, nobody else has the name while Left lasts.
func leftHolds(t T, s Subject) {
	a := exclusive(newName(), "a")
	a.Lease = s.Lease
	sent := time.Now()
	successor(t, s, a, acquired(t, s.Backend, a), sent)
}

// half lets half of a lease go by, on the store's clock.
func (s Subject) half(t T) {
	t.Helper()
	half := exclusive(newName(), "h")
	half.Lease = s.Lease / 2
	acquired(t, s.Backend, half)
	s.granted(t, s.Other, exclusive(half.Name, "i"))
}

// Property: a repeat says what is left of the grant it found.
func leftOfRepeat(t T, s Subject) {
	a := exclusive(newName(), "a")
	a.Lease = s.Lease
	acquired(t, s.Backend, a)
	s.half(t)
	sent := time.Now()
	successor(t, s, a, acquired(t, s.Backend, a), sent)
}

// Property: the same for a renewal.
func leftOfRenewal(t T, s Subject) {
	a := exclusive(newName(), "a")
	a.Lease = s.Lease
	var sent time.Time
	var g rebuild.LockGrant
	s.await(t, "a lease is renewed before it ends", func() bool {
		token := acquired(t, s.Backend, a).Token
		s.half(t)
		sent = time.Now()
		var err error
		g, err = s.Backend.Renew(t.Context(), a, token)
		return err == nil
	})
	successor(t, s, a, g, sent)
}

// Property: so many shared holders as the limit says, no more and no fewer; what one gives back another gets.
func limit(t T, s Subject) {
	name := newName()
	one, two, three := shared(name, "a", 2), shared(name, "a", 2), shared(name, "b", 2)
	g, h := acquired(t, s.Backend, one), acquired(t, s.Backend, two)
	require.Greater(t, h.Token, g.Token, "each grant has a token of its own")
	refused(t, s.Other, three)
	released(t, s.Backend, one, g.Token)
	acquired(t, s.Other, three)
	stands(t, s.Backend, two, h.Token)
	refused(t, s.Other, shared(name, "b", 2))
}

// Property: a limit that grew lets in, one that shrank revokes nobody and lets in again when enough have left.
func resize(t T, s Subject) {
	r, ok := s.Backend.(rebuild.Resizer)
	if !ok {
		t.Skip("this backend is no Resizer")
	}
	name := newName()
	a, b, c := shared(name, "a", 1), shared(name, "a", 1), shared(name, "b", 1)
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, b)
	require.NoError(t, r.Resize(t.Context(), name, 2))
	h := acquired(t, s.Other, b)
	require.NoError(t, r.Resize(t.Context(), name, 1))
	stands(t, s.Backend, a, g.Token)
	stands(t, s.Other, b, h.Token)
	released(t, s.Backend, a, g.Token)
	refused(t, s.Other, c)
	released(t, s.Other, b, h.Token)
	i := acquired(t, s.Other, c)
	require.NoError(t, r.Resize(t.Context(), name, 5))
	require.NoError(t, r.Resize(t.Context(), name, 0))
	refused(t, s.Other, b)
	stands(t, s.Other, c, i.Token)
}

// Property: a downgrade ends the exclusive grant and gives a shared one with a new token in one moment: a writer who waits does not
// come in between, other readers do come in.
func downgrade(t T, s Subject) {
	d, ok := s.Backend.(rebuild.Downgrader)
	if !ok {
		t.Skip("this backend is no Downgrader")
	}
	name := newName()
	a, heir := inOrder(exclusive(name, "a")), shared(name, "a", 0)
	writer, reader := inOrder(exclusive(name, "b")), shared(name, "b", 0)
	g := acquired(t, s.Backend, a)
	h, err := d.Downgrade(t.Context(), a, g.Token, heir.Owner)
	require.NoError(t, err)
	require.Greater(t, h.Token, g.Token, "the token of the shared grant")
	lost(t, s.Backend, a, g.Token)
	stands(t, s.Backend, heir, h.Token)
	refused(t, s.Other, writer)
	i := acquired(t, s.Other, reader)
	released(t, s.Other, reader, i.Token)
	released(t, s.Backend, heir, h.Token)
	acquired(t, s.Other, writer)
	_, err = d.Downgrade(t.Context(), a, g.Token, shared(name, "a", 0).Owner)
	require.ErrorIs(t, err, rebuild.ErrLeaseLost, "a downgrade of a grant that is over")
}

// Property: the repeat of a downgrade whose answer was lost finds the shared grant.
func repeatDowngrade(t T, s Subject) {
	d, ok := s.Backend.(rebuild.Downgrader)
	if !ok {
		t.Skip("this backend is no Downgrader")
	}
	name := newName()
	a, heir := inOrder(exclusive(name, "a")), shared(name, "a", 0)
	g := acquired(t, s.Backend, a)
	first, err := d.Downgrade(t.Context(), a, g.Token, heir.Owner)
	require.NoError(t, err)
	second, err := d.Downgrade(t.Context(), a, g.Token, heir.Owner)
	require.NoError(t, err, "the repeat of a downgrade")
	require.Equal(t, first.Token, second.Token, "the token of a repeat")
	released(t, s.Backend, heir, first.Token)
	acquired(t, s.Other, exclusive(name, "b"))
}

// Property: whatever was done with a name, the store loses it by itself.
func nothingLeft(t T, s Subject) {
	if s.Leftover == nil {
		t.Skip("this store cannot be looked into")
	}
	name := newName()
	look := func(after string) {
		require.Empty(t, s.Leftover(name), "left behind after %s", after)
	}
	a, b := exclusive(name, "a"), waiting(exclusive(name, "b"))
	g := acquired(t, s.Backend, a)
	look("a grant")
	refused(t, s.Other, b)
	look("an entry in the queue")
	stands(t, s.Backend, a, g.Token)
	look("a renewal")
	lost(t, s.Backend, a, g.Token+5)
	look("a renewal with a token that is not known")
	_ = s.Backend.Release(t.Context(), a, g.Token, burn)
	look("a release with burn")
	left(t, s.Other, b)
	look("a leaving")
	if r, ok := s.Backend.(rebuild.Resizer); ok {
		require.NoError(t, r.Resize(t.Context(), name, 3))
		look("a change of the limit")
	}
	name = newName()
	lost(t, s.Backend, exclusive(name, "a"), 7)
	look("a renewal of what never was")
	name = newName()
	_ = s.Backend.Release(t.Context(), exclusive(name, "a"), 7, burn)
	look("a release of what never was")
}
