package layers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrToken is returned where a token is not of the form that NewToken gives. Nothing was sent.
var ErrToken = errors.New("layers: not a token")

// Ask is one question for the right to rebuild a key.
type Ask struct {
	ID        string
	Token     Token // of this rebuild; asking again with it is one and the same question
	WantStale bool  // give a value past its soft end along; not worth it when polling
	Seen      int64 // stored-at of the copy that the rebuild means to replace although it may be fresh; 0: none
}

// Verdict is what became of an Ask.
type Verdict uint8

const (
	// Granted means that the lease is this token's: load, then Fill or Release.
	Granted Verdict = iota
	// Found means that a fresh value stands, which came along.
	Found
	// Held means that another has the lease.
	Held
	// BackOff means that the last loads of this key failed and it rests.
	BackOff
)

// String returns the verdict's name.
func (v Verdict) String() string {
	switch v {
	case Granted:
		return "granted"
	case Found:
		return "found"
	case Held:
		return "held"
	case BackOff:
		return "back-off"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// Lease is the right to rebuild one key, as it was granted. It is a value: it may be copied and given on.
type Lease struct {
	ID         string
	Token      Token
	Stamp      string    // of this grant: a later grant of the same token has another; "" in a Release: any
	Generation uint64    // at the grant; what is filled is of this generation
	Cut        time.Time // local moment by which a value filled under this lease must be gone; zero: none
}

// Acquired is the answer to an Ask. A value that came along is read with Shared.Decode.
type Acquired struct {
	Verdict Verdict
	Lease   Lease         // its ID always; the rest if Granted
	Left    time.Duration // Held: of the lease in the way; BackOff: of the rest
	Err     error         // what follows from it is unknown: the lease may have been granted

	raw  string // fresh if Found, else stale; "" if none came along
	now  int64  // server ms
	sent time.Time
}

// Acquire reads every key again and asks for its lease where nothing fresh stands: the double check and the lock are one step in Redis.
func (s *Space) Acquire(ctx context.Context, asks ...Ask) []Acquired {
	out := make([]Acquired, len(asks))
	generation, err := s.known(ctx)
	ids := make([]string, len(asks))
	for i, ask := range asks {
		ids[i] = ask.ID
		out[i].Lease.ID = ask.ID
		if err == nil && !ask.Token.Valid() {
			err = ErrToken
		}
	}
	if err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	newest := generation
	s.each(ctx, ids, func(i int, key string) *scriptCall {
		ask := &asks[i]
		return &scriptCall{script: acquireScript, keys: []string{key, guardKey(key)}, args: []any{
			generation, string(ask.Token), millis(s.o.LeaseTime), millis(s.o.Window), millis(s.o.Window), bit(ask.WantStale), max(ask.Seen, 0),
		}}
	}, func(i int, a scriptReply, err error) {
		out[i].take(&asks[i], a, err, generation)
		if e, err := parseEnvelope(out[i].raw); err == nil {
			newest = max(newest, e.generation)
		}
	})
	if newest > generation {
		// What Redis does not confirm stays unknown here, and Decode calls it foreign.
		_, _ = s.confirm(ctx, newest)
	}
	return out
}

// Unknown reports whether the lease may have been granted although no answer says so: then it is to be given back, by a Release of the
// token without a stamp, or it stands in everybody's way until it runs out.
func (q *Acquired) Unknown() bool {
	return mayHaveRun(q.Err)
}

// mayHaveRun reports whether a script of which this is the error may have been carried out, or may yet be.
func mayHaveRun(err error) bool {
	var reply redis.Error
	return err != nil && !errors.As(err, &reply) && (errors.Is(err, ErrTimeout) || !errors.Is(err, ErrUnreachable))
}

// take sets what the acquire script answered.
func (q *Acquired) take(ask *Ask, a scriptReply, err error, generation uint64) {
	if err != nil {
		q.Err = err
		return
	}
	q.raw, q.now, q.sent = a.text(3), a.now, a.sent
	end := a.number(2)
	switch a.code {
	case 0:
		q.Verdict = Found
	case 1:
		q.Verdict = Granted
		q.Lease = Lease{ID: ask.ID, Token: ask.Token, Stamp: a.text(4), Generation: generation, Cut: a.cut(end)}
	case 2:
		q.Verdict, q.Left = Held, a.until(end)
	case 3:
		q.Verdict, q.Left = BackOff, a.until(end)
	default:
		q.Err = fmt.Errorf("layers: acquire answered %d", a.code)
	}
}

// cut is the local moment of a cut, zero for none.
func (a *scriptReply) cut(end int64) time.Time {
	if end == 0 {
		return time.Time{}
	}
	return a.local(end)
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Fill is a loaded value on its way into Redis, as Shared.Encode makes it.
type Fill struct {
	Lease        Lease
	Flags, Codec byte
	Schema       uint16
	Version      uint64        // of the row; counts only with its flag
	Cost         time.Duration // what the load took
	Soft, Hard   time.Duration // lives from the storing on
	Payload      []byte        // with the full key in front where the flag says so
	FirstMiss    bool          // of "absent": store it only if somebody waits for it or something stands in its place; else Withheld
}

// FillResult is what became of a Fill.
type FillResult uint8

const (
	// Stored means that Redis keeps the value.
	Stored FillResult = iota
	// StoredEarlier means that it keeps it since an earlier sending of this Fill, whose reply was lost.
	StoredEarlier
	// Refused means that the lease was revoked by an invalidation, or lost, or taken over: answer the value, do not keep it.
	Refused
	// WindowOver means that the delete window in which the lease was granted is over (or that "absent" met an announcement): answer the
	// value, do not keep it.
	WindowOver
	// Older means that a newer row version stands or was invalidated: answer the value, do not keep it.
	Older
	// Withheld means that it is a Fill.FirstMiss and Redis keeps nothing of it: memory may, for as long as Redis would have.
	Withheld
)

// String returns the result's name.
func (r FillResult) String() string {
	switch r {
	case Stored:
		return "stored"
	case StoredEarlier:
		return "stored earlier"
	case Refused:
		return "refused"
	case WindowOver:
		return "window over"
	case Older:
		return "older"
	case Withheld:
		return "withheld"
	}
	return fmt.Sprintf("result %d", uint8(r))
}

// Filled is the answer to a Fill.
type Filled struct {
	Result FillResult
	Born   time.Time // local moment of the storing, at the latest now; zero if the value is not to be kept
	Hard   time.Time // local deadline by which Redis has, or would have, dropped the value; zero if it is not to be kept
	Err    error     // it is unknown whether the value was stored: send the Fill once more
}

// Fill stores loaded values where their leases still stand, gives the leases back and wakes those who wait for the keys. In a Cluster, keys that
// have copies take a second round trip, which drops them.
func (s *Space) Fill(ctx context.Context, fills ...Fill) []Filled {
	out, copied := s.fillValues(ctx, fills...)
	// What a copy answers until its end if it cannot be dropped was fresh when the fill came, and ends with that.
	ids := make([]string, len(fills))
	for i := range fills {
		ids[i] = fills[i].Lease.ID
	}
	s.dropCopies(ctx, false, ids, copied)
	return out
}

// fillValues is Fill without the copies, of which it returns how many there may be, by fill.
func (s *Space) fillValues(ctx context.Context, fills ...Fill) (out []Filled, copied []int) {
	out, copied = make([]Filled, len(fills)), make([]int, len(fills))
	ids := make([]string, len(fills))
	for i := range fills {
		ids[i] = fills[i].Lease.ID
		if !fills[i].Lease.Token.Valid() {
			return failed(out, func(f *Filled) { f.Err = ErrToken }), copied
		}
	}
	s.each(ctx, ids, func(i int, key string) *scriptCall {
		f := &fills[i]
		l := &f.Lease
		return &scriptCall{script: fillScript, keys: s.noted(key), args: []any{
			l.Generation, string(l.Token), head(f.Flags, f.Codec, f.Schema), tail(f.Version, f.Cost), millis(f.Soft), millis(f.Hard),
			f.Payload, millis(s.o.Window), s.channel, s.r.bus.event(s, eventReady, l.ID), l.Stamp,
			bit(f.FirstMiss),
		}}
	}, func(i int, a scriptReply, err error) {
		if err != nil {
			out[i].Err = err
			return
		}
		out[i].take(a)
		copied[i] = int(a.number(4))
	})
	return out, copied
}

// take sets what the fill script answered.
func (f *Filled) take(a scriptReply) {
	switch a.code {
	case 1, 2, 3:
		f.Result = [...]FillResult{Stored, StoredEarlier, Withheld}[a.code-1]
		f.Hard = a.local(a.number(2))
		f.Born = a.local(min(a.number(3), a.now))
	case 0:
		f.Result = Refused
	case -1:
		f.Result = WindowOver
	case -3:
		f.Result = Older
	default:
		f.Result, f.Err = Refused, fmt.Errorf("layers: fill answered %d", a.code)
	}
}

// failed gives every element of out the same error, set by f.
func failed[T any](out []T, f func(*T)) []T {
	for i := range out {
		f(&out[i])
	}
	return out
}

// Release gives leases back after loads that store nothing. With backOff the failure counts: from the second in a row the key rests.
// Without (a panic, an absent result that is not kept) it does not. The errors are per lease, nil where it was lost before.
func (s *Space) Release(ctx context.Context, backOff bool, leases ...Lease) []error {
	out := make([]error, len(leases))
	base := int64(0)
	if backOff {
		base = millis(s.o.BackoffBase)
	}
	s.each(ctx, idsOf(leases), func(i int, key string) *scriptCall {
		l := &leases[i]
		return &scriptCall{script: releaseScript, keys: []string{guardKey(key)}, args: []any{
			string(l.Token), base, millis(s.o.BackoffMax), millis(s.o.Window), s.channel, s.r.bus.event(s, eventReady, l.ID), l.Stamp,
		}}
	}, func(i int, _ scriptReply, err error) { out[i] = err })
	return out
}

// Renewed is what became of a renewal.
type Renewed struct {
	Held bool  // the lease stands, for LeaseTime from now on; false without an error: it is lost, and its fill will be refused
	Err  error // unknown
}

// Renew keeps leases from running out; call it every third of LeaseTime while loading.
func (s *Space) Renew(ctx context.Context, leases ...Lease) []Renewed {
	out := make([]Renewed, len(leases))
	s.each(ctx, idsOf(leases), func(i int, key string) *scriptCall {
		l := &leases[i]
		return &scriptCall{script: renewScript, keys: []string{guardKey(key)}, args: []any{
			"lease", string(l.Token), millis(s.o.LeaseTime), millis(s.o.Window), l.Stamp,
		}}
	}, func(i int, a scriptReply, err error) { out[i] = Renewed{Held: err == nil && a.code == 1, Err: err} })
	return out
}

func idsOf(leases []Lease) []string {
	ids := make([]string, len(leases))
	for i := range leases {
		ids[i] = leases[i].ID
	}
	return ids
}
