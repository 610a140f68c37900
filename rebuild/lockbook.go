package rebuild

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"
)

const (
	// minLeaseTime is the shortest lease: a shorter one would be lost by an ordinary pause of the process or the network. Chosen; not
	// tuned.
	minLeaseTime     = 100 * time.Millisecond
	defaultLeaseTime = 10 * time.Second
	// longestCall bounds one call but a renewal, so that the places in the queue that are kept alive by one do not run out while another
	// hangs. Chosen; not tuned.
	longestCall = time.Second
	// closeTime is how long Close waits for its releases to be answered. Chosen; not tuned.
	closeTime = time.Second
)

// The kinds of owners.
const (
	exclusive = "x"
	shared    = "s"
)

// lockbook is the book that a lock object keeps of its part of a Backend: what this process holds, and who waits. Mutex, RWMutex and
// Semaphore are a lockbook each.
//
// Its lock, mu, is never held during a call of the Backend. Lock order: mu, then that of orphans, then that of a roster. The lock of a
// fleet stands alone.
type lockbook struct {
	backend   Backend
	process   string
	lease     time.Duration
	ordered   bool // nobody is passed, so every caller has a place in the backend's queue
	reentrant bool
	sharing   bool   // of an RWMutex: a write lease may become a read lease
	fleet     *fleet // told how many processes use a name; nil: nobody asks

	work     *roster       // callers, the watchdog, the watch: Close ends them first
	releases *roster       // releases under way: Close gives them closeTime
	over     chan struct{} // closed when Close has ended, and closeErr stands
	closeErr error
	orphans  *orphans
	rouse    chan struct{} // room for one: the watchdog renews now

	mu       sync.Mutex
	closed   bool
	floor    uint64
	held     map[*holding]struct{}
	leaving  map[*holding]struct{}  // not held any more, and their release is not answered
	guarded  bool                   // the watchdog runs
	queues   map[string]*lockqueue  // by name; none is empty
	waiters  map[string]*lockwaiter // by owner: all that are in queues
	watching bool                   // the watch runs
	sound    bool                   // the subscription is confirmed and stands
	settled  chan struct{}          // closed once the watch was confirmed or failed for the first time
	once     bool                   // settled is closed
}

// newLockbook checks what all lock objects have in common. A lease of zero is the default.
func newLockbook(b Backend, lease time.Duration, ordered, reentrant bool) (*lockbook, error) {
	var errs []error
	if v := reflect.ValueOf(b); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		errs = append(errs, errors.New("rebuild: nil Backend"))
	}
	if lease == 0 {
		lease = defaultLeaseTime
	}
	if lease < minLeaseTime {
		errs = append(errs, fmt.Errorf("rebuild: LeaseTime is %v, at least %v", lease, minLeaseTime))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	book := &lockbook{
		backend: b, process: hexadecimal(8), lease: lease, ordered: ordered, reentrant: reentrant,
		work: newRoster(), releases: newRoster(), over: make(chan struct{}), rouse: make(chan struct{}, 1),
		held: map[*holding]struct{}{}, leaving: map[*holding]struct{}{},
		queues: map[string]*lockqueue{}, waiters: map[string]*lockwaiter{}, settled: make(chan struct{}),
	}
	book.orphans = newOrphans(book)
	return book, nil
}

// hexadecimal returns n random bytes as text.
func hexadecimal(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, as its documentation says
	return hex.EncodeToString(b)
}

// want is what a caller wants of a name.
type want struct {
	name    string
	kind    string // exclusive or shared
	limit   int    // of shared holders; 0: none
	try     bool   // do not wait
	once    bool   // return the first transient error instead of asking again
	counted bool   // a permit: asked under another one it is a second one
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("rebuild: a lock needs a name")
	case len(name) > maxNameBytes:
		return fmt.Errorf("rebuild: a lock's name of %d bytes, at most %d", len(name), maxNameBytes)
	}
	return nil
}

// claim returns a new claim. Its owner is nobody's but this call's.
func (b *lockbook) claim(w want) LockClaim {
	return LockClaim{
		Name: w.name, Owner: w.kind + "." + b.process + "." + hexadecimal(8), Limit: w.limit, Lease: b.lease, Ordered: b.ordered,
	}
}

// lock returns a lease for what w wants.
func (b *lockbook) lock(ctx context.Context, w want) (*Lease, error) {
	if err := checkName(w.name); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ended(ctx)
	}
	waiting, leave, err := b.work.join(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if lease, here, err := b.nest(ctx, w); here {
		return lease, err
	}
	waiter := &lockwaiter{claim: b.claim(w), kick: make(chan struct{}, 1)}
	var g LockGrant
	var sent moment
	if w.try {
		g, sent, err = b.ask(waiting, waiter)
	} else {
		b.enter(waiter)
		defer b.quit(waiter)
		g, sent, err = b.obtain(waiting, waiter, w.once)
	}
	if err != nil {
		b.abandon(waiter)
		return nil, b.reason(waiting, waiter, err)
	}
	return b.hold(ctx, waiter, g, sent)
}

// reason is what a caller is told whose waiter got err: at the end of its context that end, and the last failure with it, if there was one.
func (b *lockbook) reason(ctx context.Context, w *lockwaiter, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if errors.Is(context.Cause(ctx), ErrClosed) {
		return ErrClosed
	}
	if w.failure != nil {
		return errors.Join(ended(ctx), w.failure)
	}
	return ended(ctx)
}

// callTime is how long one call but a renewal may take.
func callTime(lease time.Duration) time.Duration { return min(lease/2, longestCall) }

// burnTime is how long an owner with an unanswered request is refused.
func (b *lockbook) burnTime() time.Duration { return max(leastBurn, 2*b.lease) }

// margin is taken off every deadline, for clocks that run at slightly different speeds and for a context's way to those who watch it.
func (b *lockbook) margin() time.Duration { return max(b.lease/50, 10*time.Millisecond) }

// noteLocked keeps the newest token or server time of an answer.
func (b *lockbook) noteLocked(g LockGrant) { b.floor = max(b.floor, g.Floor, g.Token) }

// repeatable reports whether a call that failed so may have been carried out, and may succeed if it is repeated; ctx is the caller's, under
// which the call had less time.
func repeatable(ctx context.Context, err error) bool {
	return errors.Is(err, ErrUnavailable) || ctx.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
}

// ours is the error of a call that was made under limited, a shorter time within ctx. Where only that time was over, the error says so: it must
// not match the end of a context, or the caller takes it for that of its own, which has not ended.
func ours(ctx, limited context.Context, err error) error {
	if ctx.Err() == nil && limited.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return fmt.Errorf("%w: no answer in time", ErrUnavailable)
	}
	return err
}

// close ends those who wait with ErrClosed, releases what is held, and returns when everything has ended: releases that
// have no answer after closeTime are given up, and what they were to release ends by itself. A second close waits for the first one, since it
// would cut off the releases of that, and says the same.
func (b *lockbook) close() error {
	b.mu.Lock()
	second := b.closed
	b.closed = true
	b.mu.Unlock()
	if second {
		<-b.over
		return b.closeErr
	}
	defer close(b.over)
	b.closeErr = b.end()
	return b.closeErr
}

// end is what close does.
func (b *lockbook) end() error {
	limited, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	over, now := context.WithCancel(limited)
	now()
	b.work.close(over) // does not wait yet
	n, why := b.surrender(limited)
	b.work.close(limited)
	b.orphans.drain(limited)
	cancel()
	b.releases.close(context.Background())
	b.work.close(context.Background())
	if n > 0 {
		return fmt.Errorf("rebuild: %d locks were not released, their leases end by themselves: %w: %w", n, ErrUnavailable, why)
	}
	return nil
}

// surrender releases everything that is held, and waits for that and for the releases that Unlock began, at most until ctx ends. It returns
// how many were not released, and why one of them was not.
func (b *lockbook) surrender(ctx context.Context) (n int, why error) {
	b.mu.Lock()
	all := make([]*holding, 0, len(b.held))
	for h := range b.held {
		all = append(all, h)
	}
	for _, h := range all {
		h.endLocked(ErrClosed)
		b.releaseLocked(h)
	}
	all = slices.AppendSeq(all[:0], maps.Keys(b.leaving))
	b.mu.Unlock()
	for _, h := range all {
		select {
		case <-h.released:
		case <-ctx.Done():
		}
		if err := h.remains(); err != nil {
			n, why = n+1, err
		}
	}
	return n, why
}

// remains returns why h, whose release was sent, may stand in the backend still; nil: it does not.
func (h *holding) remains() error {
	select {
	case <-h.released:
	default:
		return errNoAnswer
	}
	if errors.Is(h.answer, ErrLeaseLost) || errors.Is(h.answer, errUnclear) {
		return nil
	}
	return h.answer // refused, or given up because the lease is over by now
}

// lockqueue are the callers of this process who wait for one name, in the order in which they came.
type lockqueue struct {
	waiters   list.List // of *lockwaiter
	refreshAt time.Time // when the front keeps the places alive next
}
