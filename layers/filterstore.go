package layers

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// What Redis holds of a cache's filter: the snapshot, one string, what an unfinished build has left, another one, and the stream of announced keys. They are in different slots of
// a Cluster, so nothing here changes both at one moment; the cursor inside the snapshot's head ties them together.
//
// The stream is made by the first announcement or the first build, whichever comes first, not by the build alone:
//
//  1. A announces a row; there is no stream, so the announcement is not kept. 2. B begins a build: makes the stream, scans past the
//     row's place. 3. A's insert commits. 4. B's filter says "absent" of a row that exists.
//
// A cursor is an entry's id and its field's name. The name ends in characters drawn for each append, so that an entry is known
// again only if it is the same one: not if the stream was lost and an entry of the new one happens to have its id.
// Reading begins at the cursor's own entry: while that is there, everything after it is, since a stream is trimmed from its old end.
const (
	// filterLife is how long both outlive the last process that renewed them: a fleet stopped for a night finds its filter again.
	filterLife = 24 * time.Hour
	// filterStreamMax is how many announcements are kept: about a quarter of an hour at 1,000 rows a second.
	filterStreamMax = 1_000_000
	// filterPage is how many announcements travel in one round trip. Chosen; not tuned.
	filterPage = 1000
	// filterChunk is how much of a snapshot travels in one command: enough to be quick, and little enough that no client's time-out
	// is overrun and no other caller of Redis waits long. Chosen; not tuned.
	filterChunk = 1 << 20
	// filterPartLife bounds what a crash in the middle of storing a snapshot leaves behind.
	filterPartLife = 10 * time.Minute
	// filterBudget is for one round trip of what is done in the background here. Nobody waits for it. Chosen; not tuned.
	filterBudget = 2 * time.Second
	// filterMaxBytes is what a Redis string can hold.
	filterMaxBytes = 512 << 20
)

const (
	filterKeyField  = 'k' // an announced key
	filterFedField  = 'b' // a change feed's beat: its lag in milliseconds, and the server's time when it was measured, as it was known there
	filterOpenField = 'o' // the beginning of a build: it only makes the stream and tells the server's time
)

// Errors of the filter's store.
var (
	// ErrFilterForeign says that the snapshot's key holds something else, or a form of a later release: nothing can be said of it.
	ErrFilterForeign = errors.New("layers: the filter's key holds no snapshot of a known form")
	// ErrFilterLost says that what was just stored was gone again: Redis was flushed, or evicts.
	ErrFilterLost = errors.New("layers: the filter's data was lost while it was stored or read")
)

func (s *Space) filterKey() string       { return s.r.prefix + ":" + s.name + ":filter" }
func (s *Space) filterStreamKey() string { return s.filterKey() + ":new" }

// filterPartKey is where a snapshot grows before it is moved to its place. The hash tag keeps it in the slot of that place.
func (s *Space) filterPartKey(token string) string { return "{" + s.filterKey() + "}:part:" + token }

// filterDo runs f, whose commands are of key's slot, unless key's master is known to be unreachable. It returns at the latest when the
// budget is over or ctx ends, whatever the client's time-outs are: with an error then, what f did being unknown. f itself may go on
// until the client gives up, which is after one of its time-outs, since it does not try again then.
func (s *Space) filterDo(ctx context.Context, budget time.Duration, key string, f func(ctx context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return endOf(ctx)
	}
	if !s.r.reachable(key) {
		return ErrUnreachable
	}
	within, cancel := context.WithTimeout(ctx, budget)
	done := make(chan error, 1)
	if !s.r.spawn(func() {
		defer cancel()
		done <- f(within)
	}) {
		cancel()
		return errRedisClosed
	}
	var err error
	select {
	case err = <-done:
	case <-within.Done():
		select {
		case err = <-done: // ended, and the answer is there: it wins
		default:
			err = within.Err()
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return endOf(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return ErrTimeout
	}
	return err
}

// AppendAnnounced adds ids to the announcements that every process reads: before the insert of their rows commits. It makes the
// stream where there is none. One round trip for 1,000 ids. With an error it is unknown which were added, and nothing must be
// inserted yet; adding them again does no harm.
func (s *Space) AppendAnnounced(ctx context.Context, ids ...string) error {
	return s.appendAnnounced(ctx, nil, ids...)
}

// appendAnnounced is AppendAnnounced; also, if there is one, adds reads of the stream's slot to each append, which are done at the same moment.
func (s *Space) appendAnnounced(ctx context.Context, also func(redis.Pipeliner), ids ...string) error {
	for _, id := range ids {
		if len(id) > MaxKeyBytes {
			return fmt.Errorf("%w: %d bytes, at most %d", ErrKeyTooLong, len(id), MaxKeyBytes)
		}
	}
	for len(ids) > 0 {
		page := ids[:min(len(ids), filterPage)]
		ids = ids[len(page):]
		if _, err := s.filterAppend(ctx, also, filterKeyField, page...); err != nil {
			return fmt.Errorf("layers: announcing: %w", err)
		}
	}
	return nil
}

// AppendFed adds to the announcements that a change feed has told of every row committed longer than lag ago: after these rows' own. One round trip;
// two for the first.
func (s *Space) AppendFed(ctx context.Context, lag time.Duration) error {
	began, known := s.fedClock.now()
	if !known {
		opened, err := s.filterAppend(ctx, nil, filterOpenField, "")
		if err != nil {
			return fmt.Errorf("layers: telling of a change feed: %w", err)
		}
		began = opened.milli()
	}
	told, err := s.filterAppend(ctx, nil, filterFedField, fmt.Sprintf("%d %d", millis(lag), began))
	if err != nil {
		return fmt.Errorf("layers: telling of a change feed: %w", err)
	}
	s.fedClock.heard(told.milli())
	return nil
}

// fedLag is by how much a change feed was behind when its word was told: what it said, and how long after that it came.
func fedLag(word string, told int64) (lag time.Duration, ok bool) {
	said, began, _ := strings.Cut(word, " ")
	ms, err := strconv.ParseInt(said, 10, 64)
	since, sinceErr := strconv.ParseInt(began, 10, 64)
	if err != nil || sinceErr != nil || ms < 0 || since < 0 {
		return 0, false
	}
	return span(ms) + span(max(told-since, 0)), true
}

// serverClock estimates the server's time, which is never ahead of it: a word that is sent with it, and that the network delivers late, tells how late.
type serverClock struct {
	last atomic.Pointer[serverMoment]
}

// serverMoment is the server's time, in milliseconds since 1970, and when it had been heard.
type serverMoment struct {
	ms int64
	at time.Time
}

func (k *serverClock) heard(ms int64) { k.last.Store(&serverMoment{ms, time.Now()}) }

// now is the estimate; known is false if nothing was ever heard.
func (k *serverClock) now() (ms int64, known bool) {
	m := k.last.Load()
	if m == nil {
		return 0, false
	}
	return m.ms + time.Since(m.at).Milliseconds(), true
}

// filterAppend adds one entry for each value, all with the same field, and renews the stream's expiry, at one moment: the stream
// never stands without an expiry. It returns the last entry.
func (s *Space) filterAppend(ctx context.Context, also func(redis.Pipeliner), kind byte, values ...string) (filterCursor, error) {
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails
	field := string(kind) + base64.RawURLEncoding.EncodeToString(random[:])
	stream := s.filterStreamKey()
	var last *redis.StringCmd
	err := s.filterDo(ctx, s.r.writeTimeout, stream, func(ctx context.Context) error {
		pipe := s.r.rdb.TxPipeline()
		for _, value := range values {
			last = pipe.XAdd(ctx, &redis.XAddArgs{Stream: stream, MaxLen: filterStreamMax, Approx: true, Values: []string{field, value}})
		}
		renewed := pipe.PExpire(ctx, stream, filterLife)
		if also != nil {
			also(pipe)
		}
		if _, err := pipe.Exec(ctx); last.Err() != nil || renewed.Err() != nil {
			return err
		}
		return nil // what else was read has its own error
	})
	if err != nil {
		return filterCursor{}, err
	}
	return filterCursor{id: last.Val(), field: field}, nil
}

// BeginFilter makes the stream where there is none, and returns the cursor of the first announcement that is younger than reach, and the
// generation of a filter whose scan begins now: of two, the one begun later has the greater. whole is false if younger announcements were
// dropped because there were too many.
func (s *Space) BeginFilter(ctx context.Context, reach time.Duration) (cursor string, generation uint64, whole bool, err error) {
	opening, err := s.filterAppend(ctx, nil, filterOpenField, "")
	if err != nil {
		return "", 0, false, fmt.Errorf("layers: opening the stream of announcements: %w", err)
	}
	from := strconv.FormatInt(max(0, opening.milli()-reach.Milliseconds()), 10)
	stream := s.filterStreamKey()
	var first, oldest *redis.XMessageSliceCmd
	var length *redis.IntCmd
	err = s.filterDo(ctx, filterBudget, stream, func(ctx context.Context) error {
		pipe := s.r.rdb.Pipeline()
		length = pipe.XLen(ctx, stream)
		oldest = pipe.XRangeN(ctx, stream, "-", "+", 1)
		first = pipe.XRangeN(ctx, stream, from, "+", 1)
		_, err := pipe.Exec(ctx)
		return err
	})
	switch {
	case err != nil:
		return "", 0, false, fmt.Errorf("layers: reading the stream of announcements: %w", err)
	case len(first.Val()) == 0 || len(oldest.Val()) == 0:
		return "", 0, false, ErrFilterLost
	}
	c := filterCursorOf(first.Val()[0])
	// Redis drops entries only while more than filterStreamMax are left. Where it did not, or where the oldest is older than reach,
	// none within reach is missing.
	whole = length.Val() < filterStreamMax || filterCursorOf(oldest.Val()[0]) != c
	return c.String(), opening.generation(), whole, nil
}

// Announced returns announced ids from cursor on, at most 1,000, the lags that change feeds told after it, and the cursor to go on with; the
// same cursor says that there was nothing more. whole is false if the cursor's announcement is not there any more: the stream was trimmed past it, lost, or begun
// anew. One round trip.
func (s *Space) Announced(ctx context.Context, cursor string) (ids []string, lags []time.Duration, next string, whole bool, err error) {
	ids, lags, next, _, whole, err = s.AnnouncedUntil(ctx, cursor)
	return ids, lags, next, whole, err
}

// AnnouncedUntil is Announced; end says that there was nothing more, behind what it returns, when the call began.
func (s *Space) AnnouncedUntil(ctx context.Context, cursor string) (ids []string, lags []time.Duration, next string, end, whole bool, err error) {
	c, ok := parseFilterCursor(cursor)
	if !ok {
		return nil, nil, "", false, false, nil
	}
	var entries []redis.XMessage
	stream := s.filterStreamKey()
	err = s.filterDo(ctx, filterBudget, stream, func(ctx context.Context) (err error) {
		entries, err = s.r.rdb.XRangeN(ctx, stream, c.id, "+", filterPage+1).Result()
		return err
	})
	if err != nil {
		return nil, nil, "", false, false, fmt.Errorf("layers: reading the stream of announcements: %w", err)
	}
	if len(entries) == 0 || filterCursorOf(entries[0]) != c {
		return nil, nil, "", false, false, nil
	}
	for i, e := range entries {
		for field, value := range e.Values {
			text, _ := value.(string)
			switch {
			case field == "":
			case field[0] == filterKeyField:
				ids = append(ids, text)
			case field[0] == filterFedField && i > 0: // the cursor's own was read before
				if lag, ok := fedLag(text, filterCursorOf(e).milli()); ok {
					lags = append(lags, lag)
				}
			}
		}
	}
	return ids, lags, filterCursorOf(entries[len(entries)-1]).String(), len(entries) <= filterPage, true, nil
}

// KeepFilter renews the expiry of the snapshot and of the stream, where they are: once a minute from one process is plenty.
func (s *Space) KeepFilter(ctx context.Context) error {
	return s.filterDo(ctx, filterBudget, s.filterKey(), func(ctx context.Context) error {
		pipe := s.r.rdb.Pipeline() // in a Cluster one for each key's master
		pipe.PExpire(ctx, s.filterKey(), filterLife)
		pipe.PExpire(ctx, s.filterStreamKey(), filterLife)
		_, err := pipe.Exec(ctx)
		return err
	})
}

// filterCursor names an entry of the stream.
type filterCursor struct{ id, field string }

func (c filterCursor) String() string { return c.id + "=" + c.field }

// milli is the server's time when the entry was added, as its id tells it.
func (c filterCursor) milli() int64 {
	ms, _, _ := strings.Cut(c.id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return 0 // not an id of Redis: everything is then within reach
	}
	return n
}

// generation is the entry as the beginning of a scan: the server's milliseconds, and the entries before it in its millisecond, of which
// more than 4,095 count as so many. So it grows with the stream, and a stream that was lost goes on from the time.
func (c filterCursor) generation() uint64 {
	_, seq, _ := strings.Cut(c.id, "-")
	n, _ := strconv.ParseUint(seq, 10, 64)                 // not an id of Redis: 0
	return uint64(max(0, c.milli()))<<12 | min(n, 1<<12-1) //nolint:gosec // not negative
}

func filterCursorOf(e redis.XMessage) filterCursor {
	for field := range e.Values {
		return filterCursor{e.ID, field} // entries of ours have one
	}
	return filterCursor{id: e.ID}
}

func parseFilterCursor(text string) (filterCursor, bool) {
	id, field, ok := strings.Cut(text, "=")
	return filterCursor{id, field}, ok && id != "" && field != ""
}

// filterHead stands before the snapshot in its key:
//
//	0  magic "tcfs"    5  length of the cursor    8  length of the snapshot    32  rank: generation·2, and 1 where it is doubted
//	4  version         6  zero                    16 random, another each time 40  the cursor, 56 bytes
//
// A snapshot takes the place of one of a lower rank only, so an older scan never replaces a newer one. A head of an odd rank stands alone:
// it says that the filter of its generation, and each before it, called a row absent that exists.
type filterHead struct {
	length     uint64
	token      [16]byte
	generation uint64
	doubted    bool
	cursor     string
}

const (
	filterHeadBytes   = 96
	filterCursorBytes = 56
	filterMagic       = "tcfs"
	filterVersion     = 2
)

func (h filterHead) bytes() []byte {
	b := make([]byte, filterHeadBytes)
	copy(b, filterMagic)
	b[4], b[5] = filterVersion, byte(len(h.cursor))
	binary.BigEndian.PutUint64(b[8:], h.length)
	copy(b[16:32], h.token[:])
	rank := h.generation << 1
	if h.doubted {
		rank |= 1
	}
	binary.BigEndian.PutUint64(b[32:], rank)
	copy(b[40:], h.cursor)
	return b
}

func parseFilterHead(b string) (filterHead, bool) {
	if len(b) != filterHeadBytes || b[:4] != filterMagic || b[4] != filterVersion || b[5] > filterCursorBytes {
		return filterHead{}, false
	}
	rank := binary.BigEndian.Uint64([]byte(b[32:40]))
	h := filterHead{
		length: binary.BigEndian.Uint64([]byte(b[8:16])), generation: rank >> 1, doubted: rank&1 == 1, cursor: b[40 : 40+int(b[5])],
	}
	copy(h.token[:], b[16:32])
	return h, h.length <= filterMaxBytes
}
