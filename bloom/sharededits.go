package bloom

import (
	"encoding/binary"
	"slices"

	"github.com/tiercache/tiercache/internal/segment"
)

// What the asks and edits of a store are in terms of a layout.

// ref names a segment of s.
func (s *Segmented) ref(n int) segment.Ref { return segment.Ref{Filter: s.ID(), Number: n} }

// questions are what to ask about keys.
func (s *Segmented) questions(keys []string) ([]Question, []segment.Ask) {
	questions, asks := make([]Question, len(keys)), make([]segment.Ask, len(keys))
	for i, key := range keys {
		q := s.Question(key)
		questions[i], asks[i] = q, segment.Ask{Ref: s.ref(q.Segment), Fields: q.Fields()}
	}
	return questions, asks
}

// additions are the edits that add keys, one a segment: only where a segment of ours stands, since one that was lost must not be made anew.
func (s *Segmented) additions(keys []string) []segment.Edit {
	bits := make(map[int][]uint64)
	for _, key := range keys {
		q := s.Question(key)
		bits[q.Segment] = append(bits[q.Segment], q.Bits...)
	}
	magic := binary.BigEndian.AppendUint64(nil, segmentMagic)
	edits := make([]segment.Edit, 0, len(bits))
	for n, some := range bits {
		edits = append(edits, segment.Edit{Ref: s.ref(n), If: []segment.At{{Offset: 0, Bytes: magic}}, Bits: some})
	}
	slices.SortFunc(edits, func(a, b segment.Edit) int { return a.Number - b.Number })
	return edits
}

// size is how many bits there are in all segments.
func (s *Segmented) size() uint64 { return s.segments * s.bits }

// sealed is what stands in a complete segment.
func (s *Segmented) sealed(n int) []segment.At {
	head, tail := s.Seal(n)
	return []segment.At{{Offset: 0, Bytes: head}, {Offset: s.SegmentBytes() - len(tail), Bytes: tail}}
}
