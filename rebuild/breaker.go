package rebuild

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/internal/breaker"
)

// Defaults of BreakerOptions, and how many loads a half-open breaker lets in: from the research behind the design; not
// tuned on a fleet. The longest open time is shorter than there (30 s): it is how long callers may still get errors once the source is well.
const (
	defaultFailureRate = 0.5
	defaultMinLoads    = 20
	defaultWindow      = 10 * time.Second
	defaultOpenFor     = time.Second
	defaultMaxOpenFor  = 5 * time.Second

	halfOpenLoads = 3
)

// ErrBreakerOpen says that most of the last loads failed, so that the source is left alone for a while: it was not called. It comes with
// the last load's error.
var ErrBreakerOpen = errors.New("tiercache: breaker open")

// BreakerOptions say when the source is left alone and for how long. Zero means the default; negative is an error but for FailureRate.
type BreakerOptions struct {
	FailureRate float64       // 0.5; the breaker opens when this fraction of the loads failed, (0,1]; negative: there is no breaker
	MinLoads    int           // 20; of at least so many
	Window      time.Duration // 10 s; that ended within this time
	OpenFor     time.Duration // 1 s, ±20 % at random; doubled each time that it opens again at once, or within MaxOpenFor after it closed
	MaxOpenFor  time.Duration // 5 s, or OpenFor if that is longer
}

// check sets the defaults and reports every mistake.
func (o *BreakerOptions) check() error {
	var errs []error
	if math.IsNaN(o.FailureRate) || o.FailureRate > 1 {
		errs = append(errs, fmt.Errorf("rebuild: BreakerOptions.FailureRate is %v, it must be at most 1", o.FailureRate))
	}
	if o.FailureRate == 0 {
		o.FailureRate = defaultFailureRate
	}
	if o.MinLoads < 0 {
		errs = append(errs, fmt.Errorf("rebuild: BreakerOptions.MinLoads is negative: %d", o.MinLoads))
	}
	if o.MinLoads == 0 {
		o.MinLoads = defaultMinLoads
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"Window", &o.Window, defaultWindow},
		{"OpenFor", &o.OpenFor, defaultOpenFor},
		{"MaxOpenFor", &o.MaxOpenFor, max(defaultMaxOpenFor, o.OpenFor)},
	} {
		if *d.value < 0 {
			errs = append(errs, fmt.Errorf("rebuild: BreakerOptions.%s is negative: %v", d.name, *d.value))
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if o.MaxOpenFor >= 0 && o.MaxOpenFor < o.OpenFor {
		errs = append(errs, fmt.Errorf("rebuild: BreakerOptions.MaxOpenFor is %v, shorter than OpenFor %v", o.MaxOpenFor, o.OpenFor))
	}
	return errors.Join(errs...)
}

// Breaker leaves the source alone when most loads fail: for the open time every load is refused with ErrBreakerOpen; then three at a time
// are let through, and three successes in a row close it again. Loads uses it; all methods may be called concurrently.
type Breaker struct {
	core   *breaker.Breaker // nil: never opens
	fails  func(error) bool
	last   atomic.Pointer[error] // of the failures; written before the failure is counted
	refuse atomic.Uint64
}

// NewBreaker returns a closed breaker. All mistakes of o come in one error.
//
// fails says whether a load's error means that the source fails. Other errors count as its answers (a row that is not there, say), but for
// a panic, a Goexit, the end of a context that is no time-out, and a gate or breaker behind the loader: these say nothing of the source. changed is told each new state ("closed",
// "half-open", "open"), in order, on the goroutine of a load, which it holds up; nil: nobody is told.
func NewBreaker(o BreakerOptions, fails func(error) bool, changed func(state string)) (*Breaker, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	b := &Breaker{fails: fails}
	if o.FailureRate < 0 {
		return b, nil
	}
	core := breaker.Options{
		Rate: o.FailureRate, Calls: o.MinLoads, Window: o.Window,
		OpenFor: o.OpenFor, MaxOpenFor: o.MaxOpenFor, Probes: halfOpenLoads,
	}
	if changed != nil {
		core.Changed = func(s breaker.State) { changed(s.String()) }
	}
	b.core = breaker.New(core)
	return b, nil
}

// State returns 0 for closed, 1 for half-open, 2 for open. An open breaker whose time is over stays open until the next load asks.
func (b *Breaker) State() uint64 {
	if b.core == nil {
		return 0
	}
	return uint64(b.core.State())
}

// Trips returns how often it opened, half-open or closed before.
func (b *Breaker) Trips() uint64 {
	if b.core == nil {
		return 0
	}
	return b.core.Trips()
}

// Refused returns how many loads it refused.
func (b *Breaker) Refused() uint64 { return b.refuse.Load() }

// check returns ErrBreakerOpen with the last failure if every load is refused now: who asks need not queue at the gate.
func (b *Breaker) check() error {
	if b == nil || b.core == nil || !b.core.Refuses() {
		return nil
	}
	return b.refusal()
}

// begin lets a load in, which must end, or returns ErrBreakerOpen with the last failure.
func (b *Breaker) begin() (breaker.Call, error) {
	if b == nil || b.core == nil {
		return breaker.Call{}, nil
	}
	c, ok := b.core.Begin()
	if !ok {
		return c, b.refusal()
	}
	return c, nil
}

func (b *Breaker) refusal() error {
	b.refuse.Add(1)
	if last := b.last.Load(); last != nil {
		return fmt.Errorf("%w: %w", ErrBreakerOpen, *last)
	}
	return ErrBreakerOpen
}

// end counts how a load ended.
func (b *Breaker) end(c breaker.Call, err error) {
	if b == nil || b.core == nil {
		return
	}
	o := b.outcome(err)
	if o == breaker.Failure {
		b.last.Store(&err)
	}
	b.core.End(c, o)
}

// outcome is what a load's end says of the source. A load that was cut off by Close, or whose loader gave up for a reason of its own, says
// nothing; a time-out does, though a loader may call it a cancellation as well.
func (b *Breaker) outcome(err error) breaker.Outcome {
	var panicked *PanicError
	switch {
	case err == nil:
		return breaker.Success
	case errors.As(err, &panicked), errors.Is(err, ErrGoexit), errors.Is(err, ErrClosed),
		errors.Is(err, ErrOverloaded), errors.Is(err, ErrBreakerOpen): // the last two of another cache behind the loader
		return breaker.Neither
	case errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return breaker.Neither
	case b.fails(err):
		return breaker.Failure
	}
	return breaker.Success
}
