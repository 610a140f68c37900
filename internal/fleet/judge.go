package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/tiercache/tiercache"
)

// Breach is one promise that a run broke.
type Breach struct {
	Property string
	Key      string // empty: of no key in particular
	Text     string
}

// Verdict is what Judge found.
type Verdict struct {
	Plan     *Plan
	History  *History
	Breaches []Breach
}

// judge is one run in court.
type judge struct {
	*Verdict
	lag    time.Duration // at most; 0: loads read what was committed
	loads  map[int]*Load
	writes map[int]*Write
}

// Judge holds a run against the promises of the library.
func Judge(p *Plan, h *History) *Verdict {
	j := &judge{Verdict: &Verdict{Plan: p, History: h}, loads: map[int]*Load{}, writes: map[int]*Write{}}
	if p.Lagging {
		j.lag = p.Lag
	}
	for _, l := range h.Loads {
		j.loads[l.ID] = l
	}
	for _, w := range h.Writes {
		j.writes[w.ID] = w
	}
	j.Breaches = append(j.Breaches, h.Breaches...)
	for _, r := range h.Reads {
		if r.Err != nil {
			j.judgeError(r)
			continue
		}
		if !j.judgeOrigin(r) {
			continue
		}
		for _, w := range h.Writes {
			if w.Key == r.Key || w.Kind == Cleared {
				j.judgeAge(r, w)
			}
		}
		j.judgeRefresh(r)
		j.judgeLife(r)
	}
	j.judgeLoads()
	return j.Verdict
}

func (j *judge) breach(property string, key, format string, args ...any) {
	j.Breaches = append(j.Breaches, Breach{Property: property, Key: key, Text: fmt.Sprintf(format, args...)})
}

// judgeError: while the source answers, Get has no error, whatever Redis does (P7); else its error says so (P8).
func (j *judge) judgeError(r *Read) {
	var load *tiercache.LoadError
	switch {
	case j.troubled(TroubleSource, 0, r.Key, r.Begin.At-backOff, r.End.At):
		if !errors.As(r.Err, &load) {
			j.breach("P8", r.Key, "%v: no *LoadError while the source fails", r)
		}
	case errors.Is(r.Err, context.DeadlineExceeded) && j.disturbed(r.Begin.At-j.Plan.LoadTime-j.Plan.LeaseTime, r.End.At):
		// Leases that nobody holds, granted by calls whose answers were lost or that came late: they are waited for so long and no longer.
	case errors.Is(r.Err, context.DeadlineExceeded) && j.waitedForOthers(r):
	case errors.Is(r.Err, context.DeadlineExceeded) && j.Plan.Event == 0:
		// A load on a machine that stood still takes longer than it may.
	default:
		j.breach("P7", r.Key, "%v: an error although the source answers", r)
	}
}

// waitedForOthers reports whether a read waited for as long as it may while other processes loaded its key: of what outlives a delete window,
// or is absent over an announcement, nothing is stored, and the next to load may again be another.
func (j *judge) waitedForOthers(r *Read) bool {
	if !j.waitedItOut(r) {
		return false
	}
	for _, l := range j.History.Loads {
		if l.Process != r.Process && l.Key == r.Key && l.End.Seq != 0 && l.Begin.At <= r.End.At && l.End.At >= r.Begin.At {
			return true
		}
	}
	return false
}

// waitedItOut reports whether a read ended with the bound of its flight, which it began itself or joined; whoever began it may have left.
func (j *judge) waitedItOut(r *Read) bool {
	bound := j.Plan.LoadTime + j.Plan.LeaseTime
	for _, first := range slices.Concat(j.History.Reads, j.History.Left) {
		if first.Process == r.Process && first.Key == r.Key && !r.Begin.before(first.Begin) &&
			first.Begin.At <= r.End.At-bound && first.Begin.At >= r.End.At-bound-5*farthest {
			return true
		}
	}
	return r.End.At-r.Begin.At >= bound
}

// disturbed reports whether any process's calls, connections or life were troubled.
func (j *judge) disturbed(from, to time.Duration) bool {
	return j.troubled(TroubleCalls, 0, "", from, to) || j.troubled(TroubleCut, 0, "", from, to) || j.troubled(TroubleDeath, 0, "", from, to)
}

// beat is how often a process asks Redis for the generation.
const beat = time.Second

// backOff is how long a failing key rests at most after the failure.
const backOff = time.Second

// judgeOrigin: an answer is a version that was committed, and came from a load or a Set of it.
func (j *judge) judgeOrigin(r *Read) bool {
	if r.Absent {
		if j.newestAbsent(r) < 0 {
			j.breach("P6", r.Key, "%v: the row was never absent", r)
			return false
		}
		return true
	}
	row, ok := Commit{}, false
	if l := j.load(r); l != nil {
		row, ok = l.Row, l.Key == r.Key && l.End.before(r.End)
	} else if w := j.set(r); w != nil {
		row, ok = w.Row, w.Key == r.Key && w.Begin.before(r.End)
	}
	if !ok || row.Version != r.Version || row.Absent {
		j.breach("P10", r.Key, "%v: nobody ever gave this value", r)
		return false
	}
	return true
}

// load is the load that an answer came from, nil if it was none.
func (j *judge) load(r *Read) *Load { return j.loads[number(r.By, 'L')] }

// set is the Set that an answer came from, nil if it was none.
func (j *judge) set(r *Read) *Write {
	if w := j.writes[number(r.By, 'S')]; w != nil && w.Kind == Was {
		return w
	}
	return nil
}

func number(by string, kind byte) int {
	if by == "" || by[0] != kind {
		return 0
	}
	n, _ := strconv.Atoi(by[1:]) // 0 names nothing
	return n
}

// judgeAge: an answer is not older than a write that its process must know of (P2, P3, P6), nor than one whose process died (P4).
func (j *judge) judgeAge(r *Read, w *Write) {
	if w.Kind == Announced && !r.Absent || j.tookBack(r, w) { // an announcement is about "absent" only
		return
	}
	switch {
	case j.knows(r, w):
		if property, why := j.older(r, w); property != "" {
			j.breach(property, r.Key, "%v: %s after %v", r, why, w)
			return
		}
		if w.Kind != Cleared && r.Begin.At > j.deadline(r, w)+j.Plan.Tiny && j.outdated(r, w) && !j.windowLost(r, w) {
			j.breach("P2", r.Key, "%v: older than %v, whose window is over", r, w)
		}
	case w.Kind == Updated && w.Ack == Open && w.Held:
		end := w.Row.At.At + j.lag + j.Plan.Window
		if j.impaired(r, w) {
			end += j.Plan.MemoryTTL + j.Plan.LoadTime
		}
		if r.Begin.At > end+j.Plan.Tiny && j.outdated(r, w) && !j.windowLost(r, w) {
			j.breach("P4", r.Key, "%v: older than %v, more than window and lag after its commit", r, w)
		}
	}
}

// tookBack reports whether a failover may have taken a write back: until its process has noticed, or for good if that has died.
func (j *judge) tookBack(r *Read, w *Write) bool {
	return j.troubled(TroubleBack, 0, "", r.Begin.At, r.End.At) ||
		j.History.Dead[w.Process] && j.troubled(TroubleBack, 0, "", w.Begin.At, r.End.At)
}

// knows reports whether the process that was asked must know of a write: its own once the call returned, nil or error; another's once the
// event arrived, or could not have been missed without being noticed.
func (j *judge) knows(r *Read, w *Write) bool {
	switch {
	case w.Ack == Open:
		return false
	case r.Process == w.Process:
		return w.End.before(r.Begin)
	case w.Ack == Pending:
		return r.Last && !j.History.Dead[w.Process]
	case r.Way == Stored || r.Last:
		return w.End.before(r.Begin)
	case w.Kind == Cleared && j.troubled(TroubleCut, r.Process, "", w.Begin.At, r.End.At):
		return r.Begin.At > w.End.At+beat+j.Plan.Event+j.Plan.Tiny // what Redis has of before looks good until the generation is asked for
	case j.Plan.Event > 0 && !j.impaired(r, w):
		return r.Begin.At > w.End.At+j.Plan.Event+j.Plan.Tiny
	}
	// What is marked stale may be older while Redis or the source fails.
	return !r.Stale && r.Begin.At > w.End.At+j.lag+j.Plan.MemoryTTL+j.Plan.LoadTime
}

// impaired reports whether the process that was asked may have missed the event of a write, without knowing, or could not ask Redis
// although it knew.
func (j *judge) impaired(r *Read, w *Write) bool {
	from, to := w.Begin.At, r.End.At
	return j.troubled(TroubleBus, r.Process, "", from, to) ||
		j.troubled(TroubleCut, r.Process, "", from, to) && j.troubled(TroubleCalls, r.Process, "", from, to)
}

// older reports what an answer breaks that was loaded before a write: P3 if it came from a flight that was still under way, P6 for an
// absent one, else P2.
func (j *judge) older(r *Read, w *Write) (property, why string) {
	if r.Absent {
		for _, l := range j.History.Loads {
			if l.Key == r.Key && l.Row.Absent && !l.Failed && !l.Begin.before(w.Since) && l.Begin.before(r.End) {
				return "", ""
			}
		}
		return "P6", "no load since has found it absent"
	}
	l := j.load(r)
	switch {
	case l == nil || !l.Begin.before(w.Since): // a Set is cut by the window of a write that overtakes it
		return "", ""
	case r.Begin.before(l.End):
		return "P3", "joined a load that began before"
	}
	return "P2", "answered with a load that began before"
}

// deadline is when all that a lagging replica gave before a write reached it must be gone.
func (j *judge) deadline(r *Read, w *Write) time.Duration {
	end := max(w.End.At, w.Row.At.At+j.lag+j.Plan.Window)
	if w.Kind == Announced || w.Ack == Pending || j.set(r) != nil {
		end = max(end, w.End.At+j.lag+j.Plan.Window)
	}
	if r.Process != w.Process && !r.Last && j.troubled(TroubleCalls, r.Process, "", w.Begin.At, r.End.At) {
		end += j.Plan.MemoryTTL + j.Plan.LoadTime // a load without Redis knows of no window of another process
	}
	return end
}

// outdated reports whether an answer is of an older version than a write's. One that a load gave which was still under way when it was
// asked for is not: it is as new as it can be.
func (j *judge) outdated(r *Read, w *Write) bool {
	if !r.Absent {
		if l := j.load(r); l != nil && r.Begin.before(l.End) {
			return false
		}
		// A Set that comes later than a window after its commit may overwrite a newer row.
		if s := j.set(r); s != nil && (s.Ack == Open || s.End.At-s.Row.At.At > j.Plan.Window-j.Plan.Tiny) {
			return false
		}
		return r.Version < w.Row.Version
	}
	for _, l := range j.History.Loads {
		if l.Key == r.Key && l.Begin.before(r.End) && (l.End.Seq == 0 || r.Begin.before(l.End)) {
			return false
		}
	}
	return j.newestAbsent(r) < w.Row.Version
}

// newestAbsent is the newest version without a row that an absent answer can mean; -1: there is none.
func (j *judge) newestAbsent(r *Read) int {
	newest := -1
	for _, c := range j.History.Commits {
		if c.Key == r.Key && c.Absent && (c.Version == 0 || c.At.before(r.End)) {
			newest = max(newest, c.Version)
		}
	}
	return newest
}

// windowLost reports whether Redis lost the delete window of a write while it was needed.
func (j *judge) windowLost(r *Read, w *Write) bool {
	return (j.lag > 0 || j.set(r) != nil || w.Ack == Open) && j.troubled(TroubleGuard, 0, r.Key, w.Begin.At, j.deadline(r, w))
}

// judgeRefresh: what Refresh is answered with was loaded, or set, after it began.
func (j *judge) judgeRefresh(r *Read) {
	if r.Way != Refreshed {
		return
	}
	if w := j.set(r); w != nil && w.End.before(r.Begin) {
		j.breach("P2", r.Key, "%v: answered with what was set before it began", r)
	}
	if property, _ := j.older(r, &Write{Since: r.Begin}); property != "" {
		j.breach("P2", r.Key, "%v: answered with what was loaded before it began", r)
	}
}

// judgeLife: nothing is answered, or kept, beyond its life (P13); beyond its soft end only as stale (P8).
func (j *judge) judgeLife(r *Read) {
	if r.Absent {
		return
	}
	var stored time.Duration // at the latest: a fill that is late is refused once its lease is over
	if l := j.load(r); l != nil {
		stored = l.End.At + j.Plan.LeaseTime
	} else if w := j.set(r); w.Ack != Open {
		stored = w.End.At + j.Plan.LeaseTime
	} else {
		return
	}
	life := j.Plan.TTL
	if r.Stale || r.Way == Stored {
		life += min(max(j.Plan.MaxStale, 0), j.Plan.TTL)
	}
	if r.Begin.At > stored+life+j.Plan.Tiny {
		j.breach("P13", r.Key, "%v: beyond its life of %v", r, life)
	}
}

// judgeLoads: no load without a reason (P1).
func (j *judge) judgeLoads() {
	if j.Plan.Event == 0 {
		return // on a machine that may stand still at any time, anything may have run out
	}
	last := map[string]*Load{}
	loads := slices.Clone(j.History.Loads)
	slices.SortFunc(loads, func(a, b *Load) int { return int(a.Begin.Seq - b.Begin.Seq) })
	for _, l := range loads {
		if before := last[l.Key]; before != nil && !j.reason(before, l) {
			j.breach("P1", l.Key, "%v: nothing gave reason to load again after %v", l, before)
		}
		last[l.Key] = l
	}
}

// reason reports whether a load may follow the one before it.
func (j *judge) reason(a, b *Load) bool {
	from, to := a.Begin.At-5*farthest, b.Begin.At
	if b.Failed && j.troubled(TroubleDeath, 0, "", b.Begin.At, b.End.At+farthest) {
		return true // of a process that died in it: what asked for it, a Refresh perhaps, is not on record
	}
	if a.Failed || j.lived(a, b) || j.sliced(a) && to >= from+j.Plan.Window {
		return true
	}
	if j.disturbed(from, to) { // of any process: what comes late may revoke anybody's lease
		return true
	}
	for _, kind := range []string{TroubleGuard, TroubleValue, TroubleSource, TroubleTurns} {
		if j.troubled(kind, 0, a.Key, from, to) {
			return true
		}
	}
	for _, w := range j.History.Writes {
		if w.Key != a.Key && w.Kind != Cleared || w.Begin.At > to {
			continue
		}
		open := w.Ack == Open
		if w.Kind == Cleared && j.troubled(TroubleBus, 0, "", w.Begin.At, to) { // who has not heard of it stores what is a miss for the others
			return true
		}
		if open || w.End.At >= from { // it revoked the first load, or deleted what it stored
			return true
		}
		if w.End.At+j.Plan.Window >= from && to >= w.Begin.At+j.Plan.Window-j.Plan.Tiny { // what was loaded in its window has ended with it
			return true
		}
		if w.Kind == Announced && a.Row.Absent { // "absent" is not stored over an announcement
			return true
		}
	}
	if j.firstMiss(a) && j.untold(a, b) {
		return true
	}
	for _, r := range j.History.Reads {
		if r.Way != Refreshed || r.Key != a.Key || r.Begin.At > to {
			continue
		}
		if r.End.At >= to {
			return true
		}
		if r.Absent && r.End.At+j.Plan.Window >= from { // what it could not replace it deleted, and what is loaded in that window ends with it
			return true
		}
	}
	return false
}

// firstMiss reports whether a process that found no row need not have told Redis: it has not found the key absent before.
func (j *judge) firstMiss(a *Load) bool {
	if !a.Row.Absent {
		return false
	}
	for _, l := range j.History.Loads {
		if l.Process == a.Process && l.Key == a.Key && l.Row.Absent && !l.Failed && l.End.Seq != 0 && l.End.before(a.Begin) {
			return false
		}
	}
	return true
}

// untold reports whether a first miss that only its process may know of leaves room for the load b: in another process that knows nothing of
// the key either, or once memory has forgotten it.
func (j *judge) untold(a, b *Load) bool {
	if a.Process == b.Process {
		life := j.Plan.MemoryTTL
		if j.Plan.Jitter > 0 {
			life -= life / 5
		}
		return b.Begin.At >= a.End.At+life-j.Plan.Tiny
	}
	var mine *Load
	for _, l := range j.History.Loads {
		if l.Process == b.Process && l.Key == b.Key && l.Begin.before(b.Begin) && (mine == nil || mine.Begin.before(l.Begin)) {
			mine = l
		}
	}
	return mine == nil || j.reason(mine, b)
}

// sliced reports whether Redis may take a write for pending that has ended: where two Updates of a key overlapped, neither may end the
// pending state of both, and what is loaded until it runs out lives for a window.
func (j *judge) sliced(l *Load) bool {
	var open time.Duration // until when the Updates before are under way
	for _, w := range j.History.Writes {
		if w.Kind != Updated || w.Key != l.Key || w.Begin.At > l.Begin.At {
			continue
		}
		if w.Begin.At < open {
			return true
		}
		open = max(open, w.End.At)
	}
	return false
}

// lived reports whether what a stored may be past its soft end when b begins.
func (j *judge) lived(a, b *Load) bool {
	life := j.Plan.TTL
	if a.Row.Absent {
		life = min(life, j.Plan.AbsentTTL)
	}
	if j.Plan.Jitter > 0 { // the cache begins empty: lives are spread down to a tenth, wider than any jitter of a plan
		life /= 10
	}
	return a.End.Seq != 0 && b.Begin.At >= a.End.At+life-j.Plan.Tiny
}

// troubled reports whether a trouble touched a process (0: any) and a key (empty: any) between two moments.
func (j *judge) troubled(kind string, process int, key string, from, to time.Duration) bool {
	for _, t := range j.History.Troubles {
		if t.Kind == kind && t.From <= to && t.To >= from &&
			(process == 0 || t.Process == 0 || t.Process == process) && (key == "" || t.Key == "" || t.Key == key) {
			return true
		}
	}
	return false
}
