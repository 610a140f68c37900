package rebuild

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// awayTime is how long a backend that did not answer is not asked; then one caller tries. Chosen; not tuned.
	awayTime = time.Second
	// fleetNames is how many names a fleet knows while nobody uses them. Chosen; not tuned.
	fleetNames = 1024
)

// errAway ends the calls of those who ask while another one finds that the backend does not answer.
var errAway = errors.New("rebuild: the lock's backend does not answer")

// fleet is what a Semaphore knows, for Enter, of the loads of this process and of how many processes there are. Its lock is a leaf.
type fleet struct {
	limit     int
	processes int // assumed where nobody counted

	mu    sync.Mutex
	names map[string]*fleetName
}

// fleetName is one name of a fleet; guarded by its mu.
type fleetName struct {
	limit     int
	processes int       // by the last answer; 0: none said
	running   int       // loads of this process, with a permit or without
	users     int       // callers of Enter who have not left; such a name is not forgotten
	away      time.Time // the backend did not answer, and is not asked before; zero: it answers
	probing   bool      // one caller tries whether it does
	changed   chan struct{}
	asking    map[int]context.CancelCauseFunc
	asks      int
}

func newFleet(limit, processes int) *fleet {
	return &fleet{limit: limit, processes: processes, names: map[string]*fleetName{}}
}

// nameLocked returns what is known of name, which may be nothing yet.
func (f *fleet) nameLocked(name string) *fleetName {
	n := f.names[name]
	if n != nil {
		return n
	}
	if len(f.names) >= fleetNames {
		for other, idle := range f.names {
			if idle.users == 0 {
				delete(f.names, other) // whichever: what is lost is a count, and another answer brings it back
				break
			}
		}
	}
	n = &fleetName{limit: f.limit, changed: make(chan struct{}), asking: map[int]context.CancelCauseFunc{}}
	f.names[name] = n
	return n
}

// counted notes how many processes use name.
func (f *fleet) counted(name string, processes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nameLocked(name).processes = processes
}

func (f *fleet) resized(name string, limit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nameLocked(name)
	n.limit = limit
	if limit == 0 {
		n.limit = f.limit
	}
	n.changeLocked()
}

// changeLocked makes those who wait here look again.
func (n *fleetName) changeLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// step is what a caller of Enter does next.
type step uint8

const (
	stepAsk   step = iota // for a permit
	stepProbe             // for one, without waiting: the backend did not answer a while ago
	stepGo                // without a permit: it has its part of this process's share
	stepWait              // until something changes
)

// next decides what a caller does. With stepGo its load counts as running.
func (f *fleet) next(name string) (s step, changed <-chan struct{}, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nameLocked(name)
	left := time.Until(n.away)
	switch {
	case n.away.IsZero():
		return stepAsk, nil, 0
	case left <= 0 && !n.probing:
		n.probing = true
		return stepProbe, nil, 0
	case n.running < f.shareLocked(n):
		n.running++
		return stepGo, nil, 0
	}
	if left <= 0 { // somebody is trying, and changes something
		left = awayTime
	}
	return stepWait, n.changed, left
}

// shareLocked is how many loads this process may run while nobody counts for all.
func (f *fleet) shareLocked(n *fleetName) int {
	processes := n.processes
	if processes == 0 {
		processes = f.processes
	}
	return max(1, n.limit/processes)
}

// began notes that a caller asks, which cancel ends if the backend turns out to be away.
func (f *fleet) began(name string, cancel context.CancelCauseFunc) (id int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nameLocked(name)
	n.asks++
	n.asking[n.asks] = cancel
	return n.asks
}

// asked notes what came of an ask, if anything did. probe says that it was the one who tried. A granted load counts as running.
func (f *fleet) asked(name string, id int, came outcome, probe bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nameLocked(name)
	delete(n.asking, id)
	if probe {
		n.probing = false
	}
	switch {
	case came == outcomeAway:
		n.away = time.Now().Add(awayTime)
		for _, cancel := range n.asking {
			cancel(errAway)
		}
	case probe && came != outcomeUnknown:
		n.away = time.Time{}
	}
	if probe {
		n.changeLocked() // the others ask too, or the next one tries
	}
	if came == outcomeGranted {
		n.running++
	}
}

// users counts the callers of Enter.
func (f *fleet) users(name string, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nameLocked(name).users += by
}

// ended notes that a load is over.
func (f *fleet) ended(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nameLocked(name)
	n.running--
	n.users--
	n.changeLocked()
}

// Enter lets a load of name begin, and returns how to say that it is over, which MUST be called and may be called twice. It is a gate for
// the loads of all processes: it blocks until there is a permit, which is renewed until leave, or until ctx ends. Errors are those of
// Acquire.
//
// While the backend is away loads go on without permits: at most limit divided by the processes, but at least one, in each process, with
// those counted that run already; the processes are as many as the backend counted last, or else SemaphoreOptions.Processes. Whoever finds
// that share used waits for a load of this process to end. So there are at most limit loads at once in all processes, or one in each if
// that is more; for as long as a load takes, when the backend goes away or comes back, twice as many. An absent backend costs one caller a
// call's time-out a second.
//
// One round trip, and one more behind leave, which does not wait for it. A load that enters again, for another one inside it, takes a
// second permit: give it another name, or it may wait for itself.
func (s *Semaphore) Enter(ctx context.Context, name string) (leave func(), err error) {
	if ctx.Err() != nil {
		return nil, ended(ctx)
	}
	waiting, left, err := s.book.work.join(ctx)
	if err != nil {
		return nil, err
	}
	defer left()
	s.fleet.users(name, 1)
	lease, err := s.enter(ctx, waiting, name)
	if err != nil {
		s.fleet.users(name, -1)
		if errors.Is(context.Cause(waiting), ErrClosed) {
			err = ErrClosed
		}
		return nil, err
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			if lease != nil {
				_, _ = s.book.unlock(lease) // goes on in the background
			}
			s.fleet.ended(name)
		})
	}, nil
}

// enter waits until a load may begin. The lease is nil if it is to run without a permit. ctx is the caller's, waiting ends with it and at
// Close.
func (s *Semaphore) enter(ctx, waiting context.Context, name string) (*Lease, error) {
	for {
		step, changed, wait := s.fleet.next(name)
		switch step {
		case stepGo:
			return nil, nil
		case stepWait:
			timer := time.NewTimer(wait)
			select {
			case <-changed:
			case <-timer.C:
			case <-waiting.Done():
			}
			timer.Stop()
			if waiting.Err() != nil {
				return nil, ended(waiting)
			}
		default:
			if lease, again, err := s.askFor(ctx, name, step == stepProbe); !again {
				return lease, err
			}
		}
	}
}

// askFor asks for a permit. again says that something else is to be done now: the backend is away, or it has answered a probe with "wait".
func (s *Semaphore) askFor(ctx context.Context, name string, probe bool) (lease *Lease, again bool, err error) {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	id := s.fleet.began(name, cancel)
	w := s.want(name)
	w.once, w.try = true, probe
	lease, err = s.book.lock(asking, w)
	came := outcomeOf(ctx, err)
	s.fleet.asked(name, id, came, probe)
	if came == outcomeAway || came == outcomeRefused && probe {
		return nil, true, nil
	}
	// The caller's context may have ended after the call had failed for another reason: its end is what the caller is told.
	if came == outcomeUnknown && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		err = errors.Join(ended(ctx), err)
	}
	return lease, false, err
}

// outcome is what an ask for a permit says of the backend.
type outcome uint8

const (
	outcomeUnknown outcome = iota // nothing: its caller left, or it failed in another way
	outcomeGranted
	outcomeRefused
	outcomeAway // it did not answer
)

func outcomeOf(ctx context.Context, err error) outcome {
	switch {
	case err == nil:
		return outcomeGranted
	case errors.Is(err, ErrLocked):
		return outcomeRefused
	case ctx.Err() == nil && repeatable(ctx, err):
		return outcomeAway
	}
	return outcomeUnknown
}
