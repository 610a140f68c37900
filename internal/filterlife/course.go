package filterlife

import (
	"sync"
	"time"
)

// Step is what a process did and saw in one step of a play.
type Step struct {
	Inserted, Asked, Wrong uint64
	Passing                time.Duration // in which the filter let everything pass
}

func (s *Step) add(o Step) {
	s.Inserted, s.Asked, s.Wrong, s.Passing = s.Inserted+o.Inserted, s.Asked+o.Asked, s.Wrong+o.Wrong, s.Passing+o.Passing
}

// maxSteps bounds a course: what happens later is counted in its last step.
const maxSteps = 36_000

// course is a process's steps from the beginning of the play on, which all processes of one machine tell alike: by its wall clock.
type course struct {
	began time.Time
	step  time.Duration // 0: nothing is noted

	mu    sync.Mutex
	steps []Step
}

// note adds what happened now.
func (c *course) note(what Step) {
	if c.step <= 0 {
		return
	}
	at := min(max(int(time.Since(c.began)/c.step), 0), maxSteps-1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.steps) <= at {
		c.steps = append(c.steps, Step{})
	}
	c.steps[at].add(what)
}

func (c *course) all() []Step {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Step(nil), c.steps...)
}

// Moment is when something befell the fleet, from the beginning of the play on.
type Moment struct {
	At   time.Duration
	What string
}

// Course adds up the processes' steps, each of Options.Step.
func (r Report) Course() (sum []Step) {
	for _, p := range r.Processes {
		for i, step := range p.Course {
			if len(sum) <= i {
				sum = append(sum, Step{})
			}
			sum[i].add(step)
		}
	}
	return sum
}
