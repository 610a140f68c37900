package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tiercache/tiercache"
)

// longest is how long one measurement goes on starting requests, on a machine too slow for all of them.
const longest = 3 * time.Second

// row is one line of the table.
type row struct {
	what     string
	with     string
	requests int
	reads    int64 // of the database, by its own count
	p50      time.Duration
	p99      time.Duration
	most     time.Duration // the slowest request
	took     time.Duration
}

// measure has all callers begin at once, each with n requests one after the other, and adds a row to the report. That a product
// does not exist is an answer; any other error ends the measurement.
func (t *teller) measure(ctx context.Context, what, with string, n int, ask func(ctx context.Context, caller, i int) error) error {
	bar := t.note.step(what+", "+with, t.callers*n)
	var (
		asked     atomic.Int64
		latencies = make([][]time.Duration, t.callers)
		open      = make(chan struct{})
		reads     = t.shop.reads.Load()
	)
	all, ctx := errgroup.WithContext(ctx)
	for caller := range t.callers {
		latencies[caller] = make([]time.Duration, 0, n)
		all.Go(func() error {
			<-open
			end := time.Now().Add(longest)
			for i := 0; i < n && time.Now().Before(end); i++ {
				began := time.Now()
				err := ask(ctx, caller, i)
				latencies[caller] = append(latencies[caller], time.Since(began))
				if err != nil && !errors.Is(err, tiercache.ErrNotFound) && !errors.Is(err, sql.ErrNoRows) {
					return err
				}
				if done := asked.Add(1); done%100 == 0 {
					bar.set(int(done))
				}
			}
			return nil
		})
	}
	began := time.Now()
	close(open)
	if err := all.Wait(); err != nil {
		return fmt.Errorf("%s, %s: %w", what, with, err)
	}
	took := time.Since(began)
	bar.done()
	t.report.add(row{what: what, with: with, reads: t.shop.reads.Load() - reads, took: took}, slices.Concat(latencies...))
	return nil
}

// add completes r from the latency of every request and adds it.
func (r *report) add(line row, latencies []time.Duration) {
	slices.Sort(latencies)
	line.requests = len(latencies)
	line.p50 = quantile(latencies, 0.50)
	line.p99 = quantile(latencies, 0.99)
	line.most = quantile(latencies, 1)
	r.lines = append(r.lines, line)
}

// quantile returns the value that a fraction q of sorted do not exceed; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
