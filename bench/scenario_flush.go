package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

// The flush: Redis holds every row, the source is idle, and FLUSHALL takes all of it away under a load of five times what the source can
// do. Four processes, clients that wait for half a second, keys by Zipf 0.9. What decides is whether work is wasted (a query whose
// caller has left and whose row is kept nowhere makes the queue longer and the cache no fuller, and nothing ends that but less load) and
// whether the rows that are read most have a copy elsewhere. Memory of ours has room for a tenth of the rows, filled by traffic like that
// of the flush; without memory ours is shown too. The source needs 200 s for all rows, and 72 s for as many, drawn by the traffic, as
// leave it no more misses than it can do: who answers nothing but what was loaded since cannot be back sooner.
//
// Rivals are measured one after the other, each with a source and a load of its own and the same seeds.
//
// What misleads: the source never slows down under its queue, which flatters whoever lets one grow. The generator, Redis and all
// instances share the processors; the rate is chosen so that they are not what is short.

const (
	flushAt       = 3 // s after the load begins
	flushWorkers  = 2
	flushService  = 8 * time.Millisecond
	flushDeadline = 500 * time.Millisecond
	flushGate     = 2 // loads of one process: four times the workers in the fleet
	flushFactor   = 5 // load over capacity
)

func flush(ctx context.Context, e *env) ([]Row, error) {
	var rows []Row
	keys := pick(e, 50_000, 2_000)
	for i, r := range append([]rival{ours(flushGate, keys/10)}, rivals(flushGate)...) {
		more, err := flushOne(ctx, e, r, keys, i == 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// flushOne measures one rival; budgets are for ours.
func flushOne(ctx context.Context, e *env, r rival, keys int, budgets bool) (_ []Row, err error) {
	src := newSource(sourceOptions{workers: flushWorkers, mean: flushService, spread: 0.5, seed: 1})
	defer src.close()
	fleet, err := openFleet(ctx, r, e.server.addr, "flush-"+r.name, src)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fleet.close()) }()
	rdb := redis.NewClient(&redis.Options{Addr: e.server.addr})
	defer rdb.Close() //nolint:errcheck // its one command is checked

	lasts, popular := pick(e, 70*time.Second, 12*time.Second), zipf(keys, 0.9)
	name := func(i int) string { return fmt.Sprint("row-", i) }
	if err := fleet.fill(ctx, keys, name); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(3, 0)) //nolint:gosec // a workload, not a secret
	before := make([]int, 4*keys)
	for i := range before {
		before[i] = popular.draw(random)
	}
	if err := fleet.fill(ctx, len(before), func(i int) string { return name(before[i]) }); err != nil { // so that memory keeps what is read most
		return nil, err
	}
	src.reset()
	flushed := make(chan error, 1)
	time.AfterFunc(flushAt*time.Second, func() { flushed <- rdb.FlushAll(ctx).Err() })
	traffic := load{rate: flushFactor * src.capacity(), lasts: lasts, deadline: flushDeadline, keys: popular, seed: 2}
	out := traffic.run(ctx, func(ctx context.Context, key int) error { return fleet.get(ctx, name(key)) })
	steps, count := src.perSecond(), src.stats()
	if err := errors.Join(<-flushed, context.Cause(ctx)); err != nil {
		return nil, err
	}
	if errors.Is(out.all.firstError, errWrongRow) {
		return nil, out.all.firstError
	}
	if before := out.second[1]; budgets && before.failed > 0 {
		e.say("  before the flush already %d requests failed: %v\n", before.failed, before.firstError)
	}
	flushSeries(e, r.name, budgets, out, steps)
	return flushRows(r, budgets, out, count, src), nil
}

func flushRows(r rival, ours bool, out *seen, count sourceStats, src *source) []Row {
	within, queued := budget{}, budget{}
	if ours {
		within, queued = atMost(60), atMost(fleetSize*flushGate)
	}
	good := valueRow(r.name+": 99 % goodput again after", float64(max(out.goodFrom(0.99)-flushAt, 0)), "s", within, r.setup)
	if out.goodFrom(0.99) == len(out.second) {
		if ours {
			within = atLeast(1)
		}
		good = valueRow(r.name+": times 99 % goodput again", 0, "", within, fmt.Sprintf("not within the %d s of the run after the flush; %s", len(out.second)-flushAt, r.setup))
	}
	failed := 100 * (1 - out.all.share())
	return []Row{
		good,
		valueRow(r.name+": requests that failed", failed, "%", budget{}, fmt.Sprintf("of %d, %.0f/s; deadline %v", out.all.ok+out.all.failed, flushFactor*src.capacity(), flushDeadline)),
		valueRow(r.name+": queries at the source at once, most", float64(count.peakQueue+count.peakRunning), "", queued, src.String()),
		valueRow(r.name+": queries whose caller had left", float64(count.abandoned), "", budget{}, fmt.Sprintf("of %d", count.loads)),
	}
}

// flushSeries hands goodput and the source's queue to the pictures.
func flushSeries(e *env, name string, first bool, out *seen, steps []sourceStep) {
	goodput := Series{Subject: name, What: "goodput", Unit: "% answered in time", XUnit: "s"}
	for i, share := range out.goodput() {
		goodput.add(float64(i), 100*share)
	}
	queue := Series{Subject: name, What: "queue", Unit: "queries waiting (log)", XUnit: goodput.XUnit, Log: true}
	loads := Series{Subject: name, What: "loads", Unit: "queries done per second", XUnit: goodput.XUnit}
	for i, s := range steps[:min(len(steps), len(out.second))] {
		queue.add(float64(i), float64(s.peakQueue))
		loads.add(float64(i), float64(s.done))
	}
	e.plot(goodput, queue, loads)
	if first {
		e.plot(goodput.momentAt(flushAt, "FLUSHALL"), queue.momentAt(flushAt, "FLUSHALL"), loads.momentAt(flushAt, "FLUSHALL"))
	}
}
