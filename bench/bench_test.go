package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary be its own worker, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == WorkerFlag {
		if err := Work(context.Background(), os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The yardstick answers every caller with the value of its own key, whatever shares the batch.
func TestBatcherAnswersEachCallerWithItsKey(t *testing.T) {
	server := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close() //nolint:errcheck // a test's own server
	for i := range 100 {
		require.NoError(t, server.Set(fmt.Sprint("k", i), fmt.Sprint("v", i)))
	}
	b := &batcher{rdb: rdb}
	var done sync.WaitGroup
	for worker := range 64 {
		done.Go(func() {
			for i := range 50 {
				n := (worker*31 + i) % 110 // ten of them absent
				want := fmt.Sprint("v", n)
				if n >= 100 {
					want = ""
				}
				if got, err := b.get(fmt.Sprint("k", n)); err != nil || got != want {
					t.Errorf("get(k%d) = %q, %v; want %q", n, got, err, want)
				}
			}
		})
	}
	done.Wait()
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.flushers == 0
	}, 10*time.Second, time.Millisecond, "flushers go on with nothing to send")

	server.SetError("broken")
	_, err := b.get("k1")
	require.ErrorContains(t, err, "broken", "every caller gets its batch's error")
}

// Every subject is measured once a round, each round begins with another, and the first one is not counted.
func TestInterleaveRotates(t *testing.T) {
	var mu sync.Mutex
	var order []string
	note := func(name string) subject {
		return subject{name, func(int, int) {
			mu.Lock()
			defer mu.Unlock()
			if len(order) == 0 || order[len(order)-1] != name {
				order = append(order, name)
			}
		}}
	}
	all, err := interleave(t.Context(), plan{rounds: 2, slice: time.Millisecond, workers: 2, chunk: 1}, note("a"), note("b"), note("c"))
	require.NoError(t, err)
	require.Equal(t, "abc"+"bca"+"cab", strings.Join(order, ""))
	for _, s := range all {
		require.Len(t, s.ns, 2)
		require.Positive(t, s.ops)
	}
	require.Equal(t, "b", all[1].name)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = interleave(ctx, plan{rounds: 2, slice: time.Hour, workers: 1, chunk: 1}, note("a"))
	require.ErrorIs(t, err, context.Canceled)
}

// A budget is judged at its own edge, and quantiles are of the values, not of their order.
func TestVerdictsAndQuantiles(t *testing.T) {
	require.Equal(t, "OK", atMost(1).verdict(1))
	require.Equal(t, "MISSED", atMost(1).verdict(1.001))
	require.Equal(t, "OK", atLeast(2).verdict(2))
	require.Equal(t, "MISSED", atLeast(2).verdict(1.999))
	require.Empty(t, budget{}.verdict(7))

	values := []float64{5, 1, 4, 2, 3}
	require.InDelta(t, 3, median(values), 0)
	require.InDelta(t, 2.5, median([]float64{4, 1, 2, 3}), 0)
	require.InDelta(t, 5, quantile(values, 1), 0)
	require.InDelta(t, 1, quantile(values, 0.1), 0)
	require.Zero(t, median(nil))
	require.Equal(t, []float64{0.5, 3}, over(series{ns: []float64{1, 6}}, series{ns: []float64{2, 2}}))
}

// What is written can be read back, and the page has every row of a scenario, its verdict, and why another was skipped.
func TestReportIsWrittenAsPageAndJSON(t *testing.T) {
	r := &Report{
		Began: time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC), Scenarios: []string{"memory", "redis"}, Environment: map[string]string{"go": "go1.26"},
		Skipped: map[string]string{"redis": "no redis-server"},
		Rows:    []Row{{Scenario: "memory", What: "a hit", Value: 0.5, Unit: "x", Low: 0.4, High: 0.6, Budget: atMost(0.7), Verdict: "OK", Rounds: []float64{0.5}}},
	}
	path, err := r.write(t.TempDir())
	require.NoError(t, err)
	require.Equal(t, "2026-11-24-go1.26-memory-redis.md", filepath.Base(path))
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(page), "| a hit | × 0.5 (0.4–0.6) | ≤ 0.7 | OK |")
	require.Contains(t, string(page), "Skipped: no redis-server")
	raw, err := os.ReadFile(strings.TrimSuffix(path, ".md") + ".json")
	require.NoError(t, err)
	var back Report
	require.NoError(t, json.Unmarshal(raw, &back))
	require.Equal(t, r.Rows, back.Rows)
}

// A name that is no scenario's is an error that lists those there are, before anything runs.
func TestRunNamesTheScenarios(t *testing.T) {
	var log bytes.Buffer
	_, err := Run(t.Context(), Options{Scenarios: []string{"memory", "cod"}, Log: &log})
	require.ErrorContains(t, err, `"cod"`)
	require.ErrorContains(t, err, strings.Join(Names(), ", "))
	require.Empty(t, log.String())
}

// What a client sends is counted by the server's own word; what a script does inside it is not.
func TestMonitorCountsWhatIsSent(t *testing.T) {
	server, err := startServer(t.Context())
	if err != nil {
		t.Skipf("nothing is monitored: %v", err)
	}
	defer server.stop()
	watch, err := startMonitor(t.Context(), server.addr)
	require.NoError(t, err)
	defer watch.stop()
	rdb := redis.NewClient(&redis.Options{Addr: server.addr})
	defer rdb.Close() //nolint:errcheck // a test's own server
	require.NoError(t, rdb.Set(t.Context(), "a:{k}", "lua] \"x", 0).Err())
	require.NoError(t, rdb.Eval(t.Context(), `return redis.call("GET", KEYS[1])`, []string{"a:{k}"}).Err())
	require.ErrorIs(t, rdb.Get(t.Context(), "a:{other}").Err(), redis.Nil)
	require.NoError(t, watch.settle(t.Context()))
	require.Equal(t, []string{"set", "eval"}, watch.sent("{k}"))
}

// The counts of a quick run hold on any machine: one load for a cold key in four processes, one round trip for a batch of hits.
func TestQuickRunCounts(t *testing.T) {
	var log bytes.Buffer
	r, err := Run(t.Context(), Options{Quick: true, Scenarios: []string{"cold", "many"}, Log: &log})
	require.NoError(t, err)
	if len(r.Skipped) > 0 {
		t.Skipf("nothing was run: %v", r.Skipped)
	}
	got := map[string]Row{}
	for _, row := range r.Rows {
		got[row.What] = row
	}
	for _, what := range []string{"loads, worst round", "round trips, 64 hits", "load calls, 64 misses"} {
		require.Equal(t, "OK", got[what].Verdict, "%s: %v", what, got[what])
	}
}
