package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// The stampede: a key on every page is gone, and 1,000 readers ask for it at the same moment, over four instances with a client each. Its
// row takes 50 ms of a source with eight workers, so what a cache does not hold back queues there, and its readers wait for the queue. Ours,
// what is written by hand, and other libraries take turns, round by round. A round ends when the source is idle again.
//
// What misleads: all instances are in one process; the scenario cold has four real ones, for ours alone.

const (
	stampedeReaders = 1000
	stampedeWorkers = 8
	stampedeLoad    = 50 * time.Millisecond
)

func stampede(ctx context.Context, e *env) (_ []Row, err error) {
	src := newSource(sourceOptions{workers: stampedeWorkers, mean: stampedeLoad, seed: 1})
	defer src.close()
	all := append(rivals(stampedeWorkers), libraries()...)
	fleets := make([]*rivalFleet, len(all))
	for i, r := range all {
		if fleets[i], err = openFleet(ctx, r, e.server.addr, "stampede-"+r.name, src); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		defer func() { err = errors.Join(err, fleets[i].close()) }()
	}
	rounds := pick(e, 15, 2)
	loads, waits := make([][]float64, len(all)), make([][]float64, len(all))
	for round := -1; round < rounds; round++ { // the first one dials, and is not counted
		for turn := range all {
			i := (turn + round + 1) % len(all)
			n, wait, err := stampedeRound(ctx, fleets[i], src, fmt.Sprint("hot-", round))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", all[i].name, err)
			}
			if round >= 0 {
				loads[i], waits[i] = append(loads[i], n), append(waits[i], wait)
			}
		}
	}
	var rows []Row
	for i, r := range all {
		most := budget{}
		if i == 0 {
			most = atMost(1)
		}
		rows = append(rows,
			Row{What: r.name + ": loads, worst round", Value: slices.Max(loads[i]), Budget: most, Detail: r.setup, Rounds: loads[i]},
			Row{What: r.name + ": 99th percentile of the readers, median", Value: median(waits[i]), Unit: "ms", Low: quantile(waits[i], 0.1), High: quantile(waits[i], 0.9), Rounds: waits[i]})
		one := Series{Subject: r.name, What: "loads of one row in a stampede", Unit: "loads, worst round (log)", Log: true}
		one.add(0, slices.Max(loads[i]))
		other := Series{Subject: r.name, What: "what readers wait in a stampede", Unit: "ms, 99th percentile (log)", Log: true}
		other.add(0, median(waits[i]))
		e.plot(one, other)
	}
	return rows, nil
}

// stampedeRound has all readers ask at once, and returns the loads that this cost and the 99th percentile of what they waited, in ms.
func stampedeRound(ctx context.Context, f *rivalFleet, src *source, key string) (loads, wait float64, _ error) {
	src.reset()
	waits, failed := make([]float64, stampedeReaders), make([]error, stampedeReaders)
	open := make(chan struct{})
	var done sync.WaitGroup
	for i := range stampedeReaders {
		done.Go(func() {
			<-open
			began := time.Now()
			failed[i] = f.get(ctx, key)
			waits[i] = time.Since(began).Seconds() * 1e3
		})
	}
	close(open)
	done.Wait()
	for s := src.stats(); s.running+s.queue > 0 && ctx.Err() == nil; s = src.stats() {
		time.Sleep(time.Millisecond)
	}
	return float64(src.stats().loads), quantile(waits, 0.99), errors.Join(failed...)
}
