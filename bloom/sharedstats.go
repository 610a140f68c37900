package bloom

import (
	"context"
	"math"
	"time"

	"github.com/tiercache/tiercache/internal/segment"
)

const (
	// keepTurns is how many calls of Keep go by until every segment was looked at and renewed. Chosen: ten minutes at one a second.
	keepTurns = 600
	// looked is how many bytes of a segment's bits Keep counts, which takes Redis some microseconds: enough for a fill that is right to some
	// thousandths. Chosen; not tuned.
	looked = 16 << 10
)

// SharedStats are the gauges of a SharedGuard.
type SharedStats struct {
	Capacity uint64 // rows that it was made for; those asked for where none is built
	Rows     uint64 // rows of the scan that it was built from
	Segments uint64 // its segments; 0: none is built
	Unknown  uint64 // of these, the ones that said nothing when they were last asked: their keys pass, and a build is due
	Bytes    uint64 // in Redis

	// What follows is estimated from the bits of one segment more each second, and 0 while those are too few.
	Fill          float64 // fraction of its bits that are set, [0,1]; about 0.5 at Capacity
	Added         uint64  // different keys in it
	EstimatedRate float64 // fraction of absent keys that pass, [0,1]
}

// look looks at the next segments.
func (g *SharedGuard) look(ctx context.Context) error {
	b := g.serving.Load()
	if b == nil {
		return nil
	}
	g.mu.Lock()
	first := g.next % b.Segments()
	some := (b.Segments() + keepTurns - 1) / keepTurns
	g.next = (first + some) % b.Segments()
	g.mu.Unlock()
	edits := make([]segment.Edit, some)
	for i := range edits {
		n := (first + i) % b.Segments()
		edits[i] = segment.Edit{Ref: b.ref(n), If: b.sealed(n), Life: segmentLife}
	}
	whole, err := g.store.EditSegments(ctx, edits...)
	if err != nil {
		return err
	}
	for i, e := range edits {
		b.lost[e.Number].Store(!whole[i])
	}
	if !whole[0] {
		return nil
	}
	end := b.SegmentBytes() - segmentTail - 1
	set, err := g.store.CountSegment(ctx, b.ref(first), segmentHead, min(end, segmentHead+looked-1))
	if err != nil {
		return err
	}
	fill := float64(set) / float64(8*min(looked, end+1-segmentHead))
	b.fill[first].Store(uint32(max(1, min(fill, 1)*math.MaxUint32)))
	return nil
}

// Stats returns the gauges of this moment.
func (g *SharedGuard) Stats() SharedStats {
	b := g.serving.Load()
	if b == nil {
		return SharedStats{Capacity: g.options.Capacity}
	}
	s := SharedStats{Capacity: b.Options().Capacity, Rows: b.rows.Load(), Segments: b.segments}
	seen := 0
	for i := range b.lost {
		if b.lost[i].Load() {
			s.Unknown++
		}
		if fill := b.fill[i].Load(); fill > 0 {
			s.Fill += float64(fill) / math.MaxUint32
			seen++
		}
	}
	s.Bytes = s.Segments * uint64(b.SegmentBytes())                                                      //nolint:gosec // positive
	if s.Fill /= float64(max(seen, 1)); seen < len(b.fill) && seen*min(looked, int(b.bits/8)) < looked { //nolint:gosec // at most maxSegmentBytes
		s.Fill = 0 // of too few
	}
	s.EstimatedRate = math.Pow(s.Fill, float64(b.hashes))
	s.Added = estimatedKeys(1-s.Fill, float64(b.size()), float64(b.hashes))
	return s
}

// Due returns why a new filter should be built, the weightiest reason first, or "", as Guard.Due does.
func (g *SharedGuard) Due() string {
	b := g.serving.Load()
	if b == nil {
		if g.State() == Doubted {
			return DueDoubted
		}
		return ""
	}
	s, old := g.Stats(), b.old.Load()
	switch {
	case s.Unknown > 0:
		return DueLost
	case s.Added > s.Capacity:
		return DueOverfull
	case s.EstimatedRate > 2*g.options.FalsePositiveRate:
		return DueRate
	case b.size() < sized(g.options, seed{}).size():
		return DueSmall
	case old != 0 && time.Now().UnixNano() > old:
		return DueOld
	}
	return ""
}
