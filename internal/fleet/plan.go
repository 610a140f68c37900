package fleet

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Pace is the time of a run: how long things take in it.
type Pace struct {
	Window      time.Duration // delete window
	Lag         time.Duration // of the replica, at most
	ReadBudget  time.Duration
	WriteBudget time.Duration
	LeaseTime   time.Duration
	LoadTime    time.Duration // a load may take
	SlowLoad    time.Duration // a slow one takes: longer than a window
	Length      time.Duration // of what is planned
	Latest      time.Duration // a delayed call is carried out: beyond a lease and a window
	Event       time.Duration // an event is under way, at most; 0: that is not known
	Tiny        time.Duration // a moment may be off by: Redis keeps whole milliseconds
}

// virtualPace is chosen so that windows and leases begin and end many times in a run, and that a call's budgets together are shorter than a
// window, which is what the library asks of its users.
var virtualPace = Pace{
	Window: 300 * time.Millisecond, Lag: 150 * time.Millisecond, ReadBudget: 25 * time.Millisecond, WriteBudget: 50 * time.Millisecond,
	LeaseTime: 300 * time.Millisecond, LoadTime: 500 * time.Millisecond, SlowLoad: 400 * time.Millisecond, Length: 1200 * time.Millisecond,
	Latest: 500 * time.Millisecond, Event: farthest, Tiny: 2 * time.Millisecond,
}

// realPace leaves room for a machine that has other things to do.
var realPace = Pace{
	Window: time.Second, Lag: 400 * time.Millisecond, ReadBudget: 100 * time.Millisecond, WriteBudget: 200 * time.Millisecond,
	LeaseTime: time.Second, LoadTime: 1500 * time.Millisecond, SlowLoad: 1200 * time.Millisecond, Length: 3 * time.Second,
	Latest: 1500 * time.Millisecond, Tiny: 50 * time.Millisecond,
}

// OpKind is what a caller does.
type OpKind string

// The operations.
const (
	OpGet        OpKind = "get"
	OpGetMany    OpKind = "get many"
	OpRefresh    OpKind = "refresh"
	OpInvalidate OpKind = "invalidate" // behind a commit
	OpUpdate     OpKind = "update"
	OpSet        OpKind = "set" // behind a commit
	OpInsert     OpKind = "insert"
	OpClear      OpKind = "clear"
	OpLook       OpKind = "look" // the tester looks into Redis
)

// Op is one operation of a plan.
type Op struct {
	At     time.Duration
	Slot   int // of the process
	Kind   OpKind
	Keys   []string
	Delete bool             // the write deletes the row
	Fail   bool             // Update's write returns an error after its commit
	Pause  [2]time.Duration // around the commit of a write
	Last   bool             // at rest
	Plain  bool             // Get, rather than GetEntry
	Leaves time.Duration    // the caller of a Get waits no longer; 0: it waits
}

func (o Op) String() string {
	s := fmt.Sprintf("%v slot %d: %s %s", o.At, o.Slot, o.Kind, strings.Join(o.Keys, " "))
	if o.Delete {
		s += ", deleting"
	}
	if o.Fail {
		s += ", failing"
	}
	return s
}

// Plan is what a seed stands for.
type Plan struct {
	Pace
	Seed      uint64
	Processes int
	Keys      []string
	Lagging   bool // the database reads from a replica
	Batched   bool // there is a LoadMany
	Heed      bool // the client lets no call hang for longer than its budget

	TTL, MemoryTTL, AbsentTTL, MaxStale time.Duration
	Jitter                              float64

	Ops    []Op
	Faults []Fault
}

// weights say how often an operation comes.
var weights = []struct {
	kind OpKind
	n    int
}{
	{OpGet, 50}, {OpGetMany, 8}, {OpUpdate, 10}, {OpInvalidate, 10}, {OpSet, 7}, {OpInsert, 4}, {OpRefresh, 4}, {OpClear, 1}, {OpLook, 6},
}

// NewPlan draws a plan.
func NewPlan(seed uint64, pace Pace) *Plan {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it shall be predictable
	p := &Plan{Pace: pace, Seed: seed, Processes: 2 + r.IntN(3), Lagging: r.IntN(2) == 0, Heed: r.IntN(2) == 0}
	for i := range 1 + r.IntN(3) {
		p.Keys = append(p.Keys, string(rune('a'+i)))
	}
	p.TTL = pick(r, 10*time.Minute, 10*time.Minute, 250*time.Millisecond)
	p.MemoryTTL = pick(r, time.Minute, 200*time.Millisecond)
	p.AbsentTTL = pick(r, time.Minute, 150*time.Millisecond)
	p.MaxStale = pick(r, -1, 200*time.Millisecond, 10*time.Minute)
	p.Jitter = pick(r, -1, 0.1)
	p.Batched = r.IntN(2) == 0
	p.drawOps(r)
	p.drawFaults(r)
	return p
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// drawOps draws operations in bursts, in which they overlap.
func (p *Plan) drawOps(r *rand.Rand) {
	sum := 0
	for _, w := range weights {
		sum += w.n
	}
	for range 6 + r.IntN(6) {
		burst := time.Duration(r.Int64N(int64(p.Length)))
		wide := pick(r, 3*time.Millisecond, 15*time.Millisecond, 60*time.Millisecond)
		for range 4 + r.IntN(6) {
			p.Ops = append(p.Ops, p.drawOp(r, burst+time.Duration(r.Int64N(int64(wide))), sum))
		}
	}
}

func (p *Plan) drawOp(r *rand.Rand, at time.Duration, sum int) Op {
	o := Op{At: at, Slot: r.IntN(p.Processes)}
	n := r.IntN(sum)
	for _, w := range weights {
		if n -= w.n; n < 0 {
			o.Kind = w.kind
			break
		}
	}
	o.Keys = []string{pick(r, p.Keys...)}
	if o.Kind == OpGetMany || (o.Kind == OpUpdate || o.Kind == OpInvalidate) && r.IntN(5) == 0 {
		o.Keys = nil
		for _, i := range r.Perm(len(p.Keys))[:1+r.IntN(len(p.Keys))] {
			o.Keys = append(o.Keys, p.Keys[i])
		}
	}
	o.Delete, o.Fail = r.IntN(8) == 0, r.IntN(12) == 0
	o.Plain = r.IntN(3) == 0
	if o.Kind == OpGet && r.IntN(10) == 0 {
		o.Leaves = 1 + time.Duration(r.Int64N(int64(pick(r, 5*time.Millisecond, 100*time.Millisecond))))
	}
	for i := range o.Pause {
		o.Pause[i] = time.Duration(r.Int64N(int64(pick(r, time.Millisecond, 20*time.Millisecond))))
	}
	return o
}

// lag is the replica's: of each version another, the same for a seed.
func (p *Plan) lag() func(string, int) time.Duration {
	if !p.Lagging {
		return nil
	}
	return func(key string, version int) time.Duration {
		r := rand.New(rand.NewPCG(p.Seed, uint64(version)<<8|uint64(key[0]))) //nolint:gosec // it shall be predictable
		return time.Duration(r.Int64N(int64(p.Lag)))
	}
}

// absentAtFirst reports whether a key has no row when the run begins.
func (p *Plan) absentAtFirst(key string) bool { return (p.Seed>>3+uint64(key[0]))%3 == 0 }

// pauses are how long a load waits before and after it reads its row. The one after is short where it would make a difference that is none
// of the library's: a waiter is answered with what was loaded, however old it has become.
func (p *Plan) pauses(load int) (before, after time.Duration) {
	r := rand.New(rand.NewPCG(p.Seed, 1<<32|uint64(load))) //nolint:gosec // it shall be predictable
	longest := pick(r, 2*time.Millisecond, 5*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond, p.SlowLoad)
	before = time.Duration(r.Int64N(int64(longest)))
	return before, time.Duration(r.Int64N(int64(longest - before)))
}
