// Package segment has the words in which the filter room asks the tiers for the segments of a filter that is kept in Redis. A segment is
// one string; what its bytes mean is the asker's.
package segment

import "time"

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
	Building []byte // is being built; new rows go into it too
	Old      []byte // was served a while ago; new rows go into it too, should the move be lost
	Rows     uint64 // of the scan that Serving was built from
	Replaced []byte // by this turn: nobody asks it any more
}

// Turn is a change of the head.
type Turn uint8

// The turns. Each renews the head's expiry.
const (
	Keep    Turn = iota // nothing but that the old filter is let go once it is old enough
	Begin               // the layout is being built from now on, and no other
	Move                // the layout, if it is still the one that is being built, is served from now on, and every process is told
	Abandon             // the layout is not being built any more
	Drop                // the layout is not served any more
)

// String returns the turn's name, which is also the script's.
func (t Turn) String() string {
	return [...]string{"keep", "begin", "move", "abandon", "drop"}[t]
}
