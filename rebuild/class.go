package rebuild

import "container/list"

// Class says for whom a load is done. Where slots of a Gate are short the lower class goes first: each has a bound of its own under the
// gate's, so that what can wait never holds the slots of what cannot.
type Class uint8

// The classes, first served first.
const (
	Foreground Class = iota // somebody waits for a row: every slot, the whole queue
	Suspect                 // somebody waits, but likely there is no such row: GateOptions.Absent slots, a queue as long
	Revalidate              // a copy past its end is at hand for whoever waits: half of the slots, and no queue while somebody without one waits
	Refresh                 // a row that is still fresh is loaded ahead: a quarter of the slots, no queue
	Warm                    // rows that nobody has asked for yet: a tenth of the slots, no queue

	classes
)

// String returns the class's name in lower case.
func (c Class) String() string {
	switch c {
	case Foreground:
		return "foreground"
	case Suspect:
		return "suspect"
	case Revalidate:
		return "revalidate"
	case Refresh:
		return "refresh"
	case Warm:
		return "warm"
	case classes:
	}
	return "unknown"
}

// The shares of the classes in the gate's slots. Chosen; not tuned. A tenth for what likely does not exist is what a flood of such keys
// gets, and four where that is less, since some of the suspected rows exist; never more than half, or a small gate would be all theirs. Who
// has a copy does not queue behind those that have none: it would hold the key's lease meanwhile, for which others wait in other processes.
const (
	absentPart, absentLeast = 10, 4
	revalidatePart          = 2
	refreshPart             = 4
	warmPart                = 10
)

// share is one class at the gate: how much of it may be there, and what is. Under the gate's mu.
type share struct {
	slots   int // loads at once
	waiting int // callers in the queue
	running int
	queue   *list.List // of *gateWaiter, oldest first; not empty only while no slot is free, or none of the share's
	shed    uint64
}

// shares returns the bounds of the classes for a gate of so many loads and waiting callers. Each class has one slot at least.
func (o GateOptions) shares() (s [classes]share) {
	absent := o.Absent
	switch {
	case absent < 0:
		absent = o.Loads
	case absent == 0:
		absent = min(max(absentLeast, o.Loads/absentPart), o.Loads/2)
	}
	absent = max(1, min(absent, o.Loads))
	s[Foreground] = share{slots: o.Loads, waiting: o.Waiting}
	s[Suspect] = share{slots: absent, waiting: min(absent, o.Waiting)}
	s[Revalidate] = share{slots: max(1, o.Loads/revalidatePart), waiting: o.Waiting}
	s[Refresh] = share{slots: max(1, o.Loads/refreshPart)}
	s[Warm] = share{slots: max(1, o.Loads/warmPart)}
	for i := range s {
		s[i].queue = list.New()
	}
	return s
}
