package rebuild

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"github.com/tiercache/tiercache/internal/broken"
)

// flightStripes is how many locks the keys of a Flight share: chosen; not tuned.
const flightStripes = 64

// Flight lets the callers of one key in this process share one call. The call does not die with the caller who started it: its
// context keeps that caller's values but not its end. Each waiter leaves at the end of its own context. A panic or runtime.Goexit in
// the call is an error for all who wait, and for nobody else.
//
// A call is joined only while it runs and was not forgotten: Forget and ForgetAll let later callers start anew, while the waiters of
// the older call still get its answer. All methods may be called concurrently; none but Do, Join, Wait and Close blocks.
//
// Inside, a singleflight.Group a stripe coalesces the callers and delivers the result. It alone would not do: what runs in a
// Group's DoChan kills the process by a panic and never answers after a Goexit, so the work runs on a goroutine of its own and the
// Group only waits for it; and a Group does not say whether a key is running, so a table stands beside it, changed under one lock.
type Flight[R any] struct {
	seed    maphash.Seed
	busy    atomic.Int32 // the sum of the stripes' busy: while nothing runs, nobody needs to hash a key to know
	stripes [flightStripes]flightStripe[R]
	work    *roster
}

// flightStripe has the calls of the keys that hash to it. Lock order: mu, then the group's own lock or the roster's.
type flightStripe[R any] struct {
	busy  atomic.Int32  // len(running), for Join's look without the lock
	all   *atomic.Int32 // the Flight's busy
	group singleflight.Group

	mu      sync.Mutex
	running map[string]*call[R] // what may be joined. Under mu: key is in running if and only if it is in group
}

// call is one run for one key, shared by all its callers.
type call[R any] struct {
	stripe *flightStripe[R]
	key    string
	behind bool // begun by Start or LeadBehind: nobody has to wait for it
	leave  func()
	once   sync.Once
	done   chan struct{}

	// Written once before done is closed, read only after it.
	r   R
	err error
}

// NewFlight returns a Flight with nothing under way.
func NewFlight[R any]() *Flight[R] {
	f := &Flight[R]{seed: maphash.MakeSeed(), work: newRoster()}
	for i := range f.stripes {
		f.stripes[i].running = map[string]*call[R]{}
		f.stripes[i].all = &f.busy
	}
	return f
}

// Do returns the result of the call of key that is under way (joined is true), or starts fn on a goroutine of its own and returns
// its result. It blocks until the result is there or ctx ends; then err matches ctx.Err() and its cause, while the call goes on.
// The context given to fn has the values of ctx and ends when fn has returned, or at Close with the cause ErrClosed.
// If fn panics, err is a *PanicError; after a Goexit it is ErrGoexit; after Close it is ErrClosed.
func (f *Flight[R]) Do(ctx context.Context, key string, fn func(context.Context) (R, error)) (r R, joined bool, err error) {
	if ctx.Err() != nil {
		return r, false, ended(ctx)
	}
	c, led, err := f.enter(ctx, key, false, fn)
	if err != nil {
		return r, false, err
	}
	r, err = c.Wait(ctx)
	return r, !led, err
}

// Start starts fn in the background, as Do would, and reports whether it did: false if a call of key is under way already, and after
// Close. The result goes to those who join meanwhile. Only the values of ctx count: it may have ended.
func (f *Flight[R]) Start(ctx context.Context, key string, fn func(context.Context) (R, error)) bool {
	s := f.stripe(key)
	if s.busy.Load() > 0 && s.runs(key) {
		return false
	}
	_, led, err := f.enter(ctx, key, true, fn)
	return led && err == nil
}

// Join waits as Do does, but only for a call that is under way and not behind, as Start's and LeadBehind's are: where there is none, ok is false at once, without a lock as long as
// none of the keys on the same stripe has one. It joins nothing after Close.
func (f *Flight[R]) Join(ctx context.Context, key string) (r R, ok bool, err error) {
	c, ok := f.Running(key)
	if !ok {
		return r, false, nil
	}
	r, err = c.Wait(ctx)
	return r, true, err
}

// Running returns the call of key that is under way, for the caller to wait for; false if there is none that callers wait for, and after
// Close. One that Start or LeadBehind began does not count: who asks may have something to answer meanwhile.
func (f *Flight[R]) Running(key string) (*Call[R], bool) {
	if f.busy.Load() == 0 || f.work.closed.Load() {
		return nil, false
	}
	s := f.stripe(key)
	if s.busy.Load() == 0 {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	shared := s.running[key]
	if shared == nil || shared.behind {
		return nil, false
	}
	return s.hold(shared, false), true
}

// Lead makes the caller the leader of a new call of key (led is true), or gives it the call that is under way. A batch leads each of
// its keys that nobody else rebuilds. A leader MUST Finish every call that it leads, on every way out, for others wait for it: Batch
// sees to that. After Close, led is false and the call's answer is ErrClosed.
func (f *Flight[R]) Lead(key string) (c *Call[R], led bool) { return f.lead(key, false) }

// LeadBehind is Lead of a call that nobody has to wait for, as Start's: Join and Running do not find it.
func (f *Flight[R]) LeadBehind(key string) (c *Call[R], led bool) { return f.lead(key, true) }

func (f *Flight[R]) lead(key string, behind bool) (c *Call[R], led bool) {
	c, led, err := f.enter(context.Background(), key, behind, nil)
	if err != nil {
		over := &call[R]{done: make(chan struct{}), err: err}
		close(over.done)
		return &Call[R]{call: over}, false
	}
	return c, led
}

// Batch runs fn in the background for calls that the caller leads. fn gets a context as Do's does and finishes the calls one by one;
// those that it has not finished when it ends get an error: the *PanicError or ErrGoexit that ended it, or ErrClosed after Close.
func (f *Flight[R]) Batch(ctx context.Context, calls []*Call[R], fn func(context.Context)) {
	finish := func(_ struct{}, err error) {
		if err == nil {
			err = errUnfinished
		}
		var none R
		for _, c := range calls {
			c.Finish(none, err)
		}
	}
	detached, leave, err := f.work.join(context.WithoutCancel(ctx))
	if err != nil {
		finish(struct{}{}, err)
		return
	}
	go protect(
		func() (struct{}, error) { fn(detached); return struct{}{}, nil },
		func(_ struct{}, err error) { finish(struct{}{}, err); leave() },
	)
}

// Forget lets later callers of key start anew. Those who wait for a call of key still get its answer.
func (f *Flight[R]) Forget(key string) {
	s := f.stripe(key)
	if s.busy.Load() == 0 || broken.Left(broken.Forget) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(key)
}

// ForgetAll is Forget for all keys.
func (f *Flight[R]) ForgetAll() {
	for i := range f.stripes {
		s := &f.stripes[i]
		s.mu.Lock()
		for key := range s.running {
			s.forgetLocked(key)
		}
		s.mu.Unlock()
	}
}

// Close ends the contexts of all calls with the cause ErrClosed, waits for the calls until ctx ends, and returns how many still
// run. It may be called again, to wait longer. Forgotten and led calls and batches count too.
func (f *Flight[R]) Close(ctx context.Context) (left int) { return f.work.close(ctx) }

func (f *Flight[R]) stripe(key string) *flightStripe[R] {
	return &f.stripes[maphash.String(f.seed, key)%flightStripes]
}

// enter joins the call of key that is under way, or makes one: led then, run by fn or, if fn is nil, finished by its leader.
func (f *Flight[R]) enter(ctx context.Context, key string, behind bool, fn func(context.Context) (R, error)) (c *Call[R], led bool, err error) {
	if f.work.closed.Load() {
		return nil, false, ErrClosed
	}
	s := f.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if shared := s.running[key]; shared != nil {
		return s.hold(shared, false), false, nil
	}
	detached, leave, err := f.work.join(context.WithoutCancel(ctx))
	if err != nil {
		return nil, false, err
	}
	shared := &call[R]{stripe: s, key: key, behind: behind, leave: leave, done: make(chan struct{})}
	s.running[key] = shared
	s.busy.Add(1)
	s.all.Add(1)
	if fn != nil {
		go protect(func() (R, error) { return fn(detached) }, shared.finish)
	}
	return s.hold(shared, true), true, nil
}

// hold gives one caller its place in shared's group call; the first one starts it. Caller holds mu, and shared is the one in running.
func (s *flightStripe[R]) hold(shared *call[R], led bool) *Call[R] {
	return &Call[R]{call: shared, led: led, result: s.group.DoChan(shared.key, shared.wait)}
}

func (s *flightStripe[R]) runs(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[key] != nil
}

// forgetLocked takes key out of the table and of the group, both under one lock: a caller that found it in the group only would lead
// a new call and be answered by the old one.
func (s *flightStripe[R]) forgetLocked(key string) {
	if s.running[key] == nil {
		return
	}
	delete(s.running, key)
	s.busy.Add(-1)
	s.all.Add(-1)
	s.group.Forget(key)
}

// wait is what the group runs for a call.
func (c *call[R]) wait() (any, error) {
	<-c.done
	return c, nil
}

// finish ends the call; the first result stands. The key is free before any waiter has its answer: who asks again starts anew.
// It is taken out of the group here and not left to the group, which does so only later:
//
//  1. A's call ends; the table is empty, the group's goroutine has not run yet.
//  2. B finds no call in the table and leads a new one.
//  3. B's DoChan joins A's old group call: B is answered with what A loaded, and B's own load is nobody's.
func (c *call[R]) finish(r R, err error) {
	c.once.Do(func() {
		c.r, c.err = r, err
		s := c.stripe
		s.mu.Lock()
		if s.running[c.key] == c { // else it was forgotten, and a newer one may stand there
			s.forgetLocked(c.key)
		}
		s.mu.Unlock()
		c.leave()
		close(c.done)
	})
}

// Call is one caller's hold on a call of Flight. It is that caller's own: Wait is not for concurrent use on one Call.
type Call[R any] struct {
	call   *call[R]
	led    bool
	result <-chan singleflight.Result // nil only if the call is done
}

// Finish gives the call's result to all who wait. The first result stands; a Call that is not led ignores it.
func (c *Call[R]) Finish(r R, err error) {
	if c.led {
		c.call.finish(r, err)
	}
}

// Run finishes the call with what fn returns. A panic of fn, or a Goexit, is the error of those who wait; after a Goexit it does not return.
func (c *Call[R]) Run(fn func() (R, error)) { protect(fn, c.Finish) }

// Wait blocks until the call has a result or ctx ends; then the error matches ctx.Err() and its cause. A result that is there is
// returned even if ctx has ended. It may be called again.
func (c *Call[R]) Wait(ctx context.Context) (R, error) {
	select {
	case <-c.call.done:
		return c.call.r, c.call.err
	default:
	}
	select {
	case res := <-c.result:
		shared, _ := res.Val.(*call[R])
		return shared.r, shared.err
	case <-ctx.Done():
	}
	select {
	case <-c.call.done:
		return c.call.r, c.call.err
	default:
		var none R
		return none, ended(ctx)
	}
}
