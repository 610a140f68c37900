package faulty

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"
)

// Faults strikes calls by its rules. Its methods may be called by several goroutines.
type Faults struct {
	seed uint64

	mu      sync.Mutex
	rules   []Rule
	turn    uint64 // of the rules: Set begins another
	seen    map[drawn]uint64
	struck  []int // by rule, for Limit
	counts  map[Kind]int
	held    map[*held]struct{}
	running int        // late calls
	idle    *sync.Cond // none is running
	closed  bool
	over    chan struct{} // closed with it
}

// drawn is what a draw hangs on beside the seed and how many there were.
type drawn struct {
	turn uint64
	rule int
	name string
}

// New returns faults by these rules and seed. Close must be called when the calls have ended.
func New(seed uint64, rules ...Rule) *Faults {
	f := &Faults{
		seed: seed, seen: map[drawn]uint64{}, counts: map[Kind]int{}, held: map[*held]struct{}{}, over: make(chan struct{}),
	}
	f.idle = sync.NewCond(&f.mu)
	f.Set(rules...)
	return f
}

// Set replaces the rules; without any, calls pass. What is held already stays held. The draws begin anew, others than before.
func (f *Faults) Set(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn++
	f.rules, f.struck = append([]Rule(nil), rules...), make([]int, len(rules))
	clear(f.seen)
}

// Flush lets everything that is held go on now, and returns when what runs late has run. New calls should have ended, or no rule
// be left that holds them.
func (f *Faults) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.held) > 0 || f.running > 0 {
		for h := range f.held {
			f.releaseLocked(h)
		}
		if f.running > 0 {
			f.idle.Wait()
		}
	}
}

// Close ends all faults: who is held gets its time-out or goes on, what would have run later never runs, and what runs is waited
// for. From then on calls pass. It may be called again.
func (f *Faults) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.over)
	}
	for h := range f.held {
		f.releaseLocked(h)
	}
	for f.running > 0 {
		f.idle.Wait()
	}
}

// Counts is how often each kind has struck since New.
func (f *Faults) Counts() map[Kind]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.counts)
}

// Count is how often the kind has struck since New.
func (f *Faults) Count(k Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[k]
}

// String shows the seed and the counts for the message of a failed test.
func (f *Faults) String() string { return fmt.Sprintf("faults of seed %d: %v", f.seed, f.Counts()) }

// call is a call as the rules see it.
type call struct {
	names   []string // at least one
	node    string
	isAbout func(part string) bool
	suffers []Kind // no others
	setUp   bool   // the client makes it by itself: struck only by name
}

// fault is what befalls one call.
type fault struct {
	Rule
	err error // of Refused, Reset, Reply
}

// strike decides about a call; nil: it passes.
func (f *Faults) strike(c *call) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	for i := range f.rules {
		r := &f.rules[i]
		name, ok := r.chooses(c)
		if !ok {
			continue
		}
		d := drawn{f.turn, i, name}
		n := f.seen[d]
		f.seen[d]++
		if n < uint64(max(r.After, 0)) || r.Limit > 0 && f.struck[i] >= r.Limit {
			continue
		}
		chance := f.draw(d, n)
		if r.P > 0 && chance.Float64() >= r.P {
			continue
		}
		f.struck[i]++
		f.counts[r.Kind]++
		return &fault{Rule: *r, err: r.error(c.node, chance)}
	}
	return nil
}

// draw returns the random numbers of the n-th call that a rule sees under a name.
func (f *Faults) draw(d drawn, n uint64) *rand.Rand {
	name := fnv.New64a()
	_, _ = name.Write([]byte(d.name)) // never fails
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], f.seed)
	binary.LittleEndian.PutUint64(seed[8:], d.turn<<32|uint64(d.rule)) //nolint:gosec // an index
	binary.LittleEndian.PutUint64(seed[16:], name.Sum64())
	binary.LittleEndian.PutUint64(seed[24:], n)
	return rand.New(rand.NewChaCha8(seed)) //nolint:gosec // it shall be predictable
}

// error is what the caller of a call that is not sent gets.
func (r *Rule) error(node string, chance *rand.Rand) error {
	switch r.Kind {
	case Refused:
		return refused(node)
	case Reply:
		if len(r.Texts) == 0 {
			return replyError(ReadOnly)
		}
		return replyError(r.Texts[chance.IntN(len(r.Texts))])
	default:
		return reset(node)
	}
}

// carry makes a call that x befalls. run makes it for the caller; again makes it with nobody to read the answer, perhaps after the
// caller has left: it must touch nothing of the caller's.
func (f *Faults) carry(ctx context.Context, x *fault, node string, run, again func(context.Context) error) error {
	switch x.Kind {
	case Refused, Reset, Reply:
		return x.err
	case Timeout:
		return f.hang(ctx, x, node)
	case AppliedReset:
		_ = f.pass(ctx, node, again) // whatever it was, it is lost
		return x.err
	case AppliedTimeout:
		_ = f.pass(ctx, node, again)
		return f.hang(ctx, x, node)
	case Duplicated:
		if x.Delay > 0 {
			defer f.later(ctx, f.hold(x.Delay, nil), node, again)
		} else {
			_ = f.pass(ctx, node, again)
		}
	case Delayed, Reordered:
		return f.detain(ctx, x, node, run, again)
	case Panic:
		panic(ErrInjected)
	case Goexit:
		runtime.Goexit()
	default: // Dropped is no call's
	}
	return f.pass(ctx, node, run)
}

// hang holds the caller until its time is over.
func (f *Faults) hang(ctx context.Context, x *fault, node string) error {
	end, most := ctx.Done(), x.Delay
	if most > 0 {
		end = nil // it heeds no context
	} else {
		most = MaxHold
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-end:
	case <-timer.C:
	case <-f.over:
	}
	return late(ctx, node)
}

// detain holds the call, and lets it run when the caller has left, too.
func (f *Faults) detain(ctx context.Context, x *fault, node string, run, again func(context.Context) error) error {
	most, behind := x.Delay, (*string)(nil)
	if x.Kind == Reordered {
		behind = &node
		if most <= 0 {
			most = MaxHold
		}
	}
	h := f.hold(most, behind)
	select {
	case <-h.free:
		return f.pass(ctx, node, run)
	case <-ctx.Done():
		f.later(ctx, h, node, again)
		return late(ctx, node)
	}
}

// held is a call that waits.
type held struct {
	free   chan struct{} // closed when it may go on
	behind *string       // or when a call to this server that began later has been answered; nil: not by that
	timer  *time.Timer
}

// hold returns a call that waits for d, for a call to the server behind, or for Flush or Close.
func (f *Faults) hold(d time.Duration, behind *string) *held {
	h := &held{free: make(chan struct{}), behind: behind}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[h] = struct{}{}
	h.timer = time.AfterFunc(max(d, 0), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.releaseLocked(h)
	})
	if f.closed {
		f.releaseLocked(h)
	}
	return h
}

func (f *Faults) releaseLocked(h *held) {
	if _, ok := f.held[h]; !ok {
		return
	}
	delete(f.held, h)
	h.timer.Stop()
	close(h.free)
}

// later makes a call when h is free, unless Close came first.
func (f *Faults) later(ctx context.Context, h *held, node string, again func(context.Context) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running++
	go func() {
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.running--; f.running == 0 {
				f.idle.Broadcast()
			}
		}()
		<-h.free
		f.mu.Lock()
		dropped := f.closed
		f.mu.Unlock()
		if !dropped {
			_ = f.pass(context.WithoutCancel(ctx), node, again) // nobody is there to be told
		}
	}()
}

// pass makes a call and then frees those that were waiting when it began to be overtaken by one.
func (f *Faults) pass(ctx context.Context, node string, run func(context.Context) error) error {
	f.mu.Lock()
	var overtaken []*held
	for h := range f.held {
		if h.behind != nil && *h.behind == node {
			overtaken = append(overtaken, h)
		}
	}
	f.mu.Unlock()
	err := run(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range overtaken {
		f.releaseLocked(h)
	}
	return err
}
