package layers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tiercache/tiercache/internal/rediskey"
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
	raw    bool // codec is our own raw one
	schema uint16
	limit  int
}

// NewShared returns a shared tier of V over s. schema is the number of V's shape: values of another number are foreign.
func NewShared[V any](s *Space, codec Codec, schema uint16, l Limits) *Shared[V] {
	if l.EncodedBytes <= 0 {
		l.EncodedBytes = MaxValueBytes
	}
	_, raw := codec.(rawCodec)
	return &Shared[V]{Space: s, codec: codec, raw: raw, schema: schema, limit: l.EncodedBytes}
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
func (s *Shared[V]) Get(ctx context.Context, id string, m Mark) (r Reading[V], err error) {
	err = s.Read(ctx, id, m, &r)
	return r, err
}

// Read is Get into r, which is to be zero and stays so with an error: for the path where every copy counts.
func (s *Shared[V]) Read(ctx context.Context, id string, m Mark, r *Reading[V]) error {
	if _, err := s.known(ctx); err != nil {
		return err
	}
	key, err := s.valueKey(id)
	if err != nil {
		return err
	}
	q, err := s.r.get(ctx, key, m)
	if err != nil {
		*r, err = failedReading[V](err)
		return err
	}
	s.reading(ctx, id, q, r)
	return nil
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
		s.reading(ctx, ids[i], q, &out[i])
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

// reading is what the request q, shared by several callers, means to this one. It goes into r, which is zero.
func (s *Shared[V]) reading(ctx context.Context, id string, q *request, r *Reading[V]) {
	if q.raw == "" {
		return
	}
	if q.shared == nil {
		generation := s.decode(r, id, q.raw, q.sent, q.now)
		r.Keep = q.keep
		s.judge(ctx, r, generation)
		return
	}
	q.shared.once.Do(func() {
		d := &decoded[V]{}
		d.generation = s.decode(&d.Reading, id, q.raw, q.sent, q.now)
		q.shared.decoded = d
	})
	d, ok := q.shared.decoded.(*decoded[V])
	if !ok { // a name is open once per Redis, so there is one V; were there two, each would decode for itself
		d = &decoded[V]{}
		d.generation = s.decode(&d.Reading, id, q.raw, q.sent, q.now)
	}
	*r = d.Reading
	r.Keep = q.keep
	s.judge(ctx, r, d.generation)
}

// judge applies the generation that this process knows, a greater one confirmed first: an older value was cleared, a greater one that
// Redis did not confirm is foreign.
func (s *Shared[V]) judge(ctx context.Context, r *Reading[V], generation uint64) {
	known := s.generation.Load()
	if generation > known {
		known, _ = s.confirm(ctx, generation)
	}
	r.judge(generation, known)
}

// Decode returns the value that came along with a, fresh if a is Found.
func (s *Shared[V]) Decode(a Acquired) (r Reading[V]) {
	if a.raw == "" {
		return r
	}
	generation := s.decode(&r, a.Lease.ID, a.raw, a.sent, a.now)
	r.Keep = true
	r.judge(generation, s.generation.Load())
	return r
}

// judge applies the generation known to what was read of the given one.
func (r *Reading[V]) judge(generation, known uint64) {
	switch {
	case r.Kind == Foreign || generation == known:
	case generation < known:
		*r = Reading[V]{}
	default:
		*r = Reading[V]{Kind: Foreign, Stored: r.Stored}
	}
}

// decode takes a value key's content apart into r, which is zero, and returns its generation. It never fails: what cannot be read is
// foreign.
func (s *Shared[V]) decode(r *Reading[V], id, raw string, sent time.Time, now int64) (generation uint64) {
	var e envelope
	err := e.parse(raw)
	r.Kind, r.Stored = Foreign, e.stored
	switch {
	case err != nil || !e.of(id):
		return e.generation
	case e.hard <= now && e.flags&flagMarker != 0:
		r.Kind = Marker
		return e.generation
	case e.hard <= now:
		r.Kind = Nothing
		return e.generation
	case e.schema != s.schema || len(e.payload) > s.limit:
		return e.generation
	}
	if r.Absent = e.flags&flagAbsent != 0; !r.Absent {
		if e.codec != s.codec.ID() || !s.decodeValue(&r.Value, e.payload) {
			return e.generation
		}
	}
	r.Born = localTime(sent, now, min(e.stored, now))
	r.Soft = localTime(sent, now, e.soft)
	r.Hard = localTime(sent, now, e.hard)
	r.Version, r.Cost, r.Size = e.version, e.cost, len(e.payload)
	r.Kind = Value
	return e.generation
}

// decodeValue decodes payload into v, which stays zero if it cannot. Text under our own raw codec is taken as it is; to any other
// codec goes a V of its own, which may escape.
func (s *Shared[V]) decodeValue(v *V, payload string) bool {
	if text, ok := any(v).(*string); ok && s.raw {
		*text = payload
		return true
	}
	own := new(V)
	if decode(s.codec, payload, own) != nil {
		return false
	}
	*v = *own
	return true
}

// Encode makes the Fill that stores e under the lease l, for the lives given. It returns an error that wraps ErrEncode or ErrTooLarge
// where e cannot be stored; the lease is then still held and must be released.
func (s *Shared[V]) Encode(l Lease, e Entry[V], lives Lives) (Fill, error) {
	f := Fill{Lease: l, Codec: s.codec.ID(), Schema: s.schema, Version: e.Version, Cost: e.Cost, Soft: lives.Soft, Hard: max(lives.Hard, lives.Soft)}
	var front []byte
	if rediskey.Long(l.ID) {
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
