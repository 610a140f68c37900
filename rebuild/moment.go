package rebuild

import "time"

// moment is a point in time on two clocks. The monotonic one stands still while a Linux machine sleeps; the wall clock may be set.
type moment struct{ mono, wall time.Time }

// thisMoment returns the present.
func thisMoment() moment {
	now := time.Now()
	return moment{mono: now, wall: now.Round(0)} // Round drops the monotonic reading
}

// since returns how much time went by between earlier and m: by the clock that says more, for a lease may be over too early but not too
// late.
func (m moment) since(earlier moment) time.Duration {
	return max(m.mono.Sub(earlier.mono), m.wall.Sub(earlier.wall))
}
