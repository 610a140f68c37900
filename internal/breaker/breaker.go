// Package breaker is what the breakers around Redis and around the source have in common: sony/gobreaker counts and decides, and this adds
// what it has not: an open time that grows and is jittered, a trip at once, and news of a change that is told outside of all locks.
package breaker

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// State is what a breaker lets through. The numbers are those of the statistics.
type State uint8

// The states.
const (
	Closed   State = iota // everything
	HalfOpen              // a few calls, to see
	Open                  // nothing
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half-open"
	case Open:
	}
	return "open"
}

// Outcome is what the end of a call says of the other side.
type Outcome uint8

// The outcomes.
const (
	Neither Outcome = iota // nothing
	Success
	Failure
)

const (
	buckets = 10  // parts of the window that are forgotten one after the other; chosen; not tuned
	jitter  = 0.2 // an open time is longer or shorter by up to this fraction, so that processes do not come back in step

	longest = 10 * 365 * 24 * time.Hour // no arithmetic on a duration overflows
)

var (
	errFailure = errors.New("breaker: failure")
	errNeither = errors.New("breaker: neither")
)

// Options say when a breaker trips and for how long. All are required but Changed.
type Options struct {
	Rate       float64       // trips when this fraction of the calls failed, (0,1],
	Calls      int           // of at least so many
	Window     time.Duration // that ended within this time
	OpenFor    time.Duration // the first open time; doubled by each trip that comes sooner than MaxOpenFor after the last close
	MaxOpenFor time.Duration // the longest
	Probes     int           // let in at once while half-open; so many successes in a row close it

	// Changed is told each change, in order, one at a time, on the goroutine of a call that begins or ends, which it holds up.
	Changed func(State)
}

// Breaker watches calls of one other side. All methods may be called concurrently; none blocks, but for the one that tells Changed.
//
// State: closed until enough calls failed (or Trip); open for the open time; then half-open: Probes calls are let in, and their successes
// close it, a failure opens it again. A call that began under an earlier state says nothing of the present one: its end is not counted. A
// closed breaker counts a call by the moment of its end, so that one longer than the window counts too.
//
// Locks: mu, then the library's own, under which the library calls decide and moved. Changed runs under neither.
type Breaker struct {
	o    Options
	word atomic.Uint64 // the state in the lower two bits, above them how often it changed; written under mu

	trips atomic.Uint64
	fresh atomic.Bool // there is news

	mu       sync.Mutex
	lib      *gobreaker.TwoStepCircuitBreaker[struct{}]
	sure     bool          // the failure that is being counted trips by itself
	openFor  time.Duration // the last open time, before jitter
	until    time.Time     // nothing is let in before
	closedAt time.Time     // the last close; zero: never opened
	news     []State       // not told yet
	telling  bool
}

// New returns a closed breaker.
func New(o Options) *Breaker {
	o.Window, o.OpenFor, o.MaxOpenFor = min(o.Window, longest), min(o.OpenFor, longest), min(o.MaxOpenFor, longest)
	b := &Breaker{o: o}
	b.lib = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:   uint32(min(max(o.Probes, 1), 1<<20)), //nolint:gosec // bounded
		Interval:      o.Window,
		BucketPeriod:  max(o.Window/buckets, 1),
		Timeout:       1, // the library knows one open time; ours is over before it is asked
		ReadyToTrip:   b.decide,
		OnStateChange: b.moved,
		IsSuccessful:  func(err error) bool { return err == nil },
		IsExcluded:    func(err error) bool { return errors.Is(err, errNeither) },
	})
	return b
}

// Call is one call that was let in.
type Call struct {
	word uint64
	done func(error) // nil: let in by a closed breaker
}

// State returns the present state. An open breaker whose time is over stays open until a call asks.
func (b *Breaker) State() State { return State(b.word.Load() & 3) }

// Trips returns how often it opened.
func (b *Breaker) Trips() uint64 { return b.trips.Load() }

// Begin lets a call in, which must End, or refuses it. While the breaker is closed it is one atomic load.
func (b *Breaker) Begin() (c Call, ok bool) {
	if w := b.word.Load(); State(w&3) == Closed {
		return Call{word: w}, true
	}
	defer b.tell()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.State() == Closed:
	case b.refusesLocked():
		return Call{}, false
	default:
		done, err := b.lib.Allow()
		if err != nil {
			return Call{}, false
		}
		c.done = done
	}
	c.word = b.word.Load()
	return c, true
}

// Refuses reports whether Begin would refuse because the open time is not over. It changes nothing.
func (b *Breaker) Refuses() bool {
	if b.State() != Open {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusesLocked()
}

func (b *Breaker) refusesLocked() bool { return b.State() == Open && time.Now().Before(b.until) }

// End counts what came of a call. It is called once for each call that was let in.
func (b *Breaker) End(c Call, o Outcome) {
	if c.done == nil && o == Neither {
		return
	}
	defer b.tell()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endLocked(c, o)
}

func (b *Breaker) endLocked(c Call, o Outcome) {
	if c.word != b.word.Load() {
		return
	}
	if c.done == nil { // only now, so that it is counted by its end
		done, err := b.lib.Allow()
		if err != nil {
			return
		}
		c.done = done
	}
	switch o {
	case Success:
		c.done(nil)
	case Failure:
		c.done(errFailure)
	case Neither:
		c.done(errNeither)
	}
}

// Record is a call that begins and ends at once, if it is let in.
func (b *Breaker) Record(o Outcome) {
	if c, ok := b.Begin(); ok {
		b.End(c, o)
	}
}

// Trip opens a closed breaker at once: there is no doubt. Any other stays as it is.
func (b *Breaker) Trip() {
	defer b.tell()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.State() != Closed {
		return
	}
	b.sure = true
	b.endLocked(Call{word: b.word.Load()}, Failure)
	b.sure = false
}

// decide is asked by the library at each failure of a closed breaker. It runs under mu.
func (b *Breaker) decide(n gobreaker.Counts) bool {
	ended := float64(n.TotalSuccesses) + float64(n.TotalFailures)
	return b.sure || ended >= float64(b.o.Calls) && float64(n.TotalFailures) >= b.o.Rate*ended
}

// moved is called by the library at each change of its state. It runs under mu.
func (b *Breaker) moved(_ string, from, to gobreaker.State) {
	state := HalfOpen
	now := time.Now()
	switch to {
	case gobreaker.StateClosed:
		state, b.closedAt = Closed, now
	case gobreaker.StateOpen:
		state = Open
		again := from == gobreaker.StateHalfOpen || !b.closedAt.IsZero() && now.Sub(b.closedAt) < b.o.MaxOpenFor
		if again {
			b.openFor = min(2*b.openFor, b.o.MaxOpenFor)
		} else {
			b.openFor = b.o.OpenFor
		}
		b.until = now.Add(time.Duration(float64(b.openFor) * (1 - jitter + 2*jitter*rand.Float64()))) //nolint:gosec // nothing secret
		b.trips.Add(1)
	case gobreaker.StateHalfOpen:
	}
	b.word.Store((b.word.Load()>>2+1)<<2 | uint64(state))
	if b.o.Changed != nil {
		b.news = append(b.news, state)
		b.fresh.Store(true)
	}
}

// tell tells what is new, in order, outside of mu. Whoever is telling already tells what comes meanwhile: nobody else is held up.
func (b *Breaker) tell() {
	if !b.fresh.Load() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.telling {
		return
	}
	b.telling = true
	defer func() { b.telling = false }() // also by a panic of Changed
	for len(b.news) > 0 {
		b.fresh.Store(false)
		news := b.news
		b.news = nil
		b.each(news)
	}
}

// each tells some news with mu released.
func (b *Breaker) each(news []State) {
	b.mu.Unlock()
	defer b.mu.Lock()
	for _, s := range news {
		b.o.Changed(s)
	}
}
