package bloom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	mathbits "math/bits"
)

// The sizes of the shared form. A bitmap in one Redis string would lie in one slot of a Cluster, and making it would block the server:
// 80 ms for 128 MiB by Redis' own documentation of SETBIT. So it is cut: leastSegments spread over a Cluster of any usual size, and more
// are taken before one exceeds maxSegmentBytes. All three chosen; not tuned.
const (
	leastSegments   = 64
	mostSegments    = 1 << 14 // 64 GiB in all
	maxSegmentBytes = 4 << 20
)

// A segment, words big-endian as Redis numbers bits:
//
//	0  word "tcbs" and version    8  word stamp    16  bits    end-8  word stamp once more
//
// The stamp is a keyed hash of the filter's sizes and the segment's number, another one while the segment is being filled. So it says at
// once: of this filter and no other, this segment and no other, these sizes, complete. The one at the end is there because Redis answers
// 0 for what lies past the end of a string: without it a segment that was cut short would call rows absent.
const (
	segmentMagic   = 0x7463627300000001 // "tcbs", version 1
	segmentHead    = 16
	segmentTail    = 8
	segmentWords   = 3 // words in a question: magic and both stamps
	stampOpen      = 'o'
	stampSealed    = 's'
	stampID        = 'i'
	segmentedMagic = "tcsg"
)

// Answer is what segments say of a key. The zero value is Unknown: whoever has no answer lets the key pass.
type Answer uint8

// The answers.
const (
	Unknown Answer = iota // the segment is missing, incomplete, damaged, or of another filter: nothing is known of the key
	Perhaps               // the key was perhaps added
	Absent                // the segment is whole, and the key was certainly not added
)

func (a Answer) String() string {
	switch a {
	case Unknown:
		return "unknown"
	case Perhaps:
		return "perhaps"
	case Absent:
		return "absent"
	}
	return fmt.Sprintf("Answer(%d)", uint8(a))
}

// Segmented says where a key's bits are in a filter that is kept in Redis strings, the segments, instead of in every process, and what
// Redis' answer means. It holds no bits and does no network: it is the same few numbers for a thousand keys and for a billion. Its
// methods may be called concurrently.
//
// Whoever keeps the segments MUST
//   - begin each with [Segmented.Open] as its first bytes, before the first of its bits is set;
//   - set the bits of [Question.Bits] for every key, in any order;
//   - write [Segmented.Seal] only where Open's bytes still stand, in one step with looking: a segment that was lost in between and
//     made anew by later bits would else be called complete;
//   - ask [Question.Fields] of a segment in one command: between two, the segment could be lost.
//
// Then Absent is never answered of a key whose bits were set, whatever was flushed, evicted, cut short or replaced meanwhile.
type Segmented struct {
	options  Options // with defaults
	seed     seed
	segments uint64
	bits     uint64 // of one segment, a multiple of 64
	hashes   int
}

// NewSegmented returns a new filter's layout with a secret of its own, so its segments are taken for no other filter's. The error names
// all mistakes in o. Capacity may be far greater than that of [New]: up to 64 GiB of bits in all.
func NewSegmented(o Options) (*Segmented, error) {
	o, mistakes := o.checked()
	o.Form = InRedis
	s := sized(o, newSeed())
	if s.segments > mostSegments {
		mistakes = append(mistakes, fmt.Errorf("bloom: Capacity %d at FalsePositiveRate %v needs more than the %d segments of %d MiB a shared filter may have",
			o.Capacity, o.FalsePositiveRate, mostSegments, maxSegmentBytes>>20))
	}
	if err := errors.Join(mistakes...); err != nil {
		return nil, err
	}
	return s, nil
}

// sized computes the layout of o; segments is greater than mostSegments where there is none.
func sized(o Options, k seed) *Segmented {
	s := &Segmented{options: o, seed: k, hashes: max(1, int(math.Round(-math.Log2(o.FalsePositiveRate))))}
	perKey := -math.Log(o.FalsePositiveRate) / (math.Ln2 * math.Ln2)
	for s.segments = leastSegments; s.segments <= mostSegments; s.segments *= 2 {
		keys := float64(o.Capacity) / float64(s.segments)
		keys += math.Sqrt(keys) // some segments get more than their share; one deviation keeps the mean of their rates below what was asked
		words := math.Ceil(keys * perKey / 64)
		if words*8 <= maxSegmentBytes-segmentHead-segmentTail {
			s.bits = max(1, uint64(words)) * 64
			break
		}
	}
	return s
}

// Options returns the options the filter was made with, defaults filled in.
func (s *Segmented) Options() Options { return s.options }

// Segments returns how many segments there are, numbered from 0: at least 64.
func (s *Segmented) Segments() int { return int(s.segments) } //nolint:gosec // at most mostSegments

// SegmentBytes returns the length of each segment, at most 4 MiB. The last eight bytes are the tail that Seal gives.
func (s *Segmented) SegmentBytes() int { return segmentHead + int(s.bits/8) + segmentTail } //nolint:gosec // at most maxSegmentBytes

// ID names the filter: 16 hexadecimal digits, which tell nothing of its secret.
func (s *Segmented) ID() string { return fmt.Sprintf("%016x", s.stamp(0, stampID)) }

// Open returns the first bytes of a segment that is being filled: every question to it is answered Unknown.
func (s *Segmented) Open(segment int) (head []byte) { return s.head(s.stamp(segment, stampOpen)) }

// Seal returns the first bytes and the last eight of a complete segment.
func (s *Segmented) Seal(segment int) (head, tail []byte) {
	stamp := s.stamp(segment, stampSealed)
	return s.head(stamp), binary.BigEndian.AppendUint64(nil, stamp)
}

func (s *Segmented) head(stamp uint64) []byte {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, segmentHead), segmentMagic)
	return binary.BigEndian.AppendUint64(head, stamp)
}

// stamp is never 0, which is what Redis answers where nothing stands.
func (s *Segmented) stamp(segment int, kind byte) uint64 {
	b := make([]byte, 0, 33)
	for _, v := range []uint64{uint64(segment), s.segments, s.bits, uint64(s.hashes)} { //nolint:gosec // not negative
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return s.seed.of(string(append(b, kind)))
}

// Question is what to ask Redis about one key.
type Question struct {
	Segment int      // the segment that has the key's bits
	Bits    []uint64 // their offsets in it, as SETBIT and BITFIELD count; adding the key sets them all. Some may be equal

	stamp uint64
	end   uint64 // offset of the tail
}

// Question returns what to ask about key, and what to set when it is added.
func (s *Segmented) Question(key string) Question {
	h := s.seed.of(key)
	segment, _ := mathbits.Mul64(h, s.segments)
	q := Question{
		Segment: int(segment), //nolint:gosec // less than segments
		Bits:    make([]uint64, s.hashes),
		end:     segmentHead*8 + s.bits,
	}
	q.stamp = s.stamp(q.Segment, stampSealed)
	for i := range q.Bits {
		q.Bits[i] = segmentHead*8 + place(h, i, s.bits)
	}
	return q
}

// Fields returns the fields to read of the segment, as BITFIELD_RO takes them after GET: type and offset in turn. They MUST be read by
// one command; its reply goes to [Question.Answer].
func (q Question) Fields() []any {
	fields := make([]any, 0, 2*(segmentWords+len(q.Bits)))
	for _, offset := range []uint64{0, 64, q.end} {
		fields = append(fields, "i64", offset)
	}
	for _, offset := range q.Bits {
		fields = append(fields, "u1", offset)
	}
	return fields
}

// Answer returns what the reply to Fields says of the key. A reply that is not one to Fields, nil included, is Unknown.
func (q Question) Answer(reply []int64) Answer {
	if len(reply) != segmentWords+len(q.Bits) {
		return Unknown
	}
	for i, want := range []uint64{segmentMagic, q.stamp, q.stamp} {
		if uint64(reply[i]) != want { //nolint:gosec // the same 64 bits
			return Unknown
		}
	}
	answer := Perhaps
	for _, bit := range reply[segmentWords:] {
		switch bit {
		case 0:
			answer = Absent
		case 1:
		default:
			return Unknown
		}
	}
	return answer
}

// segmentedBytes is the length of what MarshalBinary gives.
const segmentedBytes = 48

// MarshalBinary returns s as bytes that [ParseSegmented] reads, for the other processes. They hold the secret that makes false positives
// unpredictable: keep them where the keys themselves might be kept. The error is always nil.
//
//	0  magic "tcsg"     8 seed, 16 bytes    32 rate, a float64's bits
//	4  version, zeros   24 capacity         40 keyed hash of all other bytes
//
// The sizes follow from capacity and rate: a release that computes them otherwise takes another version.
func (s *Segmented) MarshalBinary() ([]byte, error) {
	b := append(make([]byte, 0, segmentedBytes), segmentedMagic...)
	b = append(b, 1, 0, 0, 0)
	for _, v := range []uint64{s.seed.a, s.seed.b, s.options.Capacity, math.Float64bits(s.options.FalsePositiveRate)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return binary.BigEndian.AppendUint64(b, s.seed.hash(string(b))), nil
}

// ParseSegmented returns the layout that data was made of. Every error matches ErrSnapshot: the filter is then unknown, never empty.
func ParseSegmented(data []byte) (*Segmented, error) {
	if len(data) != segmentedBytes || string(data[:4]) != segmentedMagic {
		return nil, badSnapshot("%d bytes that are no shared filter's", len(data))
	}
	if binary.BigEndian.Uint32(data[4:]) != 1<<24 {
		return nil, badSnapshot("version %d, known is 1", data[4])
	}
	k := seed{binary.BigEndian.Uint64(data[8:]), binary.BigEndian.Uint64(data[16:])}
	if k.hash(string(data[:40])) != binary.BigEndian.Uint64(data[40:]) {
		return nil, badSnapshot("keyed hash does not match")
	}
	o := Options{Capacity: binary.BigEndian.Uint64(data[24:]), FalsePositiveRate: math.Float64frombits(binary.BigEndian.Uint64(data[32:])), Form: InRedis}
	if _, mistakes := o.checked(); mistakes != nil || o.FalsePositiveRate == 0 {
		return nil, badSnapshot("made with wrong options (%v)", errors.Join(mistakes...))
	}
	s := sized(o, k)
	if s.segments > mostSegments {
		return nil, badSnapshot("more than %d segments", mostSegments)
	}
	return s, nil
}
