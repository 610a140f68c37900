package bench

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ballastBytes is held by the measuring process for all subjects alike: with a heap of a few MiB the collector runs every few
// milliseconds and decides the result, which no service with a cache sees. The size is the budget's.
const ballastBytes = 128 << 20

// subject is one thing that is measured.
type subject struct {
	name string
	run  func(worker, n int) // does n operations; workers run concurrently, each from one goroutine
}

// series is what was measured of one subject, round by round.
type series struct {
	name   string
	ns     []float64 // per operation
	ops    uint64
	allocs uint64
	bytes  uint64
}

func (s *series) allocsPerOp() float64 { return float64(s.allocs) / float64(max(s.ops, 1)) }
func (s *series) bytesPerOp() float64  { return float64(s.bytes) / float64(max(s.ops, 1)) }

// plan is how a comparison is interleaved.
type plan struct {
	rounds  int
	slice   time.Duration // of one subject in one round
	workers int
	chunk   int // operations between two looks at the end of the slice
}

// interleave measures all subjects in every round, each for one slice, beginning with another one each round. A first round is not
// counted. It ends with ctx.
func interleave(ctx context.Context, p plan, subjects ...subject) ([]series, error) {
	all := make([]series, len(subjects))
	for i, s := range subjects {
		all[i].name = s.name
	}
	for round := -1; round < p.rounds; round++ {
		for i := range subjects {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			n := (i + round + 1) % len(subjects)
			ops, took, mem := p.measure(subjects[n])
			if round < 0 {
				continue
			}
			all[n].ns = append(all[n].ns, float64(took.Nanoseconds())/float64(max(ops, 1)))
			all[n].ops += ops
			all[n].allocs += mem.Mallocs
			all[n].bytes += mem.TotalAlloc
		}
	}
	return all, nil
}

// measure runs one slice. What the subject allocated is what the whole process did meanwhile, so a subject's own goroutines count.
func (p plan) measure(s subject) (ops uint64, took time.Duration, allocated runtime.MemStats) {
	var (
		over          atomic.Bool
		total         atomic.Uint64
		done          sync.WaitGroup
		before, after runtime.MemStats
	)
	runtime.ReadMemStats(&before)
	began := time.Now()
	timer := time.AfterFunc(p.slice, func() { over.Store(true) })
	defer timer.Stop()
	for worker := range p.workers {
		done.Go(func() {
			n := uint64(0)
			for n == 0 || !over.Load() { // once at least: a machine that stands still for a slice has measured nothing
				s.run(worker, p.chunk)
				n += uint64(p.chunk)
			}
			total.Add(n)
		})
	}
	done.Wait()
	took = time.Since(began)
	runtime.ReadMemStats(&after)
	allocated.Mallocs = after.Mallocs - before.Mallocs
	allocated.TotalAlloc = after.TotalAlloc - before.TotalAlloc
	return total.Load(), took, allocated
}

// over returns a's time over b's, round by round: below 1, a is faster.
func over(a, b series) []float64 {
	ratios := make([]float64, len(a.ns))
	for i := range a.ns {
		ratios[i] = a.ns[i] / b.ns[i]
	}
	return ratios
}

// quantile returns the value that a fraction q in [0,1] of values does not exceed; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
