package layers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrTooLarge is returned for a value whose encoded form is longer than the limit. It can be answered but not shared.
var ErrTooLarge = errors.New("layers: encoded value too large")

// MaxValueBytes is the greatest encoded length of a value unless Limits say otherwise, on the way in and on the way out. Chosen; not tuned.
const MaxValueBytes = 1 << 20

// Limits bound what a shared tier takes and gives. Zero means the default.
type Limits struct {
	EncodedBytes int // of one value, without header and key; MaxValueBytes
}

// Shared is a Space that knows its values: it encodes and decodes them and translates their moments into this process's time.
type Shared[V any] struct {
	*Space
	codec  Codec
	schema uint16
	limit  int
}

// NewShared returns a shared tier of V over s. schema is the number of V's shape: values of another number are foreign.
func NewShared[V any](s *Space, codec Codec, schema uint16, l Limits) *Shared[V] {
	if l.EncodedBytes <= 0 {
		l.EncodedBytes = MaxValueBytes
	}
	return &Shared[V]{Space: s, codec: codec, schema: schema, limit: l.EncodedBytes}
}

// Kind is what stands at a key.
type Kind uint8

const (
	// Nothing means that nothing of this generation stands there.
	Nothing Kind = iota
	// Value means that the entry is there, absent or not, fresh or past its soft end.
	Value
	// Marker means that the key was announced a moment ago: it may exist although no filter knows it yet.
	Marker
	// Foreign means data that this cache cannot read: undecodable, of another format, codec, schema or key, too large, or of a generation
	// that Redis does not confirm. It counts as a miss; name it in Ask.Seen, so that it is replaced even if it looks fresh to Redis.
	Foreign
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case Nothing:
		return "nothing"
	case Value:
		return "value"
	case Marker:
		return "marker"
	case Foreign:
		return "foreign"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Reading is what a key was found to hold. Its value is shared with everyone who read it in the same round trip.
type Reading[V any] struct {
	Entry[V]       // with Kind Value only; its moments are of this process's clock
	Kind     Kind  //
	Keep     bool  // memory may keep it; false where the server's time belonging to it is not known
	Stored   int64 // when it was stored, for Ask.Seen; 0 if that could not be read
}

// decoded is a reply taken apart once for all who share it, before anyone's generation is applied.
type decoded[V any] struct {
	Reading[V]
	generation uint64
}

// Get reads what Redis holds of id. One round trip, shared with other keys' and, under an equal mark, with other callers of id. It waits
// at most ReadTimeout of the Redis.
func (s *Shared[V]) Get(ctx context.Context, id string, m Mark) (Reading[V], error) {
	if _, err := s.known(ctx); err != nil {
		return Reading[V]{}, err
	}
	key, err := s.valueKey(id)
	if err != nil {
		return Reading[V]{}, err
	}
	q, err := s.r.get(ctx, key, m)
	if err != nil {
		return failedReading[V](err)
	}
	return s.reading(ctx, id, q), nil
}

// GetMany is Get for several keys, one batch per master; ms are the marks of ids. The results and errors are per key.
func (s *Shared[V]) GetMany(ctx context.Context, ids []string, ms []Mark) ([]Reading[V], []error) {
	out, errs := make([]Reading[V], len(ids)), make([]error, len(ids))
	if _, err := s.known(ctx); err != nil {
		return out, failed(errs, func(e *error) { *e = err })
	}
	keys, marks, at := make([]string, 0, len(ids)), make([]Mark, 0, len(ids)), make([]int, 0, len(ids))
	for i, id := range ids {
		key, err := s.valueKey(id)
		if err != nil {
			errs[i] = err
			continue
		}
		keys, marks, at = append(keys, key), append(marks, ms[i]), append(at, i)
	}
	for j, q := range s.r.getMany(ctx, keys, marks) {
		i := at[j]
		if q.err != nil {
			out[i], errs[i] = failedReading[V](q.err)
			continue
		}
		out[i] = s.reading(ctx, ids[i], q)
	}
	return out, errs
}

// failedReading makes foreign data of a key of another type, which the fill will replace, and passes every other error on.
func failedReading[V any](err error) (Reading[V], error) {
	if strings.HasPrefix(err.Error(), "WRONGTYPE") {
		return Reading[V]{Kind: Foreign}, nil
	}
	return Reading[V]{}, err
}

// reading is what the request q, shared by several callers, means to this one.
func (s *Shared[V]) reading(ctx context.Context, id string, q *request) Reading[V] {
	if q.raw == "" {
		return Reading[V]{}
	}
	if !q.shared {
		d := s.decode(id, q.raw, q.sent, q.now)
		d.Keep = q.keep
		return s.judged(ctx, &d)
	}
	q.decodeOnce.Do(func() {
		d := s.decode(id, q.raw, q.sent, q.now)
		d.Keep = q.keep
		q.decoded = &d
	})
	d, ok := q.decoded.(*decoded[V])
	if !ok { // a name is open once per Redis, so there is one V; were there two, each would decode for itself
		own := s.decode(id, q.raw, q.sent, q.now)
		own.Keep = q.keep
		d = &own
	}
	return s.judged(ctx, d)
}

// judged is what d means under the generation that this process knows, a greater one confirmed first.
func (s *Shared[V]) judged(ctx context.Context, d *decoded[V]) Reading[V] {
	known := s.generation.Load()
	if d.generation > known {
		known, _ = s.confirm(ctx, d.generation)
	}
	return d.judge(known)
}

// Decode returns the value that came along with a, fresh if a is Found.
func (s *Shared[V]) Decode(a Acquired) Reading[V] {
	if a.raw == "" {
		return Reading[V]{}
	}
	d := s.decode(a.Lease.ID, a.raw, a.sent, a.now)
	d.Keep = true
	return d.judge(s.generation.Load())
}

// judge applies the generation that this process knows: an older value was cleared, a greater one that Redis did not confirm is foreign.
func (d *decoded[V]) judge(known uint64) Reading[V] {
	switch {
	case d.Kind == Foreign || d.generation == known:
		return d.Reading
	case d.generation < known:
		return Reading[V]{}
	}
	return Reading[V]{Kind: Foreign, Stored: d.Stored}
}

// decode takes a value key's content apart. It never fails: what cannot be read is foreign.
func (s *Shared[V]) decode(id, raw string, sent time.Time, now int64) decoded[V] {
	e, err := parseEnvelope(raw)
	d := decoded[V]{Reading: Reading[V]{Kind: Foreign, Stored: e.stored}, generation: e.generation}
	switch {
	case err != nil || !e.of(id):
		return d
	case e.hard <= now && e.flags&flagMarker != 0:
		d.Kind = Marker
		return d
	case e.hard <= now:
		d.Kind = Nothing
		return d
	case e.schema != s.schema || len(e.payload) > s.limit:
		return d
	}
	d.Entry = Entry[V]{
		Absent:  e.flags&flagAbsent != 0,
		Born:    localTime(sent, now, min(e.stored, now)),
		Soft:    localTime(sent, now, e.soft),
		Hard:    localTime(sent, now, e.hard),
		Version: e.version,
		Cost:    e.cost,
		Size:    len(e.payload),
	}
	if !d.Absent {
		v := new(V) // of its own, since the codec may let it escape
		if e.codec != s.codec.ID() || decode(s.codec, e.payload, v) != nil {
			d.Entry = Entry[V]{}
			return d
		}
		d.Value = *v
	}
	d.Kind = Value
	return d
}

// Encode makes the Fill that stores e under the lease l, for the lives given. It returns an error that wraps ErrEncode or ErrTooLarge
// where e cannot be stored; the lease is then still held and must be released.
func (s *Shared[V]) Encode(l Lease, e Entry[V], lives Lives) (Fill, error) {
	f := Fill{Lease: l, Codec: s.codec.ID(), Schema: s.schema, Version: e.Version, Cost: e.Cost, Soft: lives.Soft, Hard: max(lives.Hard, lives.Soft)}
	var front []byte
	if long(l.ID) {
		f.Flags |= flagLongKey
		front = withKey(nil, l.ID)
	}
	if e.Version != 0 {
		f.Flags |= flagVersioned
	}
	if e.Absent {
		f.Flags |= flagAbsent
		f.Payload = front
		return f, nil
	}
	payload, err := encode(s.codec, front, &e.Value)
	if err != nil {
		return Fill{}, fmt.Errorf("%w: %w", ErrEncode, err)
	}
	if n := len(payload) - len(front); n > s.limit {
		return Fill{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, s.limit)
	}
	f.Payload = payload
	return f, nil
}
