package backendtest

import (
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/rebuild"
)

func waitCases() []Case {
	return []Case{
		{"a release wakes who waits", wakeAfterRelease},
		{"who was woken and came too late is woken again", wakeAgain},
		{"a leaving passes the wake-up on", wakeAfterLeaving},
		{"an end that somebody meets wakes who waits", wakeAfterExpiry},
		{"a limit that grows wakes who waits", wakeAfterResize},
		{"a downgrade wakes those who read", wakeAfterDowngrade},
		{"readers are woken together, up to the next writer", wakeReaders},
		{"a place that is not asked for ends", deadWaiter},
		{"who is woken and does not answer is passed", stoppedWaiter},
		{"grants come in the order of arrival", order},
		{"who tries passes nobody that waits", tryPassesNobody},
		{"a newcomer takes a free name where order does not count", barging},
		{"a reader does not pass a writer that waits", writerNotStarved},
		{"a place is kept alive by another owner of its process", also},
	}
}

// heard skips where nobody is woken.
func (s Subject) heard(t T) {
	t.Helper()
	if s.Silent {
		t.Skip("this backend wakes nobody")
	}
}

// kept skips where there is no order.
func (s Subject) kept(t T) {
	t.Helper()
	if s.Unordered {
		t.Skip("this backend keeps no order")
	}
}

// Property: the release of what a waiter waits for wakes it, by its name.
func wakeAfterRelease(t T, s Subject) {
	s.heard(t)
	for _, ordered := range []bool{false, true} {
		name := newName()
		w := s.watch(t, s.Other, "b")
		a, b := exclusive(name, "a"), waiting(exclusive(name, "b"))
		a.Ordered, b.Ordered = ordered, ordered
		g := acquired(t, s.Backend, a)
		refused(t, s.Other, b)
		released(t, s.Backend, a, g.Token)
		w.wakes(t, b)
		acquired(t, s.Other, b)
	}
}

// Property: a woken waiter that found the name taken again by a newcomer is woken again, by the newcomer's release or by its end.
func wakeAgain(t T, s Subject) {
	s.heard(t)
	permit := func(name, process string) rebuild.LockClaim {
		c := shared(name, process, 1)
		c.Ordered = false
		return c
	}
	for _, claim := range []func(name, process string) rebuild.LockClaim{exclusive, permit} {
		for _, ends := range []bool{false, true} {
			name := newName()
			w := s.watch(t, s.Other, "b")
			a, b, newcomer := claim(name, "a"), waiting(claim(name, "b")), claim(name, "c")
			if ends {
				newcomer.Lease = s.Lease
			}
			g := acquired(t, s.Backend, a)
			refused(t, s.Other, b)
			released(t, s.Backend, a, g.Token)
			w.wakes(t, b)
			h := acquired(t, s.Backend, newcomer)
			_, err := s.Other.Acquire(t.Context(), b)
			if err == nil && ends {
				continue // the newcomer's lease was over before that: a slow machine
			}
			require.ErrorIs(t, err, rebuild.ErrLocked)
			if ends {
				newcomer.Lease = time.Millisecond
				s.await(t, "the newcomer's lease has ended", func() bool {
					_, err := s.Backend.Renew(t.Context(), newcomer, h.Token)
					return err != nil
				})
			} else {
				released(t, s.Backend, newcomer, h.Token)
			}
			w.wakes(t, b)
			acquired(t, s.Other, b)
		}
	}
}

// Property: who was woken and leaves without asking wakes the next.
func wakeAfterLeaving(t T, s Subject) {
	s.heard(t)
	s.kept(t)
	name := newName()
	w := s.watch(t, s.Other, "b")
	a, b, c := inOrder(exclusive(name, "a")), inOrder(waiting(exclusive(name, "b"))), inOrder(waiting(exclusive(name, "b")))
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, b)
	refused(t, s.Other, c)
	released(t, s.Backend, a, g.Token)
	w.wakes(t, b)
	left(t, s.Other, b)
	w.wakes(t, c)
	acquired(t, s.Other, c)
}

// Property: a holder that is over is cleared by whoever calls next, and that wakes who waits: a call that leaves a free name behind and
// nobody woken leaves it idle.
func wakeAfterExpiry(t T, s Subject) {
	s.heard(t)
	name := newName()
	w := s.watch(t, s.Other, "b")
	a, b := exclusive(name, "a"), waiting(exclusive(name, "b"))
	a.Lease = s.Lease
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, b)
	a.Lease = time.Millisecond // asks, and lets it end
	s.await(t, "the lease has ended", func() bool {
		_, err := s.Backend.Renew(t.Context(), a, g.Token)
		return err != nil
	})
	w.wakes(t, b)
	acquired(t, s.Other, b)
}

// Property: the permits that a new limit brings go to those who wait.
func wakeAfterResize(t T, s Subject) {
	s.heard(t)
	r, ok := s.Backend.(rebuild.Resizer)
	if !ok {
		t.Skip("this backend is no Resizer")
	}
	name := newName()
	w := s.watch(t, s.Other, "b")
	acquired(t, s.Backend, shared(name, "a", 1))
	b, c := waiting(shared(name, "b", 1)), waiting(shared(name, "b", 1))
	refused(t, s.Other, b)
	refused(t, s.Other, c)
	require.NoError(t, r.Resize(t.Context(), name, 3))
	w.wakes(t, b)
	w.wakes(t, c)
}

// Property: with a downgrade the readers that waited for the writer come in.
func wakeAfterDowngrade(t T, s Subject) {
	s.heard(t)
	d, ok := s.Backend.(rebuild.Downgrader)
	if !ok {
		t.Skip("this backend is no Downgrader")
	}
	name := newName()
	w := s.watch(t, s.Other, "b")
	a, b := inOrder(exclusive(name, "a")), waiting(shared(name, "b", 0))
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, b)
	_, err := d.Downgrade(t.Context(), a, g.Token, shared(name, "a", 0).Owner)
	require.NoError(t, err)
	w.wakes(t, b)
	acquired(t, s.Other, b)
}

// Property: all readers before the next writer are woken by one release, each by name, and come in together; who reads behind the writer is refused.
func wakeReaders(t T, s Subject) {
	s.heard(t)
	s.kept(t)
	name := newName()
	w := s.watch(t, s.Other, "b")
	a := inOrder(exclusive(name, "a"))
	g := acquired(t, s.Backend, a)
	first, second := waiting(shared(name, "b", 0)), waiting(shared(name, "b", 0))
	writer, behind := inOrder(waiting(exclusive(name, "b"))), waiting(shared(name, "b", 0))
	for _, c := range []rebuild.LockClaim{first, second, writer, behind} {
		refused(t, s.Other, c)
	}
	released(t, s.Backend, a, g.Token)
	w.wakes(t, first)
	w.wakes(t, second)
	one, two := acquired(t, s.Other, first), acquired(t, s.Other, second)
	refused(t, s.Other, behind)
	released(t, s.Other, first, one.Token)
	released(t, s.Other, second, two.Token)
	w.wakes(t, writer)
	h := acquired(t, s.Other, writer)
	released(t, s.Other, writer, h.Token)
	w.wakes(t, behind)
	acquired(t, s.Other, behind)
}

// Property: a waiter that died is in nobody's way for longer than its entry.
func deadWaiter(t T, s Subject) {
	s.kept(t)
	name := newName()
	a, dead, c := inOrder(exclusive(name, "a")), inOrder(exclusive(name, "dead")), inOrder(waiting(exclusive(name, "c")))
	dead.Entry = s.Lease
	g := acquired(t, s.Backend, a)
	for range 20 {
		dead.Owner = exclusive(name, "dead").Owner
		refused(t, s.Other, dead)
	}
	refused(t, s.Other, c)
	released(t, s.Backend, a, g.Token)
	s.granted(t, s.Other, c)
}

// Property: one that lives (its entry does not end for long) but does not answer when it is its turn loses it to the next who asks.
func stoppedWaiter(t T, s Subject) {
	s.kept(t)
	s.heard(t)
	name := newName()
	w := s.watch(t, s.Other, "stopped") // somebody listens, and does nothing
	a, stopped, c := inOrder(exclusive(name, "a")), inOrder(waiting(exclusive(name, "stopped"))), inOrder(waiting(exclusive(name, "c")))
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, stopped)
	refused(t, s.Other, c)
	released(t, s.Backend, a, g.Token)
	w.wakes(t, stopped)
	s.granted(t, s.Other, c)
	refused(t, s.Other, stopped)
}

// Property: waiters are granted in the order in which they came, whoever asks first.
func order(t T, s Subject) {
	s.kept(t)
	name := newName()
	a := inOrder(exclusive(name, "a"))
	token := acquired(t, s.Backend, a).Token
	queue := make([]rebuild.LockClaim, 5)
	for i := range queue {
		queue[i] = inOrder(waiting(exclusive(name, "b")))
		refused(t, s.Other, queue[i])
	}
	for _, c := range queue {
		refused(t, s.Other, c) // asking again keeps the place
	}
	holder := a
	for i, next := range queue {
		released(t, s.Backend, holder, token)
		for _, behind := range queue[i+1:] {
			refused(t, s.Other, behind)
		}
		token = acquired(t, s.Other, next).Token
		holder = next
	}
}

// Property: an ordered claim without a place in the queue is granted only if nobody waits.
func tryPassesNobody(t T, s Subject) {
	s.kept(t)
	name := newName()
	a, b, try := inOrder(exclusive(name, "a")), inOrder(waiting(exclusive(name, "b"))), inOrder(exclusive(name, "c"))
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, b)
	refused(t, s.Other, try)
	released(t, s.Backend, a, g.Token)
	refused(t, s.Other, try)
	h := acquired(t, s.Other, b)
	released(t, s.Other, b, h.Token)
	acquired(t, s.Other, try) // it took no place that would be in its way
}

// Property: where order does not count, a free name is whoever's that asks; the waiter keeps its place.
func barging(t T, s Subject) {
	name := newName()
	a, b, newcomer := exclusive(name, "a"), waiting(exclusive(name, "b")), exclusive(name, "c")
	g := acquired(t, s.Backend, a)
	refused(t, s.Other, b)
	released(t, s.Backend, a, g.Token)
	h := acquired(t, s.Other, newcomer)
	refused(t, s.Other, b)
	released(t, s.Other, newcomer, h.Token)
	acquired(t, s.Other, b)
}

// Property: readers that keep coming do not keep a writer out.
func writerNotStarved(t T, s Subject) {
	s.kept(t)
	name := newName()
	reader, writer := shared(name, "a", 0), inOrder(waiting(exclusive(name, "b")))
	g := acquired(t, s.Backend, reader)
	refused(t, s.Other, writer)
	refused(t, s.Backend, shared(name, "a", 0))
	refused(t, s.Backend, waiting(shared(name, "a", 0)))
	released(t, s.Backend, reader, g.Token)
	acquired(t, s.Other, writer)
}

// Property: one call of a process keeps the places of its others alive, and says which are gone.
func also(t T, s Subject) {
	s.kept(t)
	name := newName()
	a, c := inOrder(exclusive(name, "a")), inOrder(waiting(exclusive(name, "p")))
	g := acquired(t, s.Backend, a)
	b, never := inOrder(exclusive(name, "p")), exclusive(name, "p").Owner
	b.Entry = s.Lease
	s.await(t, "a place is refreshed before it ends", func() bool {
		refused(t, s.Other, b)
		c := c
		c.Also = []string{b.Owner, never}
		gone := refused(t, s.Other, c).Gone
		require.Contains(t, gone, never, "the owner that has no place")
		return len(gone) == 1
	})
	// The entry would be over by now if it had not been refreshed.
	marker := exclusive(newName(), "m")
	marker.Lease = s.Lease
	acquired(t, s.Backend, marker)
	s.granted(t, s.Other, exclusive(marker.Name, "n"))
	released(t, s.Backend, a, g.Token)
	refused(t, s.Other, c)
	b.Entry = long
	acquired(t, s.Other, b)
}
