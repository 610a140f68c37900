// Package backendtest has the conformance tests of a rebuild.Backend: whoever writes one runs them against the real store.
//
//	func TestConformance(t *testing.T) {
//		backendtest.Run(t, func(t *testing.T) backendtest.Subject { return backendtest.Subject{Backend: open(t)} })
//	}
//
// The tests take real time, a few leases of Subject.Lease each, and none depends on how fast the machine is: what must not happen is
// looked for at moments that the store's own answers bound, what must happen is waited for.
package backendtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/rebuild"
)

// Subject is a backend under test, and what a test can do to the store behind it. A nil func says that it cannot be done: the tests that
// need it are skipped.
type Subject struct {
	// Backend is the one under test. Other is a second one on the same store, as another process would have it; nil: the same.
	Backend, Other rebuild.Backend
	// Lease is the shortest lease that the store keeps exactly; 0: 300 ms.
	Lease time.Duration
	// Patience is how long to wait for what must come before the test fails; 0: 20 s.
	Patience time.Duration
	// Unordered says that the store keeps no order of waiters, Silent that it wakes nobody: waiters poll.
	Unordered, Silent bool

	// Forget makes the store lose all its data, as a flush does.
	Forget func()
	// Pause makes the store answer nothing until resume is called.
	Pause func() (resume func())
	// Deafen cuts the connections on which watches hear.
	Deafen func()
	// Leftover returns what the store still has of a name and will not lose by itself; "": nothing.
	Leftover func(name string) string
}

// T is what a case uses of *testing.T.
type T interface {
	require.TestingT
	Helper()
	Context() context.Context
	Cleanup(f func())
	Skip(args ...any)
}

// Case is one property of a backend.
type Case struct {
	Name string
	run  func(t T, s Subject)
}

// Cases returns all properties.
func Cases() []Case {
	return append(append(grantCases(), waitCases()...), faultCases()...)
}

// Run runs every case as a subtest. open returns a new subject, which ends with the test it is given; the cases take names of their own, so the
// store may be shared, except by those who use its Forget, Pause or Deafen.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) { c.run(t, open(t).withDefaults()) })
	}
}

// Broken runs the case and returns what went wrong, "" if nothing did: with it, a test shows that the case notices a backend that is broken
// on purpose.
func (c Case) Broken(t *testing.T, s Subject) string {
	t.Helper()
	r := &recorder{T: t}
	done := make(chan struct{})
	go func() { // FailNow ends its goroutine
		defer close(done)
		c.run(r, s.withDefaults())
	}()
	<-done
	return strings.Join(r.wrong, "\n")
}

// recorder notes failures instead of failing.
type recorder struct {
	*testing.T
	mu    sync.Mutex
	wrong []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

func (r *recorder) FailNow() { runtime.Goexit() }

func (s Subject) withDefaults() Subject {
	if s.Other == nil {
		s.Other = s.Backend
	}
	if s.Lease == 0 {
		s.Lease = 300 * time.Millisecond
	}
	if s.Patience == 0 {
		s.Patience = 20 * time.Second
	}
	return s
}

// long is a lease, or an entry, that does not end while a test runs.
const long = 10 * time.Minute

// burn is how long an owner stays burned in these tests: longer than any lasts.
const burn = 10 * time.Minute

// hex16 returns 16 hexadecimal digits that nobody else has.
func hex16() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// exclusive and shared return claims of a new owner, with a lease that does not end.
func exclusive(name, process string) rebuild.LockClaim {
	return rebuild.LockClaim{Name: name, Owner: "x." + process + "." + hex16(), Lease: long}
}

func shared(name, process string, limit int) rebuild.LockClaim {
	return rebuild.LockClaim{Name: name, Owner: "s." + process + "." + hex16(), Lease: long, Limit: limit, Ordered: true}
}

// waiting is c as a claim that takes a place in the queue.
func waiting(c rebuild.LockClaim) rebuild.LockClaim {
	c.Entry = long
	return c
}

// inOrder is c as one that passes nobody.
func inOrder(c rebuild.LockClaim) rebuild.LockClaim {
	c.Ordered = true
	return c
}

// newName returns a name that no other case has.
func newName() string { return "backendtest-{:%} " + hex16() }

// acquired asks once and requires the grant.
func acquired(t T, b rebuild.Backend, c rebuild.LockClaim) rebuild.LockGrant {
	t.Helper()
	g, err := b.Acquire(t.Context(), c)
	require.NoError(t, err, "acquire of %+v", c)
	require.NotZero(t, g.Token, "the token of %+v", c)
	return g
}

// refused asks once and requires that it is held.
func refused(t T, b rebuild.Backend, c rebuild.LockClaim) rebuild.LockGrant {
	t.Helper()
	g, err := b.Acquire(t.Context(), c)
	require.ErrorIs(t, err, rebuild.ErrLocked, "acquire of %+v, which got %+v", c, g)
	require.Zero(t, g.Token, "the token of a refusal of %+v", c)
	return g
}

// granted asks until it is granted, and returns the grant and when it was answered.
func (s Subject) granted(t T, b rebuild.Backend, c rebuild.LockClaim) (g rebuild.LockGrant, answered time.Time) {
	t.Helper()
	s.await(t, fmt.Sprintf("%+v is granted", c), func() bool {
		var err error
		g, err = b.Acquire(t.Context(), c)
		answered = time.Now()
		require.True(t, err == nil || errors.Is(err, rebuild.ErrLocked), "acquire of %+v: %v", c, err)
		return err == nil
	})
	return g, answered
}

// await asks until ok says yes.
func (s Subject) await(t T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(s.Patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		require.True(t, time.Now().Before(end), "in %v it did not come that %s", s.Patience, what)
		<-tick.C
	}
}

// stands requires that the grant is still there.
func stands(t T, b rebuild.Backend, c rebuild.LockClaim, token uint64) {
	t.Helper()
	g, err := b.Renew(t.Context(), c, token)
	require.NoError(t, err, "renewal of %+v, token %d: somebody took it away", c, token)
	require.Equal(t, token, g.Token, "the token of a renewal")
}

// lost requires that the grant is over.
func lost(t T, b rebuild.Backend, c rebuild.LockClaim, token uint64) {
	t.Helper()
	g, err := b.Renew(t.Context(), c, token)
	require.ErrorIs(t, err, rebuild.ErrLeaseLost, "renewal of %+v, token %d, which got %+v", c, token, g)
}

// released gives a grant back and requires that it was there.
func released(t T, b rebuild.Backend, c rebuild.LockClaim, token uint64) {
	t.Helper()
	require.NoError(t, b.Release(t.Context(), c, token, 0), "release of %+v, token %d", c, token)
}

// left gives a place in the queue up.
func left(t T, b rebuild.Backend, c rebuild.LockClaim) {
	t.Helper()
	err := b.Release(t.Context(), c, 0, 0)
	require.True(t, err == nil || errors.Is(err, rebuild.ErrLeaseLost), "leaving of %+v: %v", c, err)
}

// watch listens for a process until the test ends; it returns once everything is heard.
func (s Subject) watch(t T, b rebuild.Backend, process string) *watcher {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	w := &watcher{s: s, over: make(chan struct{}), heard: make(chan string, 4096)}
	ready := make(chan struct{})
	go func() {
		defer close(w.over)
		w.err = b.Watch(ctx, process, func() { close(ready) }, func(name, owner string) { w.heard <- name + "\n" + owner })
	}()
	t.Cleanup(func() {
		stop()
		<-w.over
	})
	select {
	case <-ready:
	case <-w.over:
		require.NoError(t, w.err, "the watch ended before it was ready")
	case <-time.After(s.Patience):
		require.Fail(t, "the watch is not ready", "after %v", s.Patience)
	}
	return w
}

// watcher is one watch.
type watcher struct {
	s     Subject
	heard chan string // name, line break, owner
	over  chan struct{}
	err   error // once over
}

// wakes waits until c's owner is woken; others may be too.
func (w *watcher) wakes(t T, c rebuild.LockClaim) {
	t.Helper()
	end := time.After(w.s.Patience)
	var others []string
	for {
		select {
		case got := <-w.heard:
			if got == c.Name+"\n"+c.Owner {
				return
			}
			others = append(others, got)
		case <-w.over:
			require.Fail(t, "the watch ended", "%v, before %+v was woken; heard %q", w.err, c, others)
		case <-end:
			require.Fail(t, "nobody woke it", "%+v, in %v; heard %q", c, w.s.Patience, others)
		}
	}
}
