package rebuild

import (
	"math"
	"time"
)

// misses decides when keys that are not known to exist are let through the gate as Suspect. It is the budget of loads that find nothing: as
// many slots as Suspect has, summed up over time, so that what finds nothing may take its share of the gate on average and no more.
//
// Until the budget is spent nothing is suspected: a cold cache, of whose rows none is known, loads at full speed, since only what found
// nothing is counted. Once it is spent a flood is on, and the flood is judged by the window: how many slots would what finds nothing take,
// were all suspects let in? That counts those who were turned away too; else the flood would seem over as soon as it is held down, and
// come back with every slot. It is no flood if among the suspects, too, at most the budget's share of the gate finds nothing: then they are
// the rows of a cold cache, which must not be held down.
//
// Under the gate's mu.
type misses struct {
	slots, loads float64 // of Suspect, of the gate
	never        bool    // GateOptions.Absent is negative

	left time.Duration // of the budget, in time of one slot
	at   time.Time     // when left was last topped up

	flood       bool
	begun       time.Time     // the window
	came        int           // suspects, let in or not
	ended       int           // loads of suspects that found a row, or none
	found, none time.Duration // what those took
}

const (
	// missBurst is how long what finds nothing may take its slots in advance; missWindow how long a flood is watched before it is judged.
	// Chosen; not tuned: well above one load, well below what a person notices.
	missBurst  = time.Second
	missWindow = time.Second
	// missSilence is after how long a flood is over of which no load comes back. Chosen; not tuned: above the default of LoadTimeout.
	missSilence = 10 * time.Second
	// maxBudget is some three hundred years of one slot: a gate of so many slots that nothing is bounded has no more.
	maxBudget time.Duration = math.MaxInt64
)

func (o GateOptions) misses(slots int) misses {
	m := misses{slots: float64(slots), loads: float64(o.Loads), never: o.Absent < 0, at: time.Now()}
	m.left = m.whole()
	return m
}

// whole is the budget when nothing is taken of it.
func (m *misses) whole() time.Duration { return atMost(m.slots*float64(missBurst), maxBudget) }

// atMost is d, which may be more than a Duration holds, or most if that is less.
func atMost(d float64, most time.Duration) time.Duration {
	if d >= float64(most) {
		return most
	}
	return time.Duration(d)
}

// back notes a load that came back: of class, took so long, and found nothing for this part of its keys, in [0,1].
func (m *misses) back(class Class, took time.Duration, part float64, now time.Time) {
	none := time.Duration(part * float64(took))
	if class == Suspect {
		m.ended++
		m.none += none
		m.found += took - none
	}
	if m.never || m.flooded(now) {
		return
	}
	m.left = atMost(float64(m.left)+m.slots*float64(now.Sub(m.at)), m.whole())
	m.at = now
	if m.left -= none; m.left < 0 {
		m.flood = true
		m.watch(now)
	}
}

// flooded reports whether a flood is on, and judges one whose window is over.
func (m *misses) flooded(now time.Time) bool {
	watched := now.Sub(m.begun)
	switch {
	case !m.flood || watched < missWindow:
		return m.flood
	case m.came > 0 && m.ended == 0 && watched < missSilence:
		return true // loads take longer than a window
	}
	m.flood = m.demand(watched) > m.slots
	m.watch(now)
	return m.flood
}

// demand is how many slots what finds nothing would have taken, had all suspects been let in: as many as come times what each takes, but no
// more than its part of a gate that is full of them.
func (m *misses) demand(watched time.Duration) float64 {
	if m.ended == 0 || m.found+m.none == 0 {
		return 0
	}
	each := float64(m.none) / float64(m.ended)
	part := float64(m.none) / float64(m.found+m.none)
	return min(each*float64(m.came)/float64(watched), part*m.loads)
}

// watch begins a window, and with it the budget anew.
func (m *misses) watch(now time.Time) {
	m.begun, m.came, m.ended, m.found, m.none = now, 0, 0, 0, 0
	m.left, m.at = m.whole(), now
}

// Back tells the gate of a load that came back with an answer, having taken a slot of class for so long: absent is the part of its keys, in
// [0,1], for which there was no row. What failed says nothing of its keys and is not told. See Flooded.
func (g *Gate) Back(class Class, took time.Duration, absent float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.misses.back(class, took, absent, time.Now())
}

// Flooded reports whether loads that find nothing have lately taken more slots than GateOptions.Absent. While it does, let keys that are not
// known to exist in as Suspect. It is over when what finds nothing would take no more than that were it let in, or is no larger a part of
// the suspects than Absent is of the gate.
func (g *Gate) Flooded() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.misses.flooded(time.Now())
}
