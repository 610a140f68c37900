package bench

import (
	"context"
	"math"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// load is traffic that does not wait for its answers: requests come at moments that were fixed before the first one, whatever became of
// the others, as users do. So a system that stalls is asked on, and what it makes wait is measured from the moment at which the request
// was to come (no coordinated omission), also where the generator itself was late.
//
//	l := load{rate: 2000, lasts: 10 * time.Second, deadline: 500 * time.Millisecond, keys: zipf(100_000, 0.9), seed: 1}
//	seen := l.run(ctx, func(ctx context.Context, n int) error { _, err := cache.Get(ctx, name(n)); return err })
//	seen.all.quantile(0.99)
//	seen.goodput() // a share for each second
type load struct {
	rate     float64       // requests per second, at moments of a Poisson process; > 0
	lasts    time.Duration // the last request comes before it is over
	deadline time.Duration // of each request, from the moment at which it was to come; 0: none
	keys     ranks         // whose numbers requests ask for; the zero one: 0 always
	seed     uint64        // of moments and keys
	inFlight int           // requests under way at most; one that finds as many fails at once. 0: rate × deadline × 2, 1,000 at least
}

// seen is what became of the requests of a load: all of them, and those of each second by the moment at which they were to come.
type seen struct {
	all    outcome
	second []outcome
	late   time.Duration // how late the generator sent a request at most: the machine is too small where it is near the deadline
}

// outcome is what became of some requests. Its times are of those that were answered.
type outcome struct {
	ok, failed uint64
	firstError error
	times      *hdrhistogram.Histogram // microseconds
}

func newOutcome() outcome {
	return outcome{times: hdrhistogram.New(1, time.Hour.Microseconds(), 3)}
}

func (o *outcome) add(took time.Duration, err error) {
	if err != nil {
		if o.failed++; o.firstError == nil {
			o.firstError = err
		}
		return
	}
	o.ok++
	_ = o.times.RecordValue(min(max(took.Microseconds(), 1), time.Hour.Microseconds())) // which is in its range
}

// share is that of the requests that were answered, in [0,1]; 1 of none.
func (o *outcome) share() float64 {
	if o.ok+o.failed == 0 {
		return 1
	}
	return float64(o.ok) / float64(o.ok+o.failed)
}

// quantile is the time in ms that a fraction q in [0,1] of the answers did not exceed.
func (o *outcome) quantile(q float64) float64 {
	return float64(o.times.ValueAtQuantile(100*q)) / 1e3
}

// goodput is the share that was answered, second by second.
func (s *seen) goodput() []float64 {
	shares := make([]float64, len(s.second))
	for i := range s.second {
		shares[i] = s.second[i].share()
	}
	return shares
}

// goodFrom is the first second from which on every one answered a share of at least least; the length of the series where there is none.
func (s *seen) goodFrom(least float64) int {
	from := len(s.second)
	for from > 0 && s.second[from-1].share() >= least {
		from--
	}
	return from
}

// run sends the requests and waits for the last of them. get gets the key's number and a context with the request's deadline; what it
// returns after that deadline is a failure whatever it is. It ends early with ctx.
func (l load) run(ctx context.Context, get func(ctx context.Context, key int) error) *seen {
	var (
		began = time.Now()
		out   = &seen{all: newOutcome(), second: make([]outcome, max(int(math.Ceil(l.lasts.Seconds())), 1))}
		mu    sync.Mutex
		under atomic.Int64
		done  sync.WaitGroup
		limit = int64(l.limit())
	)
	for i := range out.second {
		out.second[i] = newOutcome()
	}
	note := func(due time.Duration, err error) {
		took := time.Since(began) - due
		if err == nil && l.deadline > 0 && took > l.deadline {
			err = context.DeadlineExceeded
		}
		mu.Lock()
		defer mu.Unlock()
		out.all.add(took, err)
		out.second[int(due/time.Second)].add(took, err)
	}
	l.schedule(func(due time.Duration, key int) bool {
		time.Sleep(due - time.Since(began)) // a timer that is late finds more than one request due
		if ctx.Err() != nil {
			return false
		}
		out.late = max(out.late, time.Since(began)-due)
		if under.Load() >= limit {
			note(due, errTooMany)
			return true
		}
		under.Add(1)
		done.Go(func() {
			defer under.Add(-1)
			asking := ctx
			if l.deadline > 0 {
				bounded, cancel := context.WithDeadline(ctx, began.Add(due+l.deadline))
				defer cancel()
				asking = bounded
			}
			note(due, get(asking, key))
		})
		return true
	})
	done.Wait()
	return out
}

type loadError string

func (e loadError) Error() string { return string(e) }

const errTooMany = loadError("more requests are under way than the load may have")

func (l load) limit() int {
	if l.inFlight > 0 {
		return l.inFlight
	}
	return max(int(2*l.rate*l.deadline.Seconds()), 1000)
}

// schedule calls send for every request, with its moment and its key, until send returns false. It is the same for the same load.
func (l load) schedule(send func(due time.Duration, key int) bool) {
	random := rand.New(rand.NewPCG(l.seed, 0x6c6f6164)) //nolint:gosec // a workload, not a secret
	for at := 0.0; ; {
		at += random.ExpFloat64() / l.rate
		due := time.Duration(at * float64(time.Second))
		if due >= l.lasts || !send(due, l.keys.draw(random)) {
			return
		}
	}
}

// ranks is a distribution of key numbers, 0 the most frequent: what share of the requests asks for a number not above n, for each n. The
// zero value draws 0 always. It is read only and can be shared.
type ranks struct{ upTo []float64 }

// zipf has n keys of which number k is asked for (k+1)^-s times as often as number 0. rand.Zipf of the standard library knows no s below 1.
func zipf(n int, s float64) ranks {
	upTo := make([]float64, n)
	sum := 0.0
	for k := range upTo {
		sum += math.Pow(float64(k+1), -s)
		upTo[k] = sum
	}
	for k := range upTo {
		upTo[k] /= sum
	}
	return ranks{upTo}
}

// draw returns a key's number.
func (r ranks) draw(random *rand.Rand) int {
	if len(r.upTo) == 0 {
		return 0
	}
	return min(sort.SearchFloat64s(r.upTo, random.Float64()), len(r.upTo)-1)
}
