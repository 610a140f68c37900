package layers

import (
	"context"
	"fmt"

	"github.com/tiercache/tiercache/internal/broken"
)

// Mode is the kind of an invalidation.
type Mode uint8

const (
	// Once invalidates after a write that is already committed.
	Once Mode = iota
	// Begin invalidates before a write and keeps its keys pending until End, or until PendTime after the last renewal: what is rebuilt
	// meanwhile lives for one delete window at most.
	Begin
	// End invalidates after the write that Begin announced, and ends its pending state.
	End
	// Announce deletes only what says "absent", before a row is inserted, and leaves a marker where no live value stands.
	Announce
	// SetMode invalidates and grants the lease to the operation itself, which then fills.
	SetMode
)

// String returns the mode's name, which is also the script's.
func (m Mode) String() string {
	switch m {
	case Once:
		return "once"
	case Begin:
		return "begin"
	case End:
		return "end"
	case Announce:
		return "announce"
	case SetMode:
		return "set"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Invalidated is the answer for one key.
type Invalidated struct {
	Lease Lease // SetMode only
	Err   error // unknown: it may have been done, and may be repeated
}

// Unknown reports whether it may have been done although no answer says so, or may yet be.
func (v *Invalidated) Unknown() bool { return mayHaveRun(v.Err) }

// Invalidate deletes the values, revokes the leases, opens the delete windows and tells every process, one step in Redis for each key.
// In a Cluster, keys that have copies take a second round trip, which drops them. op names the operation: Begin, End and SetMode must be given one, and End the one of its Begin; for the others it may be empty.
func (s *Space) Invalidate(ctx context.Context, mode Mode, op Token, ids ...string) []Invalidated {
	return s.invalidate(ctx, mode, op, 0, ids...)
}

// invalidate is Invalidate; fills of rows older than the version oldest are refused while the window is open (0: of none).
func (s *Space) invalidate(ctx context.Context, mode Mode, op Token, oldest uint64, ids ...string) []Invalidated {
	out, copied := s.invalidateValues(ctx, mode, op, oldest, ids...)
	for i, err := range s.dropCopies(ctx, true, ids, copied) {
		if err != nil {
			out[i].Err = err
		}
	}
	return out
}

// invalidateValues is invalidate without the copies, of which it returns how many there may be, by id.
func (s *Space) invalidateValues(ctx context.Context, mode Mode, op Token, oldest uint64, ids ...string) (out []Invalidated, copied []int) {
	out, copied = make([]Invalidated, len(ids)), make([]int, len(ids))
	if op == "" && (mode == Once || mode == Announce) {
		op = NewToken()
	}
	if !op.Valid() {
		return failed(out, func(o *Invalidated) { o.Err = ErrToken }), copied
	}
	// A generation that is not known reads as 0, for which every value is a current one. Only Announce and SetMode look at it, and an
	// invalidation must not wait for anything else.
	generation := s.generation.Load()
	if mode == SetMode || mode == Announce {
		var err error
		if generation, err = s.known(ctx); err != nil {
			return failed(out, func(o *Invalidated) { o.Err = err }), copied
		}
	}
	kind, version := eventInvalidated, ""
	if mode == Announce {
		kind = eventAnnounced
	}
	if oldest != 0 {
		version = fmt.Sprintf("%016x", oldest)
	}
	if broken.Left(broken.Order) {
		s.tellFirst(ctx, kind, ids)
	}
	s.each(ctx, ids, func(i int, key string) *scriptCall {
		return &scriptCall{script: invalidateScript, keys: s.noted(key), args: []any{
			mode.String(), string(op), millis(s.o.Window), millis(s.o.PendTime), version, s.channel, s.r.bus.event(s, kind, ids[i]),
			generation, millis(s.o.LeaseTime),
		}}
	}, func(i int, a scriptReply, err error) {
		out[i].Err = err
		copied[i] = int(a.number(4))
		if err == nil && mode == SetMode {
			out[i].Lease = Lease{ID: ids[i], Token: op, Stamp: a.text(3), Generation: generation, Cut: a.cut(a.number(2))}
		}
	})
	return out, copied
}

// RenewPending keeps the keys of Begin pending; call it every third of PendTime while the write runs. The errors are per key.
func (s *Space) RenewPending(ctx context.Context, op Token, ids ...string) []error {
	out := make([]error, len(ids))
	if !op.Valid() {
		return failed(out, func(err *error) { *err = ErrToken })
	}
	s.each(ctx, ids, func(_ int, key string) *scriptCall {
		return &scriptCall{script: renewScript, keys: []string{guardKey(key)}, args: []any{
			"pend", string(op), millis(s.o.PendTime), millis(s.o.Window), "",
		}}
	}, func(i int, _ scriptReply, err error) { out[i] = err })
	return out
}
