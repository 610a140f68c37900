// Package segment has the words in which the filter room asks the tiers for the segments of a filter that is kept in Redis. A segment is
// one string; what its bytes mean is the asker's.
package segment

import (
	"errors"
	"time"
)

// Ref names a segment: the filter it belongs to and its number there.
type Ref struct {
	Filter string // letters and digits only: it stands in a key
	Number int
}

// Ask is a question to one segment, answered at one moment.
type Ask struct {
	Ref
	Fields []any // as BITFIELD_RO takes them after GET: type and offset in turn
}

// At is bytes at an offset.
type At struct {
	Offset int
	Bytes  []byte
}

// Edit is one change of one segment, made in one step or not at all. It is made where everything of If stands, or, with Make, where
// there is no such key at all. Where everything of Put stands already it counts as made, by an earlier sending: so Put should differ from edit to
// edit wherever Bits do.
type Edit struct {
	Ref
	Make bool
	If   []At
	Put  []At
	Bits []uint64      // to be set, as SETBIT counts
	Life time.Duration // until the key expires, from now; 0: as before
}

// Head is which filters there are of a name, each as the bytes of its layout; nil: none.
type Head struct {
	Serving  []byte // is asked
	Building []byte // is being built, or was until its builder was cut off; new rows go into it too
	Old      []byte // was served a while ago; new rows go into it too, should the move be lost
	Rows     uint64 // of the scan that Serving was built from
	Replaced []byte // by this turn: nobody asks it any more

	Moved   uint64        // when Serving became it, by the store's clock, in milliseconds since 1970; 0: nothing ever did
	Age     time.Duration // since then
	Builder uint64        // who builds Building
	Left    []byte        // how far Building came, in its builder's words; nil: unknown
	Fed     uint64        // how many words of change feeds there were; 0: none
	Lag     time.Duration // of the last one: all rows committed longer before it had been announced
}

// ErrForeign says that something else stands in the head's place. Begin takes it away.
var ErrForeign = errors.New("segment: something else stands in the place of the head of the filters")

// Turn is a change of the head. Each renews the head's expiry.
type Turn struct {
	How     How
	Layout  []byte
	Builder uint64        // who begins or takes over; of Leave, Move and Abandon: they are refused where another took over
	Was     uint64        // of Begin and Resume: the builder that the head had when it was read, 0 for none: they are refused where it has another
	Rows    uint64        // of Move
	Left    []byte        // of Leave
	Lag     time.Duration // of Feed
}

// How a head is turned.
type How uint8

// The turns.
const (
	Keep    How = iota // nothing but that the old filter is let go once it is old enough
	Begin              // the layout is being built from now on, and no other
	Resume             // another builder goes on with the layout, if it is still being built and something of it was left
	Leave              // so far the layout came, for who resumes it
	Move               // the layout, if it is still the one that is being built, is served from now on, and every process is told
	Abandon            // the layout is not being built any more
	Drop               // the layout is not served any more
	Forget             // whatever is served is not any more, nor is anything being built
	Feed               // a change feed told all rows that were committed longer than Lag ago
)

// String returns the turn's name, which is also the script's.
func (h How) String() string {
	return [...]string{"keep", "begin", "resume", "leave", "move", "abandon", "drop", "forget", "feed"}[h]
}
