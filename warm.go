package tiercache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// WarmOptions say how Warm goes about it. Zero means the default.
type WarmOptions struct {
	KeysPerSecond int    // keys looked at, whether they need a load or not; 1,000; negative: no limit
	Concurrency   int    // loads at once; 8, and never more than the gate has for what nobody waits for, a tenth of its slots
	Skip          uint64 // keys at the front that are passed over: Done of the run before, of a sequence in the same order
	Total         uint64 // keys of the whole sequence, if that is known; only handed on to Progress

	// Progress is told how far Warm came, a few times a second and at the end; never twice at once. Warm goes on when it returns.
	Progress func(WarmReport)
}

// Defaults of WarmOptions, and what Warm goes by.
const (
	warmRate        = 1000 // keys a second; chosen; not tuned
	warmConcurrency = 8    // chosen; not tuned
	warmBatch       = 100  // keys that share a round trip and a LoadMany, or a tenth of a second's where that is less; chosen; not tuned
	warmErrors      = 5    // errors of keys in Warm's own
	warmTold        = 200 * time.Millisecond

	// Loads have slowed down when nine of ten take twice as long as at the best of times, and some milliseconds longer: see tempo. Each pause for it
	// has that time taken to be a sixteenth longer: a source that stays five times slower is loaded from as before after some two minutes.
	slowFactor = 2
	slowLeast  = 5 * time.Millisecond
	slowGrowth = 16
	tempoLoads = 20
	warmPoll   = 100 * time.Millisecond // how often a reason to pause is looked at again
	restLeast  = time.Second            // a pause because loads slowed down; doubled while they stay slow
	restMost   = 8 * time.Second
)

// WarmReport is how far a Warm came.
type WarmReport struct {
	Done  uint64 // keys at the front of the sequence that are dealt with, WarmOptions.Skip included; others behind them may be too
	Total uint64 // as in WarmOptions

	Fresh  uint64 // nothing to do: memory or Redis had it
	Loaded uint64
	Absent uint64 // no such row, or ValidKey refused it
	Failed uint64

	Took   time.Duration
	Paused time.Duration // of it, since foreground loads waited, loads slowed down, or Redis was away
}

// Rate is the keys dealt with in a second, on average; 0 before the first.
func (r WarmReport) Rate() float64 {
	if r.Took <= 0 {
		return 0
	}
	return float64(r.Fresh+r.Loaded+r.Absent+r.Failed) / r.Took.Seconds()
}

// Warm loads those of keys that neither memory nor Redis has fresh, before anybody asks for them: after a deployment, or into an empty Redis.
// Nobody feels it: its loads have the gate's last class (rebuild.Warm), it pauses while foreground loads wait, while loads take
// longer than at first (for some minutes, then that is their time), while the source's breaker refuses it and while a Redis master is away, and
// what it loads does not end together (a share of TTL each: see the package comment).
//
// It returns when keys has ended, when ctx has, with its error, or at Close with ErrClosed; if the sequence blocks, not before that goes on. A key
// that fails is counted, and the errors of the first few are in the error (*LoadError, joined): they stop nothing. A Warm that was cut off goes on where
// WarmReport.Done says, if the sequence has an order; without, another one passes what is fresh quickly. A panic of keys or of Progress ends it with a
// *PanicError. Concurrent Warms share the gate's class. A hundred keys share a round trip to Redis, and one LoadMany where that is given.
func (c *Cache[K, V]) Warm(ctx context.Context, keys iter.Seq[K], o WarmOptions) (WarmReport, error) {
	if err := c.usable(ctx); err != nil {
		return WarmReport{}, err
	}
	if keys == nil {
		return WarmReport{}, errNilKeys
	}
	w := newWarming(c, o)
	// A flight of its own: Close ends and awaits it.
	_, _, err := c.refreshes.Do(context.WithoutCancel(ctx), c.number(), func(flight context.Context) (answer[V], error) {
		work, cancel := context.WithCancelCause(flight)
		defer w.units.Wait() // also if keys or Progress panics
		defer cancel(nil)    // then units that are turned away would go on trying
		defer context.AfterFunc(ctx, func() { cancel(contextError(ctx)) })()
		return answer[V]{}, w.run(work, keys)
	})
	switch {
	case c.closed.Load() && errors.Is(err, ErrClosed):
		return w.soFar(), ErrClosed
	case err != nil && ctx.Err() != nil:
		err = contextError(ctx)
	}
	return w.soFar(), errors.Join(append(w.errs, err)...)
}

var errNilKeys = errors.New("tiercache: nil keys")

// errGaveWay marks the refusal of a load that could have waited: who joined it and cannot wait loads for himself.
var errGaveWay = errors.New("tiercache: a load of a lower class gave way")

// warming is one Warm under way.
type warming[K comparable, V any] struct {
	c     *Cache[K, V]
	o     WarmOptions
	size  int           // keys of a batch
	slots chan struct{} // one a unit under way
	units sync.WaitGroup

	begun time.Time
	due   time.Time // of the next batch
	told  time.Time

	mu     sync.Mutex
	report WarmReport
	open   []*openBatch // begun and not dealt with, in order
	errs   []error      // read without mu once run has ended
	tempo  tempo
	rest   time.Duration // the last one
	resume time.Time     // until then it rests
}

// openBatch is how many keys of a batch are not dealt with.
type openBatch struct{ keys, left int }

func newWarming[K comparable, V any](c *Cache[K, V], o WarmOptions) *warming[K, V] {
	if o.KeysPerSecond == 0 {
		o.KeysPerSecond = warmRate
	}
	if o.Concurrency <= 0 {
		o.Concurrency = warmConcurrency
	}
	size := warmBatch
	if o.KeysPerSecond > 0 {
		size = min(size, max(1, o.KeysPerSecond/10))
	}
	now := time.Now()
	return &warming[K, V]{
		c: c, o: o, size: size, slots: make(chan struct{}, min(o.Concurrency, c.gate.Slots(rebuild.Warm))),
		begun: now, due: now, told: now, report: WarmReport{Total: o.Total},
	}
}

// run deals with keys and tells Progress how that ended.
func (w *warming[K, V]) run(ctx context.Context, keys iter.Seq[K]) error {
	err := w.each(ctx, keys)
	w.units.Wait()
	w.tell(true)
	if err == nil && len(w.open) > 0 { // units left at the end of ctx, or at Close
		err = ErrClosed
		if ctx.Err() != nil {
			err = contextError(ctx)
		}
	}
	return err
}

// each begins batch after batch.
func (w *warming[K, V]) each(ctx context.Context, keys iter.Seq[K]) error {
	batch := make([]K, 0, w.size)
	skip := w.o.Skip
	for key := range keys {
		switch {
		case ctx.Err() != nil:
			return contextError(ctx)
		case w.c.closed.Load():
			return ErrClosed
		case skip > 0:
			skip--
			w.passed()
			continue
		}
		if batch = append(batch, key); len(batch) == w.size {
			if err := w.begin(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if len(batch) > 0 {
		return w.begin(ctx, batch)
	}
	return nil
}

// begin waits until a batch may begin, looks its keys up, and leaves what is to be loaded to units.
func (w *warming[K, V]) begin(ctx context.Context, keys []K) error {
	if w.o.KeysPerSecond > 0 {
		w.due = w.due.Add(time.Duration(len(keys)) * time.Second / time.Duration(w.o.KeysPerSecond))
	}
	if err := w.pause(ctx); err != nil {
		return err
	}
	b := &openBatch{keys: len(keys), left: len(keys)}
	w.mu.Lock()
	w.open = append(w.open, b)
	w.mu.Unlock()
	wants := w.missing(ctx, keys, b)
	unit := 1
	if w.c.o.LoadMany != nil {
		unit = max(len(wants), 1)
	}
	for some := range slices.Chunk(wants, unit) {
		if err := w.pause(ctx); err != nil {
			return err
		}
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			return contextError(ctx)
		}
		w.units.Go(func() {
			defer func() { <-w.slots }()
			w.load(ctx, some, b)
		})
	}
	if wait := time.Until(w.due); wait > 0 {
		err := w.sleep(ctx, wait)
		w.tell(false)
		return err
	}
	w.due = time.Now() // what was lost is not caught up with
	w.tell(false)
	return nil
}

// missing returns those keys of a batch that neither memory nor Redis has fresh, and counts the others. What Redis has is kept in memory as by a
// Get, and not counted as one.
func (w *warming[K, V]) missing(ctx context.Context, keys []K, b *openBatch) (wants []want[K, V]) {
	c := w.c
	var ids []string
	var marks []layers.Mark
	var asked []want[K, V]
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		id, err := c.enter(ctx, key)
		switch {
		case errors.Is(err, ErrInvalidKey):
			w.count(b, &w.report.Absent)
			continue
		case errors.Is(err, ErrClosed): // the batch stays open: it is not dealt with
			return nil
		case err != nil:
			w.failed(b, &LoadError{Key: id, Err: err})
			continue
		}
		if _, state := c.local.Get(key); state != layers.Miss || seen[id] {
			w.count(b, &w.report.Fresh)
			continue
		}
		seen[id] = true
		one := want[K, V]{key: key, id: id, why: cause{class: rebuild.Warm}}
		mark := c.local.Mark(key) // before the pending are asked: see Get's
		if !c.readable(key, id) {
			wants = append(wants, one)
			continue
		}
		asked, ids, marks = append(asked, one), append(ids, id), append(marks, mark)
	}
	if len(asked) == 0 {
		return wants
	}
	found, errs := c.shared.GetMany(ctx, ids, marks)
	for i, one := range asked {
		switch {
		case errs[i] != nil:
			if ctx.Err() == nil {
				c.sharedFailed("get", errs[i])
			}
		case found[i].Kind == layers.Value && found[i].Fresh(time.Now()):
			if found[i].Keep && c.o.MemoryTTL > 0 {
				c.keep(one.key, found[i].Entry, marks[i], cause{})
			}
			w.count(b, &w.report.Fresh)
			continue
		default:
			one.why.asked, one.why.marked = true, found[i].Kind == layers.Marker
			if found[i].Kind == layers.Foreign {
				one.why.seen = found[i].Stored
			}
		}
		if c.certainlyAbsent(ctx, one.id, &one.why) {
			w.count(b, &w.report.Absent)
			continue
		}
		wants = append(wants, one)
	}
	return wants
}

// load rebuilds the keys of one unit. What the gate or the breaker turns away is tried again.
func (w *warming[K, V]) load(ctx context.Context, wants []want[K, V], b *openBatch) {
	for len(wants) > 0 {
		var again []want[K, V]
		noted := false
		rebuilt := (&batch[K, V]{c: w.c}).lead(ctx, wants, w.c.flights.LeadBehind)
		for _, one := range rebuilt {
			a, err := one.call.Wait(ctx)
			switch {
			case err != nil && (ctx.Err() != nil || w.c.closed.Load() && errors.Is(err, ErrClosed)):
				return
			case turnedAway(err):
				again = append(again, one)
				continue
			case err != nil:
				w.failed(b, &LoadError{Key: one.id, Err: err})
				continue
			}
			if a.tier == Source && !noted { // the keys of one LoadMany took the same
				noted = true
				w.note(a.Cost)
			}
			switch {
			case a.Absent:
				w.count(b, &w.report.Absent)
			case a.tier == Source:
				w.count(b, &w.report.Loaded)
			default:
				w.count(b, &w.report.Fresh)
			}
		}
		wants = again
		if len(again) > 0 && w.sleep(ctx, warmPoll) != nil {
			return
		}
	}
}

// pause waits while there is a reason to.
func (w *warming[K, V]) pause(ctx context.Context) error {
	begun := time.Now()
	for w.mustPause(time.Now()) {
		if err := w.sleep(ctx, warmPoll); err != nil {
			return err
		}
		w.mu.Lock()
		w.report.Paused += time.Since(begun)
		w.mu.Unlock()
		begun = time.Now()
		w.tell(false)
	}
	if ctx.Err() != nil {
		return contextError(ctx) // with its cause: Close
	}
	return nil
}

// mustPause reports whether somebody else is to go first. The source's breaker is not looked at: one that is open stays so until a load asks.
func (w *warming[K, V]) mustPause(now time.Time) bool {
	w.mu.Lock()
	resting := now.Before(w.resume)
	w.mu.Unlock()
	return resting || w.c.gate.Waiting() > 0 || w.c.shared != nil && w.c.o.Shared.Stats().Breaker > 0
}

func (w *warming[K, V]) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	}
}

// note takes in what a load took. While loads are slow it rests, longer each time.
func (w *warming[K, V]) note(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch full, slow := w.tempo.note(took); {
	case slow:
		w.rest = min(max(2*w.rest, restLeast), restMost)
		w.resume = time.Now().Add(w.rest)
	case full:
		w.rest = 0
	}
}

// count counts a key of a batch, as one of n.
func (w *warming[K, V]) count(b *openBatch, n *uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
	b.left--
	for len(w.open) > 0 && w.open[0].left == 0 {
		w.report.Done += uint64(w.open[0].keys) //nolint:gosec // never negative
		w.open = w.open[1:]
	}
}

func (w *warming[K, V]) failed(b *openBatch, err error) {
	w.count(b, &w.report.Failed)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) < warmErrors {
		w.errs = append(w.errs, err)
	}
}

// passed counts a key that is passed over.
func (w *warming[K, V]) passed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.Done++
}

// soFar is the report of this moment.
func (w *warming[K, V]) soFar() WarmReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	report := w.report
	report.Took = time.Since(w.begun)
	return report
}

// tell tells Progress, if that is due.
func (w *warming[K, V]) tell(last bool) {
	now := time.Now()
	if w.o.Progress == nil || !last && now.Sub(w.told) < warmTold {
		return
	}
	w.told = now
	w.o.Progress(w.soFar())
}

// tempo compares what loads take with the best of times, which it forgets as loads stay slow: the first rows may have lain in the database's memory,
// and a Warm that waited for those times would crawl to its end. The zero value has seen none.
type tempo struct {
	took []time.Duration
	best time.Duration // the least ninth tenth of any twenty loads, and more for each twenty that were slow since
}

// note reports, of every twenty loads once (full), whether nine of ten took far longer than at the best.
func (t *tempo) note(took time.Duration) (full, slow bool) {
	if t.took = append(t.took, took); len(t.took) < tempoLoads {
		return false, false
	}
	slices.Sort(t.took)
	most := t.took[len(t.took)*9/10]
	t.took = t.took[:0]
	if t.best == 0 || most < t.best {
		t.best = most
	}
	slow = most > slowFactor*t.best && most > t.best+slowLeast
	if slow {
		t.best += max(t.best, slowLeast) / slowGrowth
	}
	return true, slow
}

// gaveWay marks err where it refuses a load that could have waited.
func gaveWay(class rebuild.Class, err error) error {
	if class >= rebuild.Refresh && turnedAway(err) {
		return fmt.Errorf("%w: %w", errGaveWay, err)
	}
	return err
}
