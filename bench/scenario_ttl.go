package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tiercache/tiercache"
)

// Mass expiry. A million keys are loaded within a minute into an empty cache, TTL ten minutes, and each is asked for again the moment it
// ends: the most that expiry can do to a source. What counts is the busiest second after the filling over the mean second: what a
// source must be able to carry over what it has to do.
//
// Two hours pass in virtual time (testing/synctest), which needs a test: the worker is one. So nothing here says how fast anything is. Keys that
// end within a twentieth of a second are asked for by one GetMany, since goroutines for each would only cost time.
//
// Only the first row has all the keys: the others would take as long each, and show the same.
//
// What misleads: real keys are not all asked for at once when they end, which flattens the wave for everybody; and one process without
// Redis stands for a fleet, in which a key is loaded by whoever asks first.

const (
	ttlLife = 10 * time.Minute
	ttlTick = 50 * time.Millisecond
)

// ttlPlan is one run of the worker.
type ttlPlan struct {
	Keys  int           `json:"keys"`
	Fill  time.Duration `json:"fill"`  // within which they are loaded first
	Until time.Duration `json:"until"` // how long it is watched
	Kind  string        `json:"kind"`  // "": as the library does it; "jitter": that alone; "none": neither
}

// ttlLoads is what the worker counted.
type ttlLoads struct {
	Seconds []int  `json:"seconds"` // keys loaded in each second
	Failed  string `json:"failed,omitempty"`
}

func ttlAvalanche(ctx context.Context, e *env) ([]Row, error) {
	keys := pick(e, 1_000_000, 20_000)
	long, short := pick(e, 2*time.Hour, time.Hour), 40*time.Minute
	var rows []Row
	for _, of := range []struct {
		what   string
		plan   ttlPlan
		budget budget
		curve  string
	}{
		{"a minute's filling: busiest second over the mean", ttlPlan{keys, time.Minute, long, ""}, atMost(1.5), "tiercache"},
		{"a second's filling (flush): the same", ttlPlan{keys / 5, time.Second, short, ""}, atMost(1.5), "tiercache, filled within a second"},
		{"a minute's filling, jitter without cold spread", ttlPlan{keys / 10, time.Minute, short, "jitter"}, budget{}, "jitter alone"},
		{"a minute's filling, neither", ttlPlan{keys / 10, time.Minute, short, "none"}, budget{}, "neither jitter nor cold spread"},
	} {
		if e.Quick { // with few keys chance alone makes a busiest second
			of.budget = budget{}
		}
		loads, err := ttlWork(ctx, of.plan)
		if err != nil {
			return nil, err
		}
		e.plot(loads.perMinute(of.curve, of.plan.Keys))
		peak, mean, total := loads.afterFilling(of.plan.Fill)
		rows = append(rows, valueRow(of.what, peak/mean, "x", of.budget,
			fmt.Sprintf("%.0f against %.0f loads/s; %.2f loads a key in %v; %d keys", peak, mean, total/float64(of.plan.Keys), of.plan.Until, of.plan.Keys)))
	}
	return rows, nil
}

// ttlWork has a worker play one plan.
func ttlWork(ctx context.Context, p ttlPlan) (loads ttlLoads, err error) {
	w, err := startWorker(ctx, "ttl", "")
	if err != nil {
		return loads, err
	}
	if err = w.ask(p, &loads); err != nil {
		return loads, err
	}
	if loads.Failed != "" {
		return loads, fmt.Errorf("ttl: %s", loads.Failed)
	}
	return loads, w.stop()
}

// perMinute is the picture's curve: a second's loads would be too many points.
func (l ttlLoads) perMinute(subject string, keys int) Series {
	s := Series{Subject: subject, What: "loads", Unit: "% of the keys loaded in a minute", XUnit: "minutes of virtual time, all keys loaded first in minute 0, TTL 10"}
	for i := 0; i < len(l.Seconds); i += 60 {
		sum := 0
		for _, n := range l.Seconds[i:min(i+60, len(l.Seconds))] {
			sum += n
		}
		s.add(float64(i/60), 100*float64(sum)/float64(keys))
	}
	return s
}

// afterFilling returns the busiest and the mean second behind the filling, and all loads.
func (l ttlLoads) afterFilling(fill time.Duration) (peak, mean, total float64) {
	from := int(fill / time.Second)
	for i, n := range l.Seconds {
		total += float64(n)
		if i >= from {
			mean += float64(n)
			peak = max(peak, float64(n))
		}
	}
	return peak, mean / float64(len(l.Seconds)-from), total
}

// ttlWorker plays one plan in virtual time. The test that it is for that ends the process.
func ttlWorker(_ context.Context, _ string, l *line) error {
	var p ttlPlan
	if err := l.hear(&p); err != nil {
		return err
	}
	testing.Init()
	os.Args = os.Args[:1] // they are no flags of a test
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "ttl", F: func(t *testing.T) {
		var loads ttlLoads
		synctest.Test(t, func(*testing.T) {
			var err error
			if loads.Seconds, err = p.play(); err != nil {
				loads.Failed = err.Error()
			}
		})
		if err := l.say(loads); err != nil {
			t.Error(err)
		}
	}}}, nil, nil)
	return nil
}

// options are those of a cache that makes lives as the plan's kind says.
func (p ttlPlan) options() tiercache.Options[uint32, uint32] {
	o := tiercache.Options[uint32, uint32]{Name: "ttl", TTL: ttlLife, MaxStale: -1, MemoryBytes: int64(p.Keys+1000) * 1000}
	if p.Kind != "" {
		o.Jitter = -1
	}
	if p.Kind == "jitter" {
		o.TTLFor = func(uint32, uint32) time.Duration { return time.Duration(float64(ttlLife) * (1 - 0.1*rand.Float64())) }
	}
	return o
}

// play returns how many keys were loaded in each second.
func (p ttlPlan) play() ([]int, error) {
	begun := time.Now()
	seconds := make([]int, p.Until/time.Second)
	o := p.options()
	o.LoadMany = func(_ context.Context, keys []uint32) (map[uint32]uint32, error) {
		seconds[time.Since(begun)/time.Second] += len(keys)
		rows := make(map[uint32]uint32, len(keys))
		for _, key := range keys {
			rows[key] = key
		}
		return rows, nil
	}
	c, err := tiercache.New(o)
	if err != nil {
		return nil, err
	}
	due := make([][]uint32, p.Until/ttlTick)
	for key := range p.Keys {
		at := int(p.Fill/ttlTick) * key / p.Keys
		due[at] = append(due[at], uint32(key)) //nolint:gosec // small
	}
	for tick := range due {
		time.Sleep(time.Until(begun.Add(time.Duration(tick) * ttlTick)))
		if err := p.ask(c, begun, due, tick); err != nil {
			return nil, err
		}
		due[tick] = nil
	}
	return seconds, c.Close()
}

// ask gets the keys of one tick, which have ended, and puts each where it ends again.
func (p ttlPlan) ask(c *tiercache.Cache[uint32, uint32], begun time.Time, due [][]uint32, tick int) error {
	ctx := context.Background()
	for keys := due[tick]; len(keys) > 0; {
		some := keys[:min(len(keys), 1000)]
		keys = keys[len(some):]
		if _, err := c.GetMany(ctx, some); err != nil {
			return err
		}
		for _, key := range some {
			e, err := c.GetEntry(ctx, key)
			if err != nil {
				return err
			}
			if e.Tier != tiercache.Memory {
				return fmt.Errorf("memory has lost key %d", key)
			}
			next := max(tick+1, int((time.Since(begun)+e.FreshFor+ttlTick-1)/ttlTick))
			if next < len(due) {
				due[next] = append(due[next], key)
			}
		}
	}
	return nil
}
