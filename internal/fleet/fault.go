package fleet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tiercache/tiercache/internal/faulty"
)

// FaultKind is what goes wrong.
type FaultKind string

// The faults.
const (
	FaultCalls     FaultKind = "calls"     // some calls of one process fail, hang, are late, lost or carried out twice
	FaultCut       FaultKind = "cut"       // the connections of one process break
	FaultBusCut    FaultKind = "bus cut"   // the bus's connection of one process breaks
	FaultDeaf      FaultKind = "deaf"      // what is published to one process is lost
	FaultPartition FaultKind = "partition" // one process reaches nobody
	FaultPause     FaultKind = "pause"     // the server stands still
	FaultRefusal   FaultKind = "refusal"   // the server answers everything with an error
	FaultFlush     FaultKind = "flush"     // the server forgets everything, scripts too
	FaultRestart   FaultKind = "restart"   // the server dies, and comes back with nothing
	FaultNoScripts FaultKind = "no scripts"
	FaultEvict     FaultKind = "evict"       // a value goes
	FaultNoGuard   FaultKind = "evict guard" // a guard goes
	FaultDeath     FaultKind = "death"       // a process dies; another takes its place
	FaultSource    FaultKind = "source"      // loads of a key fail
	FaultFailover  FaultKind = "failover"    // a master dies, its replica takes its place
	FaultHandOver  FaultKind = "hand-over"   // a master gives way to its replica
	FaultMove      FaultKind = "move"        // a slot moves to another master
)

// Fault is one fault of a plan.
type Fault struct {
	At, For time.Duration
	Kind    FaultKind
	Slot    int    // of the process that it befalls
	Key     string // that it befalls
	Rules   []faulty.Rule
	Mode    SourceMode
	Text    string // the error of a refusal
}

// SourceMode is how loads fail.
type SourceMode string

// The ways in which loads fail.
const (
	SourceError  SourceMode = "error"
	SourcePanic  SourceMode = "panic"
	SourceGoexit SourceMode = "goexit"
	SourceSlow   SourceMode = "slow" // longer than a load may take
)

func (f Fault) String() string {
	s := fmt.Sprintf("%v for %v: %s, slot %d, key %s", short(f.At), short(f.For), f.Kind, f.Slot, f.Key)
	if f.Mode != "" {
		s += ", " + string(f.Mode)
	}
	for _, r := range f.Rules {
		s += fmt.Sprintf(", %v of %.2f after %v", r.Kind, r.P, r.Delay)
	}
	return s + f.Text
}

// errSource is what a failing source says.
var errSource = errors.New("fleet: the source fails")

// settles is how long the library may take to have got over a fault of the network, once that is over: a probe a second, and a dial with its
// greeting. hears is how long it may take to notice that it did not hear: two heartbeats of silence, or a beat every five and one for the gap.
// Both with some round trips more. notices is how long after a failover what it took back is invalidated again: by the second heartbeat that
// reaches the new master, for which a client may have to be told of it first.
const (
	settles = 2500 * time.Millisecond
	hears   = 8 * time.Second
	notices = 8 * time.Second
)

// drawFaults draws what goes wrong; in a third of the runs nothing does.
func (p *Plan) drawFaults(r *rand.Rand) {
	if r.IntN(3) == 0 {
		return
	}
	all := []FaultKind{
		FaultCalls, FaultCalls, FaultCalls, FaultCalls, FaultCut, FaultBusCut, FaultDeaf, FaultPartition, FaultPause, FaultRefusal, FaultFlush,
		FaultRestart, FaultNoScripts, FaultEvict, FaultNoGuard, FaultNoGuard, FaultDeath, FaultDeath, FaultSource, FaultSource,
	}
	for range 1 + r.IntN(4) {
		f := Fault{
			At: time.Duration(r.Int64N(int64(p.Length))), For: time.Duration(r.Int64N(int64(pick(r, 30*time.Millisecond, 300*time.Millisecond, 800*time.Millisecond)))),
			Kind: pick(r, all...), Slot: r.IntN(p.Processes), Key: pick(r, p.Keys...),
		}
		switch f.Kind {
		case FaultCalls:
			for range 1 + r.IntN(3) {
				f.Rules = append(f.Rules, p.drawRule(r))
			}
		case FaultSource:
			f.Mode = pick(r, SourceError, SourceError, SourcePanic, SourceGoexit, SourceSlow)
		case FaultRefusal:
			f.Text = pick(r, faulty.OOM, faulty.ReadOnly, faulty.Loading)
		default:
		}
		p.Faults = append(p.Faults, f)
	}
}

func (p *Plan) drawRule(r *rand.Rand) faulty.Rule {
	rule := faulty.Rule{P: pick(r, 0.05, 0.2, 0.6), Kind: pick(r, faulty.Refused, faulty.Reset, faulty.Reply, faulty.Timeout, faulty.AppliedReset,
		faulty.AppliedReset, faulty.AppliedTimeout, faulty.Duplicated, faulty.Duplicated, faulty.Delayed, faulty.Delayed, faulty.Reordered)}
	switch rule.Kind {
	case faulty.Reply:
		rule.Texts = []string{faulty.OOM, faulty.ReadOnly, faulty.Loading, faulty.NoScript}
	case faulty.Duplicated, faulty.Delayed, faulty.Reordered:
		rule.Delay = time.Duration(r.Int64N(int64(pick(r, 10*time.Millisecond, 100*time.Millisecond, p.Latest))))
	default:
	}
	return rule
}

// failsAt is how loads of a key fail at a moment; empty: they do not.
func (p *Plan) failsAt(key string, at time.Duration) SourceMode {
	for _, f := range p.Faults {
		if f.Kind == FaultSource && f.Key == key && f.At <= at && at < f.At+f.For {
			return f.Mode
		}
	}
	return ""
}

// turns is how long after a fault of calls it may take until every key is read from Redis again: the longest open time of the breaker around
// a master, which grows with each outage, and the turns of the keys after it.
const turns = 40 * time.Second

// troubles are what a fault means for the record: what it disturbs, whose, and until when. process is the number of the process in its slot.
func (p *Plan) troubles(f Fault, process int) []Trouble {
	all := p.disturbs(f, process)
	for _, t := range all {
		if t.Kind == TroubleCalls {
			return append(all, Trouble{Kind: TroubleTurns, From: t.From, To: f.At + f.For + turns})
		}
	}
	return all
}

// disturbs is troubles without what follows from them.
func (p *Plan) disturbs(f Fault, process int) []Trouble {
	over := func(kind string, process int, key string, after time.Duration) Trouble {
		return Trouble{Kind: kind, Process: process, Key: key, From: f.At - farthest, To: f.At + f.For + after}
	}
	switch f.Kind {
	case FaultCalls:
		return []Trouble{over(TroubleCalls, process, "", settles+p.Latest)}
	case FaultCut, FaultBusCut:
		return []Trouble{over(TroubleCut, process, "", settles)}
	case FaultDeaf:
		return []Trouble{over(TroubleBus, process, "", hears)}
	case FaultPartition:
		return []Trouble{over(TroubleCalls, process, "", settles), over(TroubleCut, process, "", settles)}
	case FaultPause:
		return []Trouble{over(TroubleCalls, 0, "", settles), over(TroubleBus, 0, "", settles)}
	case FaultRefusal:
		return []Trouble{over(TroubleCalls, 0, "", settles)}
	case FaultFlush:
		// A process that does not know its generation yet makes a new one, until a heartbeat of another has put the old one back.
		return []Trouble{over(TroubleGuard, 0, "", p.Tiny), over(TroubleValue, 0, "", settles)}
	case FaultRestart:
		return []Trouble{
			over(TroubleGuard, 0, "", p.Tiny), over(TroubleValue, 0, "", p.Tiny), over(TroubleCalls, 0, "", settles), over(TroubleCut, 0, "", settles),
		}
	case FaultEvict:
		return []Trouble{over(TroubleValue, 0, f.Key, p.Tiny)}
	case FaultNoGuard:
		return []Trouble{over(TroubleGuard, 0, f.Key, p.Tiny)}
	case FaultDeath:
		return []Trouble{over(TroubleDeath, 0, "", p.LeaseTime)}
	case FaultSource:
		key := f.Key
		if p.Batched { // the keys that were loaded with it fail too
			key = ""
		}
		return []Trouble{over(TroubleSource, 0, key, p.LoadTime)}
	case FaultFailover, FaultHandOver: // by sentinels a hand-over loses what the old master took meanwhile
		return []Trouble{
			over(TroubleGuard, 0, "", settles), over(TroubleValue, 0, "", settles), over(TroubleCalls, 0, "", settles), over(TroubleCut, 0, "", settles),
			over(TroubleBack, 0, "", notices),
		}
	case FaultMove:
		return []Trouble{over(TroubleCalls, 0, "", settles), over(TroubleCut, 0, "", settles)}
	case FaultNoScripts:
	}
	return nil
}

// befall makes a fault happen, and ends it.
func (r *run) befall(f Fault) {
	time.Sleep(f.At)
	p := r.in(f.Slot)
	tell := func() {
		for _, t := range r.plan.troubles(f, p.number) {
			r.h.trouble(t)
		}
	}
	switch f.Kind {
	case FaultFailover, FaultHandOver, FaultMove: // they take as long as they take
		f.At = r.h.Now().At
		r.strike(f)
		f.For = r.h.Now().At - f.At
		tell()
		return
	default:
		tell()
	}
	switch f.Kind {
	case FaultSource: // the loads look it up
	case FaultDeath:
		r.kill(f)
	default:
		r.strike(f)
	}
}

func (r *run) strike(f Fault) {
	heal := r.site.strike(f, r.key(f.Key))
	time.Sleep(f.For)
	heal()
}

// kill ends a process as a crash does: nothing of it reaches anybody any more. After a while another takes its place.
func (r *run) kill(f Fault) {
	p := r.in(f.Slot)
	if !p.alive() {
		return
	}
	r.h.died(p.number)
	p.die()
	r.site.kill(f.Slot)
	_ = p.close() // what hangs in it is its own affair
	time.Sleep(f.For)
	if err := r.start(f.Slot); err != nil {
		r.h.breach("P11", "no process after a death: %v", err)
	}
}

// key is a key's value key in Redis.
func (r *run) key(id string) string { return "tc:" + r.name + ":{" + id + "}" }
