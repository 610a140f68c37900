package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Options of a run.
type Options struct {
	Quick     bool      // few short rounds and small tables: to see that all works
	Scenarios []string  // names; empty: all but the special ones
	Out       string    // folder of the result files; empty: none are written
	Log       io.Writer // tables as they are done
	Traces    string    // folder of recorded traces for the scenario traces; empty: made ones
}

// say tells what is done. A log that cannot be written has nobody to tell.
func (o Options) say(format string, args ...any) { _, _ = fmt.Fprintf(o.Log, format, args...) }

// scenario is one comparison. It returns its rows, or an error if the run cannot be believed: a subject that answered wrongly, a
// server that went away.
type scenario struct {
	name  string
	title string
	redis bool // needs a redis-server
	run   func(ctx context.Context, e *env) ([]Row, error)
}

var scenarios = []scenario{
	{"memory", "A hit in the local tier against ristretto's own Get; × is time over ristretto's: smaller is better.", false, memoryHit},
	{"redis", "A hit in the shared tier, memory off; × is throughput over another client's on the same keys: larger is better.", true, redisHit},
	{"cold", "One cold key, 4 processes × 50 callers at the same moment, a loader of 50 ms.", true, coldKey},
	{"many", "GetMany of 64 keys: round trips and load calls.", true, getMany},
	{"filter", "The filter's check against bits-and-blooms' own Test; × is time: smaller is better.", false, filterCheck},
	{"filterredis", "An absent key by a filter in Redis against the GET of a key that is not there; × is throughput: larger is better.", true, filterInRedis},
	{"filterlife", "Filters built during inserts in 4 processes, one of them stopped for a while, the stream trimmed, Redis flushed; of either form.", true, filterLife},
	{"ttl", "Loads a second when many keys were loaded at once, TTL 10 min, in virtual time: the busiest second over the mean, after the filling.", false, ttlAvalanche},
	{"flush", "FLUSHALL at a load of five times what the source can do, 4 processes whose memory has room for a tenth of the rows.", true, flush},
	{"stampede", "One row is gone and 1,000 readers in 4 instances ask for it at once: ours and other libraries.", true, stampede},
	{"penetration", "Nine of ten requests are for keys that do not exist, each asked for once, as fast as they go.", true, penetration},
	{"hot", "One key from nothing to half of all requests in 4 instances, while the other half thrashes their memory.", true, hotKey},
	{"locks", "A lock by name over processes: one that nobody else wants, and one that 32 callers of 4 processes want, each for 2 ms; ours and other libraries.", true, locks},
	{"event", "From Invalidate in one process to its event in another.", true, eventDelay},
	{"footprint", "Heap per entry in the local tier against ristretto's own; × is bytes: smaller is better.", false, footprint},
	{"traces", "What the local tier keeps of recorded requests; points of hit ratio against otter v2 on the same: larger is better.", false, keptOnTraces},
}

// special are the scenarios that only run where they are asked for: they take longer than all others together.
var special = []string{"traces", "ttl"}

// Names returns the names of all scenarios, in the order in which they run.
func Names() []string {
	names := make([]string, len(scenarios))
	for i, s := range scenarios {
		names[i] = s.name
	}
	return names
}

// usual are the scenarios of a run that names none.
func usual() []string {
	return slices.DeleteFunc(Names(), func(name string) bool { return slices.Contains(special, name) })
}

func title(name string) string {
	for _, s := range scenarios {
		if s.name == name {
			return s.title
		}
	}
	return ""
}

// env is what scenarios share.
type env struct {
	Options
	series []Series // what scenarios gave to be drawn
	server *server  // nil where no scenario of the run needs one, or none could be started
}

// plot gives curves to the report's pictures. Of the scenario that runs: Scenario is filled in.
func (e *env) plot(curves ...Series) { e.series = append(e.series, curves...) }

// pick returns full, or quick in a quick run.
func pick[T any](e *env, full, quick T) T {
	if e.Quick {
		return quick
	}
	return full
}

// plan returns the interleaving of this run for so many workers. Rounds: chosen so that the 10th and 90th percentile mean something;
// slices: reference runs showed short ones to beat long ones on a noisy machine.
func (e *env) plan(workers, chunk int) plan {
	return plan{rounds: pick(e, 25, 5), slice: pick(e, 40*time.Millisecond, 10*time.Millisecond), workers: workers, chunk: chunk}
}

// Run runs the scenarios one after the other and writes the result files. A scenario that fails does not stop the others; its error is
// in what Run returns beside the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if len(o.Scenarios) == 0 {
		o.Scenarios = usual()
	}
	for _, name := range o.Scenarios {
		if !slices.Contains(Names(), name) {
			return nil, fmt.Errorf("no scenario %q: there are %s", name, strings.Join(Names(), ", "))
		}
	}
	ballast := make([]byte, ballastBytes)
	defer runtime.KeepAlive(ballast)

	e := &env{Options: o}
	r := &Report{Schema: reportSchema, Began: time.Now().UTC(), Quick: o.Quick, Scenarios: o.Scenarios, Environment: environment(), Skipped: map[string]string{}}
	var errs []error
	for _, s := range scenarios {
		if !slices.Contains(o.Scenarios, s.name) || ctx.Err() != nil {
			continue
		}
		o.say("%s: %s\n", s.name, s.title)
		if s.redis && e.server == nil {
			server, err := startServer(ctx)
			if err != nil {
				r.Skipped[s.name] = err.Error()
				o.say("  SKIPPED: %v\n", err)
				continue
			}
			defer server.stop()
			e.server = server
			r.Environment["redis"] = server.version(ctx)
		}
		e.series = nil
		rows, err := s.run(ctx, e)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			r.Skipped[s.name] = err.Error()
			o.say("  FAILED: %v\n", err)
			continue
		}
		for i := range rows {
			rows[i].Scenario, rows[i].Verdict = s.name, rows[i].Budget.verdict(rows[i].Value)
		}
		printRows(o.Log, rows)
		r.Rows = append(r.Rows, rows...)
		for _, curve := range e.series {
			curve.Scenario = s.name
			r.Series = append(r.Series, curve)
		}
	}
	r.Took = time.Since(r.Began)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	met, missed := r.missed()
	o.say("budgets met: %d, missed: %d; took %s\n", met, missed, r.Took.Round(time.Second))
	if o.Out != "" {
		path, err := r.write(o.Out)
		if err != nil {
			errs = append(errs, err)
		} else {
			o.say("written to %s\n", path)
		}
	}
	return r, errors.Join(errs...)
}

// environment says what the run ran on; nothing that names the machine.
func environment() map[string]string {
	e := map[string]string{
		"cores": fmt.Sprint(runtime.NumCPU()),
		"os":    runtime.GOOS + "/" + runtime.GOARCH,
		"go":    runtime.Version(),
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close() //nolint:errcheck // read only
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
				e["cpu"] = strings.TrimSpace(v)
				break
			}
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		var versions []string
		for _, d := range info.Deps {
			for _, peer := range []string{"dgraph-io/ristretto", "redis/go-redis", "redis/rueidis", "bits-and-blooms/bloom", "maypok86/otter"} {
				if strings.Contains(d.Path, peer) {
					versions = append(versions, strings.TrimPrefix(d.Path, "github.com/")+" "+d.Version)
				}
			}
		}
		e["versions"] = strings.Join(versions, ", ")
	}
	return e
}
