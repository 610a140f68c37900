package bench

import (
	"sync"
	"time"
)

// sampler reads counters that only grow every so often, beside what is measured and not in it.
type sampler struct {
	began time.Time
	read  func() []float64
	steps []sample
	last  sample
	quit  chan struct{}
	done  sync.WaitGroup
}

// sample is how much each counter grew in one step that ended at a moment. A step that the machine made longer is longer: shares and rates
// of it are right all the same.
type sample struct {
	at, lasted time.Duration
	grown      []float64
}

// rate is what a counter grew by in a second of the step.
func (s sample) rate(counter int) float64 { return s.grown[counter] / s.lasted.Seconds() }

// startSampler reads now, every step, and when it is stopped. read is called from one goroutine at a time.
func startSampler(step time.Duration, read func() []float64) *sampler {
	s := &sampler{began: time.Now(), read: read, quit: make(chan struct{})}
	s.last.grown = read()
	s.done.Go(func() {
		ticks := time.NewTicker(step)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				s.step()
			case <-s.quit:
				if time.Since(s.began)-s.last.at > step/2 { // what is shorter says little
					s.step()
				}
				return
			}
		}
	})
	return s
}

func (s *sampler) step() {
	now := sample{grown: s.read()}
	now.at = time.Since(s.began)
	grown := make([]float64, len(now.grown))
	for i := range grown {
		grown[i] = now.grown[i] - s.last.grown[i]
	}
	s.steps = append(s.steps, sample{now.at, now.at - s.last.at, grown})
	s.last = now
}

// stop ends it and returns the steps.
func (s *sampler) stop() []sample {
	close(s.quit)
	s.done.Wait()
	return s.steps
}
