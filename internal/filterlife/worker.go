package filterlife

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/layers"
)

// Spec is what a process is told at its start.
type Spec struct {
	Cache  string        // address of the caches' Redis
	Source string        // address of the source
	Name   string        // of the cache, and of the set of rows
	Number int           // of this process
	Every  time.Duration // between two inserts of this process
	Began  time.Time     // of the play
	Step   time.Duration // of its course; 0: none is kept
	Rows   uint64        // the filter's capacity
	Form   bloom.Form    // where its bits are
}

// order is what a process is told to do. Each is answered by one Answer.
type order struct {
	Do     string // begin, hold, heard, go, build, release, built, look, end, course
	Heard  uint64 // heard: waits until so many announcements were heard, this process's own among them, or a gap in them was
	PerSec int    // build: rows a second; 0: no limit
	Held   bool   // build: the scan does not end before release
}

// Answer is what a process has done and seen.
type Answer struct {
	Inserted uint64        // rows announced and committed
	Asked    uint64        // questions for committed rows
	Wrong    uint64        // of these, answered "not found"
	First    string        // the first wrong answer
	Failed   uint64        // of these, answered by an error
	Absent   uint64        // questions for rows that there never were
	Passing  time.Duration // time in which the filter let everything pass
	Free     time.Duration // time in which rows could be inserted and asked for
	Course   []Step        // to the order course alone; the questions for all rows at the end are not in it, wrong answers to them are
	Error    string        // of a build
	Took     time.Duration // by a build
	Stats    tiercache.Stats
}

// process is one process of the fleet.
type process struct {
	spec   Spec
	cache  *tiercache.Cache[string, string]
	source *redis.Client

	holding sync.RWMutex  // held while nothing may be inserted or asked; shared by an insert and a question
	since   time.Time     // of begin, or the last go; zero while it is held
	free    time.Duration // before since
	heard   atomic.Uint64
	gaps    uint64 // in what is heard, before begin
	loops   sync.WaitGroup
	build   chan Answer
	release chan struct{} // has a held scan end

	inserted, asked, wrong, failed, absent atomic.Uint64
	passing                                atomic.Int64
	first                                  atomic.Pointer[string]
	course                                 course
}

// Work is the life of one process: it does what it is told on in, and answers on out. It ends when in does.
func Work(ctx context.Context, spec string, in *json.Decoder, out *json.Encoder) error {
	p := &process{build: make(chan Answer, 1), release: make(chan struct{}, 1)}
	if err := json.Unmarshal([]byte(spec), &p.spec); err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	p.course.began, p.course.step = p.spec.Began, p.spec.Step
	p.source = redis.NewClient(&redis.Options{Addr: p.spec.Source})
	defer p.source.Close() //nolint:errcheck // the process ends
	rdb := redis.NewClient(&redis.Options{Addr: p.spec.Cache, ContextTimeoutEnabled: true})
	defer rdb.Close() //nolint:errcheck // as above
	var budgets layers.RedisOptions
	if p.spec.Form == bloom.InRedis { // whose build ends with the first call that is too late, which proves nothing
		budgets.ReadTimeout, budgets.WriteTimeout = 20*time.Second, 20*time.Second
	}
	shared, err := layers.NewRedis(ctx, rdb, budgets)
	if err != nil {
		return err
	}
	defer shared.Close() //nolint:errcheck // as above
	if err := p.open(shared); err != nil {
		return err
	}
	defer p.cache.Close() //nolint:errcheck // as above
	ctx, cancel := context.WithCancel(ctx)
	defer p.loops.Wait()
	defer cancel()
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("filterlife: %w", err)
		}
		a, err := p.do(ctx, o)
		if err != nil {
			return err
		}
		if err := out.Encode(a); err != nil {
			return fmt.Errorf("filterlife: %w", err)
		}
	}
}

func (p *process) open(shared *layers.Redis) (err error) {
	p.cache, err = tiercache.New(tiercache.Options[string, string]{
		Name: p.spec.Name, Shared: shared,
		Load: func(ctx context.Context, key string) (string, error) {
			switch there, err := p.source.SIsMember(ctx, p.spec.Name, key).Result(); {
			case err != nil:
				return "", err
			case !there:
				return "", tiercache.ErrNotFound
			}
			return "row", nil
		},
		LoadMany: func(ctx context.Context, keys []string) (map[string]string, error) { // for the questions at the end, of all rows
			there, err := p.source.SMIsMember(ctx, p.spec.Name, members(keys)...).Result()
			rows := make(map[string]string, len(keys))
			for i, is := range there {
				if is {
					rows[keys[i]] = "row"
				}
			}
			return rows, err
		},
		Filter: bloom.Options{Capacity: p.spec.Rows, FalsePositiveRate: 1e-3, Form: p.spec.Form}, FilterAudit: -1,
		MemoryTTL: -1, AbsentTTL: -1, TTLFor: func(string, string) time.Duration { return -1 },
		Breaker: noBreaker, LoadTimeout: time.Minute,
		Hooks: &tiercache.Hooks{Invalidated: func(uint64, bool) { p.heard.Add(1) }},
	})
	return err
}

func members(keys []string) []any {
	out := make([]any, len(keys))
	for i, key := range keys {
		out[i] = key
	}
	return out
}

// do carries out one order.
func (p *process) do(ctx context.Context, o order) (Answer, error) {
	switch o.Do {
	case "begin":
		for i := range inserters {
			p.loops.Go(func() { p.insert(ctx, i) })
		}
		for _, loop := range []func(context.Context){p.ask, p.askAbsent, p.watch} {
			p.loops.Go(func() { loop(ctx) })
		}
		p.since, p.gaps = time.Now(), p.cache.Stats().BusGaps
	case "hold":
		p.holding.Lock()
		p.free, p.since = p.free+time.Since(p.since), time.Time{}
	case "go":
		p.since = time.Now()
		p.holding.Unlock()
	case "heard":
		// Who was stopped for long, or stood still for want of a processor, has lost its subscription and what was sent meanwhile.
		for end := time.Now().Add(patience); p.heard.Load() < o.Heard && p.cache.Stats().BusGaps == p.gaps && ctx.Err() == nil; {
			if time.Now().After(end) {
				return Answer{}, fmt.Errorf("filterlife: %d announcements of %d were heard", p.heard.Load(), o.Heard)
			}
			time.Sleep(time.Millisecond)
		}
	case "build":
		go func() {
			report, err := p.cache.BuildFilter(ctx, p.scan(ctx, o.Held), bloom.BuildOptions{RowsPerSecond: o.PerSec})
			a := Answer{Took: report.Took}
			if err != nil {
				a.Error = err.Error()
			}
			p.build <- a
		}()
	case "release":
		p.release <- struct{}{}
	case "built":
		a := <-p.build
		select {
		case <-p.release: // the scan had ended before
		default:
		}
		return a, nil
	case "look":
	case "course":
		return Answer{Course: p.course.all()}, nil
	case "end":
		return p.look(), p.askAll(ctx)
	default:
		return Answer{}, fmt.Errorf("filterlife: unknown order %q", o.Do)
	}
	return p.look(), nil
}

func (p *process) look() Answer {
	a := Answer{
		Inserted: p.inserted.Load(), Asked: p.asked.Load(), Wrong: p.wrong.Load(), Failed: p.failed.Load(), Absent: p.absent.Load(),
		Passing: time.Duration(p.passing.Load()), Free: p.free, Stats: p.cache.Stats(),
	}
	if !p.since.IsZero() {
		a.Free += time.Since(p.since)
	}
	if first := p.first.Load(); first != nil {
		a.First = *first
	}
	return a
}

// scan gives every row of the source; one that is inserted meanwhile perhaps. If it is held, it ends when it is released.
func (p *process) scan(ctx context.Context, held bool) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		rows := p.source.SScan(ctx, p.spec.Name, 0, "", 1000).Iterator()
		for rows.Next(ctx) {
			if !yield(rows.Val(), nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield("", err)
			return
		}
		if held {
			select {
			case <-p.release:
			case <-ctx.Done():
			}
		}
	}
}

// each runs f every so often, never while the process is held.
func (p *process) each(ctx context.Context, every time.Duration, f func()) {
	for tick := time.NewTicker(every); ctx.Err() == nil; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
		p.holding.RLock()
		f()
		p.holding.RUnlock()
	}
}

// inserters are the goroutines of a process that insert: a row takes an announcement, a commit and a question, one after the other, and a process
// that waited for each would insert as many as the round trips let it. Chosen: with four, a filter in Redis was short of 1,000 a second.
const inserters = 8

// insert announces rows and commits them, and asks for each at once.
func (p *process) insert(ctx context.Context, inserter int) {
	n := 0
	p.each(ctx, inserters*p.spec.Every, func() {
		key := fmt.Sprintf("%d-%d-%d", p.spec.Number, inserter, n)
		if p.cache.Announce(ctx, key) != nil {
			return // not yet: it is announced again with the next tick
		}
		n++
		if p.source.SAdd(ctx, p.spec.Name, key).Err() != nil {
			return
		}
		p.inserted.Add(1)
		p.course.note(Step{Inserted: 1})
		p.question(ctx, key)
	})
}

// ask asks for rows that any process has committed.
func (p *process) ask(ctx context.Context) {
	p.each(ctx, time.Millisecond, func() {
		if key, err := p.source.SRandMember(ctx, p.spec.Name).Result(); err == nil {
			p.question(ctx, key)
		}
	})
}

// question asks for a row that was committed before.
func (p *process) question(ctx context.Context, key string) {
	_, err := p.cache.Get(ctx, key)
	p.asked.Add(1)
	p.course.note(Step{Asked: 1})
	switch {
	case errors.Is(err, tiercache.ErrNotFound):
		p.wrong.Add(1)
		p.course.note(Step{Wrong: 1})
		why := fmt.Sprintf("process %d: %s, %+v", p.spec.Number, key, p.cache.Stats())
		p.first.CompareAndSwap(nil, &why)
	case err != nil:
		p.failed.Add(1)
	}
}

// askAbsent asks for what there never was, so that it is seen that the filter says something.
func (p *process) askAbsent(ctx context.Context) {
	n := 0
	p.each(ctx, 5*time.Millisecond, func() {
		n++
		_, _ = p.cache.Get(ctx, "none-"+strconv.Itoa(n)) // "not found", or an error
		p.absent.Add(1)
	})
}

// watch adds up the time in which the filter lets everything pass.
func (p *process) watch(ctx context.Context) {
	last := time.Now()
	p.each(ctx, 5*time.Millisecond, func() {
		now := time.Now()
		if p.cache.Stats().FilterState != uint64(bloom.Believed) {
			p.passing.Add(int64(now.Sub(last)))
			p.course.note(Step{Passing: min(now.Sub(last), p.spec.Step)}) // one that was stopped or held let nothing pass
		}
		last = now
	})
}

// askAll asks for every row of the source.
func (p *process) askAll(ctx context.Context) error {
	rows, err := p.source.SMembers(ctx, p.spec.Name).Result()
	if err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	for len(rows) > 0 {
		some := rows[:min(1000, len(rows))]
		rows = rows[len(some):]
		found, err := p.cache.GetMany(ctx, some)
		if err != nil {
			p.failed.Add(1)
			continue
		}
		p.asked.Add(uint64(len(some)))
		if missing := len(some) - len(found); missing > 0 {
			p.wrong.Add(uint64(missing))
			p.course.note(Step{Wrong: uint64(missing)})
			why := "at the end " + strings.Join(some[:min(len(some), 3)], ", ")
			p.first.CompareAndSwap(nil, &why)
		}
	}
	return nil
}
