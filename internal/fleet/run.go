package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/tiercache/tiercache"
)

// site is where a plan is played.
type site interface {
	// open returns a new process in a slot.
	open(slot int, o tiercache.Options[string, string]) (*process, error)
	// watch has the record told of what runs in Redis, where that can be seen.
	watch(h *History)
	// kill cuts off the process in a slot for good.
	kill(slot int)
	// strike makes a fault happen, of the network or the server; key is the value key that it is about. heal ends it.
	strike(f Fault, key string) (heal func())
	// look calls f for every value that Redis holds of a cache; left is what is left of a key's life, 0: it has no end. Keys that hold no value are
	// shown with it too.
	look(name string, f func(key, raw string, left time.Duration))
}

// run is a plan being played.
type run struct {
	plan *Plan
	site site
	h    *History
	db   *model
	name string

	mu    sync.Mutex
	slots []*process
	all   []*process

	sets map[string]chan struct{} // room for one: two Sets of a key may reach Redis in the other order than their commits
}

// patience is how long a run waits for what comes by itself: longer than all that the library takes to notice and to mend. Chosen.
const patience = 30 * time.Second

// play plays a plan and returns what happened. An error says that it could not be played.
func play(p *Plan, s site, name string) (h *History, err error) {
	h = newHistory()
	r := &run{plan: p, site: s, h: h, name: name, sets: map[string]chan struct{}{}}
	s.watch(h)
	r.db = newModel(r.h, p.lag(), p.Keys, p.absentAtFirst)
	for _, key := range p.Keys {
		r.sets[key] = make(chan struct{}, 1)
	}
	r.slots = make([]*process, p.Processes)
	defer func() { err = errors.Join(err, r.end()) }()
	for slot := range r.slots {
		if err := r.start(slot); err != nil {
			return nil, err
		}
	}
	r.act()
	r.rest()
	r.lastReads()
	return r.h, nil
}

// start begins a new process in a slot.
func (r *run) start(slot int) error {
	o := tiercache.Options[string, string]{
		Name: r.name, MemoryBytes: 1 << 20, TTL: r.plan.TTL, MemoryTTL: r.plan.MemoryTTL, AbsentTTL: r.plan.AbsentTTL, MaxStale: r.plan.MaxStale,
		Jitter: r.plan.Jitter, DeleteWindow: r.plan.Window, LoadTimeout: r.plan.LoadTime, LeaseTime: r.plan.LeaseTime,
	}
	var p *process
	o.Load = func(ctx context.Context, key string) (string, error) { return r.load(ctx, p, key) }
	if r.plan.Batched {
		o.LoadMany = func(ctx context.Context, keys []string) (map[string]string, error) { return r.loadMany(ctx, p, keys) }
	}
	opened, err := r.site.open(slot, o)
	if err != nil {
		return err
	}
	p = opened
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[slot] = p
	r.all = append(r.all, p)
	p.number = len(r.all)
	return nil
}

// in is the process that is in a slot now.
func (r *run) in(slot int) *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slots[slot]
}

// act plays the operations, each on a goroutine of its own, and returns when all have ended.
func (r *run) act() {
	var ops sync.WaitGroup
	for _, f := range r.plan.Faults {
		ops.Go(func() { r.befall(f) })
	}
	for _, o := range r.plan.Ops {
		ops.Go(func() {
			time.Sleep(o.At)
			r.do(o)
		})
	}
	ops.Wait()
}

// rest waits until the fleet has come to rest: what is queued was replayed, all hear the bus, and the last delete window is over.
func (r *run) rest() {
	calm := func() bool {
		for _, p := range r.living() {
			if p.cache.Stats().Pending > 0 || !p.hears.Load() {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(patience); !calm() || !r.exchange(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			for _, p := range r.living() {
				if n := p.cache.Stats().Pending; n > 0 {
					r.h.breach("P7", "process %d still has %d pending invalidations %v after the last fault", p.number, n, patience)
				} else {
					r.h.breach("P5", "process %d does not hear the others %v after the last fault (the bus at all: %v, events: %d)", p.number, patience,
						p.hears.Load(), p.cache.Stats().Events)
				}
			}
			break
		}
	}
	time.Sleep(r.plan.Window + r.plan.Lag + r.plan.WriteBudget)
	for _, t := range r.h.Troubles {
		if t.Kind == TroubleBus || t.Kind == TroubleBack { // until then what was missed, or taken back, may not have been noticed
			time.Sleep(time.Until(r.h.began.Add(t.To)))
		}
	}
}

// exchange has every process tell the others something and reports whether all have heard all of it. What was published before has then
// arrived too.
func (r *run) exchange() bool {
	living := r.living()
	heard := make([]uint64, len(living))
	for i, p := range living {
		heard[i] = p.cache.Stats().Events + uint64(len(living)) - 1 //nolint:gosec // a handful
	}
	for _, p := range living {
		if p.cache.Invalidate(p.ctx, "~rest") != nil {
			return false
		}
	}
	for range 200 {
		all := true
		for i, p := range living {
			all = all && p.cache.Stats().Events >= heard[i]
		}
		if all {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// living are the processes that have not died.
func (r *run) living() (alive []*process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.all {
		if p.alive() {
			alive = append(alive, p)
		}
	}
	return alive
}

// lastReads has every process asked for every key, and looks into Redis.
func (r *run) lastReads() {
	for _, p := range r.living() {
		for _, key := range r.plan.Keys {
			r.get(p, Op{Keys: []string{key}, Last: true})
		}
	}
	r.look(true)
}

// end closes what was opened.
func (r *run) end() error {
	var errs []error
	for _, p := range r.all {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// load is every cache's loader.
func (r *run) load(ctx context.Context, p *process, key string) (string, error) {
	l := r.h.load(p.number, key)
	before, after := r.plan.pauses(l.ID)
	if mode := r.plan.failsAt(key, l.Begin.At); mode != "" {
		defer r.h.loaded(l, Commit{}, true)
		return "", fail(ctx, mode, before, 2*r.plan.LoadTime)
	}
	row, err := Commit{}, nap(ctx, before)
	if err == nil {
		row = r.db.read(key)
		err = nap(ctx, after)
	}
	r.h.loaded(l, row, err != nil)
	switch {
	case err != nil:
		return "", err
	case row.Absent:
		return "", tiercache.ErrNotFound
	}
	return value(row, fmt.Sprintf("L%d", l.ID)), nil
}

// loadMany is every cache's loader of many keys: it reads them at different moments, and fails if one of them does.
func (r *run) loadMany(ctx context.Context, p *process, keys []string) (rows map[string]string, err error) {
	loads, read := make([]*Load, len(keys)), make([]Commit, len(keys))
	mode := SourceMode("")
	for i, key := range keys {
		loads[i] = r.h.load(p.number, key)
		mode = cmp.Or(mode, r.plan.failsAt(key, loads[i].Begin.At))
	}
	failed := true
	defer func() {
		for i, l := range loads {
			r.h.loaded(l, read[i], failed)
		}
	}()
	before, after := r.plan.pauses(loads[0].ID)
	if mode != "" {
		return nil, fail(ctx, mode, before, 2*r.plan.LoadTime)
	}
	rows = map[string]string{}
	for i, key := range keys {
		if err := nap(ctx, before/time.Duration(len(keys))); err != nil {
			return nil, err
		}
		if read[i] = r.db.read(key); !read[i].Absent {
			rows[key] = value(read[i], fmt.Sprintf("L%d", loads[i].ID))
		}
	}
	err = nap(ctx, after)
	failed = err != nil
	return rows, err
}

// fail is what a load ends with that fails.
func fail(ctx context.Context, mode SourceMode, after, slow time.Duration) error {
	if mode == SourceSlow {
		after = slow
	}
	if err := nap(ctx, after); err != nil {
		return err
	}
	switch mode {
	case SourcePanic:
		panic(errSource)
	case SourceGoexit:
		runtime.Goexit()
	case SourceError, SourceSlow:
	}
	return errSource
}

// nap waits for d, or until ctx ends.
func nap(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
