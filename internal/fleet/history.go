package fleet

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Moment is a point of a run.
type Moment struct {
	Seq int64         // its number among all moments: what is lower was before
	At  time.Duration // since the run began
}

// before reports whether m was before o. The zero Moment is none: nothing is before or after it.
func (m Moment) before(o Moment) bool { return m.Seq != 0 && o.Seq != 0 && m.Seq < o.Seq }

// Commit is one version of a row.
type Commit struct {
	Key     string
	Version int
	Absent  bool // the row was deleted, or never there
	At      Moment
	Seen    time.Duration // when the replica that loads read from has it
}

// Load is one call of the loader.
type Load struct {
	ID      int
	Process int
	Key     string
	Begin   Moment
	End     Moment // zero: it has not come back
	Row     Commit // what it read
	Failed  bool   // it returned an error, panicked or was too late
}

// Kind is what a Write was.
type Kind string

// The kinds of writes.
const (
	Invalidated Kind = "Invalidate"
	Updated     Kind = "Update"
	Was         Kind = "Set"
	Announced   Kind = "Announce"
	Cleared     Kind = "Clear"
)

// Ack is how a write ended.
type Ack uint8

// The ends of writes.
const (
	Open    Ack = iota // its process died before it returned
	Done               // nil
	Pending            // ErrPending: done in its process, and queued
)

func (a Ack) String() string { return [...]string{"open", "done", "pending"}[a] }

// Write is one call for one key after which older answers are wrong. Clear has no key: it is about all.
type Write struct {
	ID      int
	Kind    Kind
	Process int
	Key     string
	Begin   Moment
	Since   Moment // what was loaded before it is old: the call's begin, of Update the end of its write
	End     Moment // zero: Open
	Ack     Ack
	Row     Commit // the newest version that it covers; of Clear nothing
	Held    bool   // of Update: Redis certainly took its first delete
}

// Way is how an answer was come by.
type Way string

// The ways.
const (
	Asked     Way = "Get"
	Batched   Way = "GetMany"
	Refreshed Way = "Refresh"
	Stored    Way = "in Redis" // the tester looked into Redis itself
)

// Read is one answer for one key.
type Read struct {
	Way     Way
	Process int // 0: the tester
	Key     string
	Begin   Moment
	End     Moment
	Last    bool // after the run has come to rest
	Stale   bool // marked as stale, or not known
	Absent  bool
	Version int    // unless Absent
	By      string // "L7": load 7 gave it; "S3": write 3 did, a Set; unless Absent
	Err     error  // neither value nor absent
}

// Trouble is what was disturbed, from when until when it was over for certain.
type Trouble struct {
	Kind     string
	Process  int    // 0: all
	Key      string // empty: all
	From, To time.Duration
}

// The kinds of troubles.
const (
	TroubleCalls  = "calls"  // calls of Redis fail, are late, lost, repeated
	TroubleTurns  = "turns"  // reads come back to Redis key by key: until its turn a key is loaded once a process
	TroubleBus    = "bus"    // events are lost, or late, and nothing says so
	TroubleCut    = "cut"    // the connections were closed
	TroubleBack   = "back"   // what was acknowledged was taken back, and whose it was may not have noticed yet
	TroubleGuard  = "guard"  // a guard is gone, or all data is
	TroubleValue  = "value"  // a value is gone
	TroubleSource = "source" // loads fail or take too long
	TroubleDeath  = "death"  // a process died
)

// Note is a script that ran in Redis.
type Note struct {
	At   Moment
	Key  string // of Redis
	What string
}

// History is what happened in a run. Its methods may be called concurrently until the run is over; then its fields may be read.
type History struct {
	began time.Time

	mu       sync.Mutex
	seq      int64
	Commits  []Commit
	Loads    []*Load
	Writes   []*Write
	Reads    []*Read
	Left     []*Read // of callers who did not stay for the answer
	Troubles []Trouble
	Notes    []Note       // for the story only
	Breaches []Breach     // what the run itself saw to be wrong: a key without expiry, a queue that stays full
	Dead     map[int]bool // processes that died
}

func newHistory() *History { return &History{began: time.Now(), Dead: map[int]bool{}} }

// Now is the present moment, unlike any other.
func (h *History) Now() Moment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nowLocked()
}

func (h *History) nowLocked() Moment {
	h.seq++
	return Moment{Seq: h.seq, At: time.Since(h.began)}
}

func (h *History) commit(c Commit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Commits = append(h.Commits, c)
}

// load records the begin of a load.
func (h *History) load(process int, key string) *Load {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &Load{ID: len(h.Loads) + 1, Process: process, Key: key, Begin: h.nowLocked()}
	h.Loads = append(h.Loads, l)
	return l
}

// loaded records its end.
func (h *History) loaded(l *Load, row Commit, failed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.End, l.Row, l.Failed = h.nowLocked(), row, failed
}

// write records the begin of a write.
func (h *History) write(kind Kind, process int, key string) *Write {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &Write{ID: len(h.Writes) + 1, Kind: kind, Process: process, Key: key, Begin: h.nowLocked()}
	w.Since = w.Begin
	h.Writes = append(h.Writes, w)
	return w
}

// change changes what is recorded of a write, or ends it.
func (h *History) change(f func(now Moment)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.nowLocked())
}

// read records an answer that ended now.
func (h *History) read(r Read) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.End = h.nowLocked()
	h.Reads = append(h.Reads, &r)
}

// left records a caller who did not wait for the answer.
func (h *History) left(r Read) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.End = h.nowLocked()
	h.Left = append(h.Left, &r)
}

// trouble records a trouble. Call it when it begins: what is recorded later may be judged without it.
func (h *History) trouble(t Trouble) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Troubles = append(h.Troubles, t)
}

// breach records what is wrong by itself.
func (h *History) breach(property, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Breaches = append(h.Breaches, Breach{Property: property, Text: fmt.Sprintf(format, args...)})
}

// note records a script that ran.
func (h *History) note(key, what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Notes = append(h.Notes, Note{h.nowLocked(), key, what})
}

// died records the death of a process.
func (h *History) died(process int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Dead[process] = true
}

// value is how a row is shown to the caches: which version it is and what gave it.
func value(c Commit, by string) string { return c.Key + "@" + strconv.Itoa(c.Version) + "#" + by }

// parseValue takes a value apart; false for one that value did not make.
func parseValue(v string) (key string, version int, by string, ok bool) {
	front, by, ok := strings.Cut(v, "#")
	key, number, ok2 := strings.Cut(front, "@")
	version, err := strconv.Atoi(number)
	return key, version, by, ok && ok2 && err == nil && by != ""
}
